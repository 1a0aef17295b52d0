"""Which ranks of a tag have their files, which lack them, and which have one that belongs to another save."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from ckpt_tools.layouts.assembly_zero_names import RankFile
from ckpt_tools.layouts.assembly_zero_tag import MOST, Tag
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping, whole

_SETS = re.compile(r"ep_size_(\d+)\Z")
_LAYER = re.compile(r"(\d+)\.")


@dataclass(frozen=True)
class Census:
    """The ranks of one tag; ranks are ``(data-parallel rank, model-parallel rank)``."""

    tag: Tag

    @cached_property
    def partitioned(self) -> bool:
        """Whether an optimizer partition of each rank is needed: the model states tell, or files do."""
        if self.tag.universal:
            return False
        return bool(self.tag.of("optimizer")) or self.tag.stage == 3 or self.tag.first.get("param_shapes") is not None

    @cached_property
    def partitions(self) -> int:
        """How many data-parallel ranks have a partition: fewer than there are where groups hold copies (MiCS)."""
        stated = self.tag.data_parallel
        ranks = {file.dp for file, _ in self.tag.of("optimizer") if file.dp is not None}
        counts = {shard.count for shard in self.tag.shards.values()}
        if stated is None:
            return min(max(ranks, default=-1) + 1, MOST)
        alike = next(iter(counts)) if len(counts) == 1 else None
        copies = alike is not None and 0 < alike < stated and stated % alike == 0 and ranks == set(range(alike))
        return alike if copies and alike is not None else stated

    @cached_property
    def slices(self) -> int:
        """The number of model-parallel ranks."""
        stated = self.tag.model_parallel
        return stated if stated is not None else min(max(self.tag.parallel, default=0) + 1, MOST)

    @cached_property
    def missing_partitions(self) -> list[tuple[int, int]]:
        """The ranks that have no optimizer file under any prefix."""
        if not self.partitioned:
            return []
        present = {(file.dp, file.mp) for file, _ in self.tag.of("optimizer")}
        wanted = ((dp, mp) for mp in range(self.slices) for dp in range(self.partitions))
        return [rank for rank in islice(wanted, MOST) if rank not in present]

    @cached_property
    def missing_models(self) -> list[tuple[int | None, int]]:
        """The ranks that have no model states."""
        present = {(file.dp, file.mp) for file, _ in self.tag.of("model")}
        if self.tag.universal:  # of stage 3 those of rank 0 are read by all
            partitioned = any(dp is not None for dp, _ in present)
            owner = 0 if partitioned else None
            return [] if any(dp == owner for dp, _ in present) else [(owner, 0)]
        owners: list[int | None] = list(range(self.partitions)) if self.tag.stage == 3 else [None]
        wanted = ((dp, mp) for mp in range(self.slices) for dp in owners)
        return [rank for rank in islice(wanted, MOST) if rank not in present]

    @cached_property
    def prefix(self) -> str:
        """The prefix of most optimizer files."""
        found = Counter(file.prefix for file, _ in self.tag.of("optimizer"))
        return found.most_common(1)[0][0] if found else ""

    @cached_property
    def misnamed(self) -> list[RankFile]:
        """The optimizer files whose rank has one under another prefix than most, and none under theirs."""
        usual = {(file.dp, file.mp) for file, _ in self.tag.of("optimizer") if file.prefix == self.prefix}
        others = (file for file, _ in self.tag.of("optimizer") if file.prefix != self.prefix)
        return [file for file in others if (file.dp, file.mp) not in usual and file not in self.extra]

    @cached_property
    def extra(self) -> list[RankFile]:
        """The files of ranks beyond the number that wrote the tag, and second ones under another prefix."""
        if self.tag.data_parallel is None or self.tag.universal:
            return []
        usual = {(file.dp, file.mp) for file, _ in self.tag.of("optimizer") if file.prefix == self.prefix}
        found = []
        for file, _ in (*self.tag.of("model"), *self.tag.of("optimizer")):
            second = file.kind == "optimizer" and file.prefix != self.prefix and (file.dp, file.mp) in usual
            if (file.dp or 0) >= self.tag.data_parallel or file.mp >= self.slices or second:
                found.append(file)
        return found

    @cached_property
    def missing_layers(self) -> list[int]:
        """The layers of a pipeline that have parameters and no file."""
        files = {file.layer for file, _ in self.tag.of("layer")}
        if not files or self.tag.universal:
            return []
        names = (name for mp in self.tag.parallel for group in self.tag.shapes(mp) for name in group)
        wanted = {int(match[1]) for name in (*names, *self._buffers) if (match := _LAYER.match(name))}
        held = sum(len(self.tag.read(part) or {}) for _, part in self.tag.of("layer"))
        named = any(map(self.tag.shapes, self.tag.parallel))
        if not named and self._trained > held and not self.copies:
            wanted |= set(range(min(max(layer or 0 for layer in files) + 1, MOST)))
            return sorted(wanted - files) or [len(wanted)]
        return sorted(wanted - files)

    @cached_property
    def copies(self) -> bool:
        """Whether the layers may lack no more than copies of a weight that stages share, by the shapes of the moments.

        A layer that is used once more, with a function of its own, has no file.
        """
        stages = [Counter(_shapes(state)) for state in self.tag.models.values()]
        layers = [as_mapping(self.tag.read(part)) or {} for _, part in self.tag.of("layer")]
        held = Counter(ref.shape for layer in layers for ref in layer.values() if isinstance(ref, TensorRef))
        surplus = sum(stages, Counter[tuple[int, ...]]()) - held
        return bool(surplus) and all(
            held[shape] and sum(map(bool, (s[shape] for s in stages))) > 1 for shape in surplus
        )

    @property
    def _buffers(self) -> Iterator[str]:
        """The names of the buffers, frozen layers' too, that the stages of a pipeline say they have."""
        for state in self.tag.models.values():
            said = state.get("buffer_names")
            yield from (name for name in (said if isinstance(said, list | tuple) else ()) if isinstance(name, str))

    @cached_property
    def missing_slices(self) -> list[tuple[int, int]]:
        """The layers that lack a tensor-parallel slice that others have, as ``(layer, slice)``."""
        held = {(file.layer, file.mp) for file, _ in self.tag.of("layer") if file.layer is not None}
        slices = sorted({mp for _, mp in held})
        wanted = ((layer, mp) for layer in sorted({layer for layer, _ in held}) for mp in slices)
        return [each for each in islice(wanted, MOST) if each not in held]

    @property
    def _trained(self) -> int:
        """The number of parameters that optimizers inside of the model states train."""
        count = 0
        for state in self.tag.models.values():
            held = as_mapping(state.get("optimizer")) or {}
            held = as_mapping(held.get("optimizer_state_dict")) or held
            groups = held.get("param_groups")
            for group in groups if isinstance(groups, list | tuple) else ():
                members = (as_mapping(group) or {}).get("params")
                count += len(members) if isinstance(members, list | tuple) else 0
        return count

    @cached_property
    def missing_experts(self) -> list[tuple[int, int]]:
        """The experts without a file, as ``(layer, expert)``."""
        said = self.tag.first.get("num_experts")
        counts = [whole(count) or 0 for count in said] if isinstance(said, list | tuple) else []
        files = {(file.layer or 0, file.expert) for file, _ in self.tag.of("expert")}
        if not files or self.tag.stage == 3 or self.tag.universal:
            return []
        wanted = ((layer, expert) for layer, count in enumerate(counts) for expert in range(count))
        return [each for each in islice(wanted, MOST) if each not in files]

    @cached_property
    def expert_ranks(self) -> int:
        """The number of expert-parallel ranks that have an optimizer of their own, 0 where there are none."""
        ranks = {file.dp for file, _ in self.tag.of("expert-optimizer") if file.dp is not None}
        return min(max([max(ranks) + 1, *self._sets()]), MOST) if ranks else 0

    @cached_property
    def missing_expert_ranks(self) -> list[int]:
        """The expert-parallel ranks without an optimizer file, where there are such files."""
        ranks = {file.dp for file, _ in self.tag.of("expert-optimizer")}
        return [rank for rank in range(self.expert_ranks) if rank not in ranks]

    def _sets(self) -> list[int]:
        found = []
        for _, part in self.tag.of("expert-optimizer"):
            groups = (as_mapping((self.tag.read(part) or {}).get("optimizer")) or {}).get("param_groups")
            for group in groups if isinstance(groups, list | tuple) else ():
                match = _SETS.match(str((as_mapping(group) or {}).get("name")))
                found += [int(match[1])] if match and len(match[1]) < 6 else []
        return found

    @property
    def lacking(self) -> tuple[object, ...]:
        """What has no file, one entry for each."""
        return (
            *self.missing_partitions, *self.missing_models, *self.missing_layers, *self.missing_slices,
            *self.missing_experts, *self.missing_expert_ranks,
        )  # fmt: skip

    @property
    def cut(self) -> list[str]:
        """The files that are cut or empty."""
        held = [part for file, part in self.tag.files if file.kind != "piece"]
        return [part.path for part in held if not self.tag.intact(part)]

    @property
    def complete(self) -> bool:
        """Whether no file is missing, and none is cut or empty."""
        return not self.lacking and not self.cut


def _shapes(model: Mapping[Any, Value]) -> Iterator[tuple[int, ...]]:
    """Yield the shape of what an optimizer inside of model states trains, as far as it has moments."""
    held = as_mapping(model.get("optimizer")) or {}
    held = as_mapping(held.get("optimizer_state_dict")) or held
    for entry in (as_mapping(held.get("state")) or {}).values():
        refs = (ref for key, ref in (as_mapping(entry) or {}).items() if key != "step" and isinstance(ref, TensorRef))
        first = next(refs, None)
        if first is not None:
            yield first.shape


def numbers(values: list[int]) -> str:
    """Return numbers as text, runs of them as ranges: ``0, 4-7``."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    return ", ".join(shown[:10]) + (f" ... and {len(shown) - 10} more" if len(shown) > 10 else "")
