"""One tag of DeepSpeed's: the states of all ranks, and what they say of their number and of how parameters are cut.

What each stage stores: ``stage_1_and_2.py``, ``stage3.py`` and ``bf16_optimizer.py`` (``state_dict``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_tools.layouts.assembly_zero_names import RankFile, files_of
from ckpt_tools.model.checkpoint import Part
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Value, as_mapping, whole

if TYPE_CHECKING:
    from ckpt_tools.layouts.assembly_zero_census import Census
    from ckpt_tools.layouts.view import View

State = Mapping[Any, Value]
Rank = tuple[int | None, int]
"""``(data-parallel rank, model-parallel rank)``; the former is None in a file that all of them share."""

MOST = 1 << 16
"""More ranks than this are not believed: somebody made that number up."""
_EXPERT = re.compile(r"(.*\bdeepspeed_experts\.)(\d+)(\..*)")


class Parameter(NamedTuple):
    """Where a parameter lies in the flat vector of its group: ``start`` counts elements, gaps included."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        return prod(self.shape)


class Shard:
    """The optimizer's states of one rank, whichever stage wrote them."""

    def __init__(self, file: RankFile, state: State) -> None:
        self.file = file
        self.top = state
        self.state: State = as_mapping(state.get("optimizer_state_dict")) or {}

    @cached_property
    def stage(self) -> int | None:
        """The stage it says; the optimizer of bfloat16 does not say, and cuts as stage 1 does."""
        said = self.state.get("zero_stage")
        said = said.args[0] if isinstance(said, Opaque) and len(said.args) == 1 else said
        if whole(said) is not None:
            return whole(said)
        return 3 if "fp32_flat_groups" in self.state else 1 if "single_partition_of_fp32_groups" in self.state else None

    @cached_property
    def counts(self) -> list[int]:
        """``partition_count``: one number for each group, or one for all."""
        said = self.state.get("partition_count")
        values = said if isinstance(said, list | tuple) else [said]
        return [count for value in values if (count := whole(value)) is not None]

    @property
    def count(self) -> int | None:
        """The number of ranks that the vectors were cut for; groups of experts are cut for fewer."""
        return max(self.counts, default=None)

    @cached_property
    def flat(self) -> list[TensorRef]:
        """The flat vectors of float32 weights: one per group, in stage 3 one per sub-group."""
        key = "fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"
        said = self.state.get(key)
        found = said if isinstance(said, list | tuple) else [said]
        return [ref for ref in found if isinstance(ref, TensorRef)]

    @cached_property
    def base(self) -> State:
        """The inner optimizer's ``state_dict``; the elastic form, a list of states, is given its shape."""
        inner = self.state.get("optimizer_state_dict" if self.stage == 3 else "base_optimizer_state")
        if isinstance(inner, list | tuple):
            return {"state": dict(enumerate(inner)), "param_groups": []}
        return as_mapping(inner) or {}

    @property
    def elastic(self) -> bool:
        """Whether the moments are stored without their padding, as older versions did."""
        return isinstance(self.state.get("base_optimizer_state"), list | tuple)

    @cached_property
    def groups(self) -> list[State]:
        said = self.base.get("param_groups")
        found = [as_mapping(group) for group in said] if isinstance(said, list | tuple) else []
        return [group for group in found if group is not None]

    @cached_property
    def moments(self) -> list[State]:
        """The states that go with the flat vectors, in their order; empty ones where there are none."""
        state = as_mapping(self.base.get("state")) or {}
        return [as_mapping(state.get(place)) or {} for place in range(len(self.flat))]

    @cached_property
    def paddings(self) -> list[list[int]]:
        """The gap after each parameter, by group; empty where nothing is said."""
        said = self.state.get("param_alignment_paddings")
        groups = said if isinstance(said, list | tuple) else []
        return [[whole(each) or 0 for each in group] if isinstance(group, list | tuple) else [] for group in groups]


class Tag:
    """The files of one tag, decoded; those that cannot be read are named and left out."""

    def __init__(self, view: View, folder: str) -> None:
        self.view = view
        self.folder = folder
        self.files: list[tuple[RankFile, Part]] = files_of(view.checkpoint, folder)
        self._shapes: dict[tuple[int, str], list[dict[str, tuple[int, ...]]]] = {}

    @cached_property
    def census(self) -> Census:
        """Which ranks have their files."""
        from ckpt_tools.layouts.assembly_zero_census import Census

        return Census(self)

    @cached_property
    def universal(self) -> bool:
        return any(file.kind == "piece" for file, _ in self.files)

    @cached_property
    def offloaded(self) -> bool:
        """Whether the optimizer's tensors lie in files of their own, as they were swapped to a disk."""
        prefix = f"{self.folder}/offloaded_tensors/".removeprefix("/")
        return any(path.startswith(prefix) for path in self.view.listing.files)

    def of(self, kind: str) -> list[tuple[RankFile, Part]]:
        return [pair for pair in self.files if pair[0].kind == kind]

    def read(self, part: Part) -> State | None:
        """Return what a file holds as a mapping, None where it is no readable file of one."""
        content = self.view.content(part)
        return as_mapping(content.value) if content is not None and content.readable else None

    def intact(self, part: Part) -> bool:
        """Return whether a file can be read, and the bytes of all its tensors are there."""
        content = self.view.content(part)
        if content is None or not content.readable:
            return False
        return all(ref.chunks or not ref.numel for ref in content.tensors.values())

    def _states(self, kind: str) -> Iterator[tuple[RankFile, State]]:
        for file, part in self.of(kind):
            state = self.read(part)
            if state is not None:
                yield file, state

    @cached_property
    def models(self) -> dict[Rank, State]:
        """The readable model states by rank."""
        return {(file.dp, file.mp): state for file, state in self._states("model")}

    @cached_property
    def shards(self) -> dict[Rank, Shard]:
        """The readable optimizer states by rank; of two files of one rank, that of the larger group counts."""
        number: dict[str, int] = {}
        for file, _ in self.of("optimizer"):
            number[file.prefix] = number.get(file.prefix, 0) + 1
        found: dict[Rank, Shard] = {}
        for file, state in self._states("optimizer"):
            rank = (file.dp, file.mp)
            if rank not in found or number[found[rank].file.prefix] < number[file.prefix]:
                found[rank] = Shard(file, state)
        return found

    @cached_property
    def stage(self) -> int | None:
        """The ZeRO stage of most ranks, 0 without any; None where no optimizer states can be read."""
        stages = [shard.stage for shard in self.shards.values() if shard.stage is not None]
        if stages:
            return max(set(stages), key=stages.count)
        if any(file.dp is not None for file, _ in self.of("model")):
            return 3
        return None if self.of("optimizer") else 0

    def model(self, mp: int) -> State:
        """Return the model states of a model-parallel rank, in stage 3 those of its first readable rank."""
        found = sorted(((dp or 0, state) for (dp, own), state in self.models.items() if own == mp), key=lambda p: p[0])
        return found[0][1] if found else {}

    @property
    def first(self) -> State:
        return next((self.model(mp) for mp in self.parallel if self.model(mp)), {})

    @cached_property
    def parallel(self) -> list[int]:
        """The model-parallel ranks (pipeline stages combined with tensor slices) that have files."""
        return sorted({file.mp for file, _ in self.files if file.kind in ("model", "optimizer")})

    @cached_property
    def said(self) -> list[int]:
        """The data-parallel sizes that model states say, each as often as it is said."""
        sizes = (whole(state.get("dp_world_size")) for state in self.models.values())
        return [size for size in sizes if size is not None and size > 0]

    @cached_property
    def data_parallel(self) -> int | None:
        """The data-parallel size: what rank 0 says, which writes in every save; else what most files say."""
        first = whole(self.first.get("dp_world_size"))
        if first is not None and 0 < first <= MOST:
            return first
        shards = (self.shards[rank] for rank in sorted(self.shards, key=_order))
        counts = [shard.count for shard in shards if shard.count and shard.count <= MOST]
        return max(counts, key=counts.count) if counts else None

    @cached_property
    def model_parallel(self) -> int | None:
        """The number of model-parallel ranks, as model states say it."""
        sizes = [size for state in self.models.values() if (size := _degree(state)) is not None and 0 < size <= MOST]
        return max(sizes, key=lambda size: (sizes.count(size), size)) if sizes else None

    @property
    def unfrozen(self) -> bool:
        """Whether frozen parameters were left out: stages 2 and 3 write None in place of what there is of them."""
        said = [state.get("frozen_param_shapes", 0) is None for state in self.models.values()]
        return self.stage in (2, 3) and not self.universal and bool(said) and all(said)

    @property
    def skipped(self) -> int:
        """How many steps float16 skipped, as the model states say it."""
        return whole(self.first.get("skipped_steps")) or 0

    @property
    def world_size(self) -> int | None:
        if self.data_parallel is None or not self.said:
            return self.data_parallel
        return self.data_parallel * (self.model_parallel or 1)

    def shapes(self, mp: int, key: str = "param_shapes") -> list[dict[str, tuple[int, ...]]]:
        """Return names and shapes of the trained parameters by group, in the order they were flattened in."""
        if (mp, key) not in self._shapes:
            said = self.model(mp).get(key)
            groups = said if isinstance(said, list | tuple) else [said]
            found = [_shapes(as_mapping(group) or {}) for group in groups] if said is not None else []
            self._shapes[mp, key] = found
        return self._shapes[mp, key]

    def layout(self, mp: int, group: int) -> list[Parameter]:
        """Return where the parameters of a group lie in its flat vector."""
        shapes = self.shapes(mp)
        paddings = next((s.paddings for (_, own), s in self.shards.items() if own == mp and s.paddings), [])
        gaps = paddings[group] if group < len(paddings) else []
        found, start = [], 0
        for place, (name, shape) in enumerate(shapes[group].items() if group < len(shapes) else ()):
            found.append(Parameter(name, shape, start))
            start += prod(shape) + (gaps[place] if place < len(gaps) else 0)
        return found

    def experts(self, mp: int, group: int) -> int:
        """Return in how many sets of experts a group comes: 1 for ordinary parameters."""
        counts = next((s.counts for (_, own), s in self.shards.items() if own == mp and len(s.counts) > group), [])
        world = self.data_parallel
        if self.stage == 3 or not counts or not world or counts[group] < 1 or counts[group] >= world:
            return 1
        return world // counts[group]


def _order(rank: Rank) -> tuple[int, int]:
    return rank[1], rank[0] or 0


def _degree(state: State) -> int | None:
    degrees = as_mapping(state.get("checkpoint_parallel_dimensions")) or {}
    pipeline, tensor = whole(degrees.get("pp_degree")), whole(degrees.get("tp_degree"))
    stated = whole(state.get("mp_world_size"))
    return pipeline * tensor if stated is None and pipeline and tensor else stated


def _shapes(group: State) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in group.items():
        sizes = [whole(size) for size in shape] if isinstance(shape, list | tuple) else [None]
        if isinstance(name, str) and all(size is not None and size >= 0 for size in sizes):
            found[name] = tuple(size for size in sizes if size is not None)
    return found


def of_all_experts(names: list[str], name: str, which: int) -> str:
    """Return the name that a rank's own expert has among those of all ranks; ``which`` is the set of experts."""
    match = _EXPERT.match(name)
    if match is None:
        return name
    own = [int(found[2]) for each in names if (found := _EXPERT.match(each)) and found[1] == match[1]]
    return f"{match[1]}{which * (max(own) + 1) + int(match[2])}{match[3]}"
