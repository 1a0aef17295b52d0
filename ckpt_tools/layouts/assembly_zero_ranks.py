"""One tag of DeepSpeed's as whole tensors: partitions of ZeRO, layers of pipelines, and experts.

Weights are the float32 masters that a resume goes on with, where all pieces of one are there, and else what the model
states hold.  A name that several model-parallel ranks have is a slice of a tensor, and how it was sliced is written
nowhere: such weights are not put together, and their moments are told for each rank.  The layers of a pipeline are
named by their number, as in DeepSpeed's own model (``2.weight``).  As ``deepspeed/utils/zero_to_fp32.py`` does it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Any

from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.layouts.assembly_zero_cut import Piece, Vector, named, over_ranks, tensor
from ckpt_tools.layouts.assembly_zero_groups import state_of, tensors_in
from ckpt_tools.layouts.assembly_zero_names import parse
from ckpt_tools.layouts.assembly_zero_tag import MOST, Parameter, Shard, Tag, of_all_experts
from ckpt_tools.model.checkpoint import Part
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping

FRAMEWORK = "DeepSpeed"
Tensors = dict[str, TensorRef]

_FROZEN = "frozen_param_fragments."
_LEARNT = re.compile(
    rf"(?:\w*optimizer\w*\.)+(?:\w*fp32\w*|base_optimizer_state|state)\.|module\.|{re.escape(_FROZEN)}"
)
_WHOLE = ("layer", "expert", "piece")
_TIED = "tied_modules."
"""What the names of parameters begin with that several stages of a pipeline have a copy of."""
_OF_RANK = re.compile(r"(mp_rank_\d+)\.")
_UNPLACED = (
    "each file holds the tensor-parallel slices of its rank, and how they were cut is not stored",
    "deepspeed.checkpoint.ds_to_universal puts them together, where the training code tells it how",
)


class ZeroAssembly(Assembly):
    """The tensors of one tag."""

    def __init__(self, tag: Tag) -> None:
        super().__init__(tag.view, FRAMEWORK, tag.folder)
        self.tag = tag

    @property
    def world_size(self) -> int | None:
        return self.tag.world_size

    @property
    def described(self) -> Iterator[tuple[str, str]]:
        if self.tag.universal:
            yield "ZeRO", "a universal checkpoint: any number of ranks can resume"
        elif self.tag.stage:
            number = self.tag.data_parallel or 0
            ranks = f"{number:,} data-parallel rank{'s' if number != 1 else ''}"
            slices = f", {len(self.tag.parallel):,} model-parallel ones" if len(self.tag.parallel) > 1 else ""
            yield "ZeRO", f"stage {self.tag.stage}, partitioned over {ranks}{slices}"
        layers = len(self.tag.of("layer"))
        if layers:
            yield "pipeline", f"{layers:,} layers in files of their own"
        if self.sliced:
            holders = {match[1] for name in self._slices if (match := _OF_RANK.match(name))}
            names = {_OF_RANK.sub("", name) for name in self._slices}
            numbers = sum(ref.numel for ref in self._slices.values())
            told = f"of {len(names):,} tensors on {len(holders):,} ranks"
            yield "slices", f"{told}: {numbers:,} numbers, those of all ranks counted each time"
        if any(shard.elastic for shard in self.tag.shards.values()):
            yield "elastic", "its rates are not stored; a resume takes those that it is started with"
        experts = {(file.layer, file.expert) for file, _ in self.tag.of("expert")}
        if experts:
            yield "experts", f"{len(experts):,} in files of their own"

    def learnt(self, part: Part, name: str) -> bool:
        file = parse(part.path)
        return file is not None and (file.kind in _WHOLE or _LEARNT.match(name) is not None)

    def used(self, part: Part, name: str) -> int | None:
        """The last slices of what is frozen end in memory that nobody wrote."""
        file, own = parse(part.path), name.removeprefix(_FROZEN)
        if own == name or file is None or file.dp is None:
            return None
        shapes = [group[own] for group in self.tag.shapes(file.mp, "frozen_param_shapes") if own in group]
        numel, world = (prod(shapes[0]) if shapes else 0), len(self._ranks(file.mp))
        share = -(-numel // world) if world else 0
        return max(0, min(share, numel - file.dp * share)) if share else None

    @cached_property
    def weights(self) -> Mapping[str, TensorRef]:
        """Those of all ranks; none where a rank has no more than a slice of each."""
        return {} if self.sliced else self._once_tied(dict(self._slices))

    @cached_property
    def _slices(self) -> Tensors:
        """What the ranks have, of one name several times where they have a slice each."""
        ranks = {mp: self._weights(mp) for mp in self.tag.parallel} | {-1: self._layers()}
        return _joined(ranks, tied=bool(self.tag.of("layer")))

    @cached_property
    def sliced(self) -> bool:
        """Whether several model-parallel ranks have a slice of the same tensors, not layers of their own."""
        if self.tag.universal:
            return False
        layers = {file.mp for file, _ in self.tag.of("layer")}
        names = Counter(name for mp in self.tag.parallel for name in self._names(mp))
        tied = _TIED if layers else "\0"
        return len(layers) > 1 or any(count > 1 and not name.startswith(tied) for name, count in names.items())

    def _names(self, mp: int) -> set[str]:
        """Return the names of what a model-parallel rank trains; where nothing is partitioned, of all that it has."""
        trained = {name for group in self.tag.shapes(mp) for name in group}
        return trained or set(tensors_in(self.tag.model(mp).get("module")))

    @property
    def unplaced(self) -> tuple[str, str] | None:
        """Why the weights cannot be put together, and what does it; None where they can."""
        return _UNPLACED if self.sliced else None

    @property
    def outline(self) -> Mapping[str, str]:
        if not self.sliced:
            return {}
        return {_OF_RANK.sub(r"\1/", name): f"{ref.dtype} {list(ref.shape)}" for name, ref in self._slices.items()}

    @property
    def left_out(self) -> Iterator[tuple[str, str]]:
        if self.sliced:
            yield "CK3", "the slices of mp_rank_*: how they were cut is stored nowhere, they are not put together"

    def _once_tied(self, found: Tensors) -> Tensors:
        """Give float32 weights that stages share the name of the one layer whose file has a copy of them."""
        trained = {name for mp in self.tag.parallel for name in self._names(mp)}
        copies = [name for name in self._layers() if name not in trained] if self.tag.of("layer") else []
        ties = [name for name in found if name.startswith(_TIED)] if copies else []
        for name in ties:
            like = [copy for copy in copies if _is_copy(found[copy], found[name], name)]
            others = [tie for tie in ties if tie != name and like and _is_copy(found[like[0]], found.get(tie), tie)]
            if len(like) == 1 and not others:
                found[like[0]] = named(found.pop(name), like[0])
        return found

    def _weights(self, mp: int) -> Tensors:
        model = self.tag.model(mp)
        found = {name: ref for name, ref in tensors_in(model.get("module")).items() if ref.numel or self.tag.stage != 3}
        found |= self._frozen(mp)
        for group in range(len(self.tag.shapes(mp))):
            for name, ref in self._group(mp, group, None).items():
                if ref.chunks or name not in found:
                    found[name] = ref
        for alias, name in (as_mapping(model.get("shared_params")) or {}).items():
            if isinstance(alias, str) and name in found:
                found[alias] = named(found[name], alias)
        return found

    def _layers(self) -> Tensors:
        """Return the weights in files of their own: layers of a pipeline, and experts."""
        found: Tensors = {}
        slices = len({file.mp for file, _ in self.tag.of("layer")})
        for file, part in (*self.tag.of("layer"), *self.tag.of("expert")):
            prefix = f"mp_rank_{file.mp:02d}." if file.kind == "layer" and slices > 1 else ""
            prefix += f"{file.layer}." if file.kind == "layer" else ""
            for name, ref in tensors_in(self.tag.read(part)).items():
                found[prefix + name] = named(ref, prefix + name)
        return found

    def _frozen(self, mp: int) -> Tensors:
        """Return the frozen parameters of stage 3, of which each rank has a slice."""
        if self.tag.stage != 3:
            return {}
        ranks = self._ranks(mp)
        states = [self.tag.models.get((rank, mp)) for rank in ranks]
        slices = [tensors_in(state.get("frozen_param_fragments")) if state else {} for state in states]
        found = {}
        for group in self.tag.shapes(mp, "frozen_param_shapes"):
            for name, shape in group.items():
                parts = {r: Vector([(each[name].numel, each[name])]) for r, each in enumerate(slices) if name in each}
                made = _sliced(Parameter(name, shape, 0), parts, len(ranks), 0)
                if made is not None:
                    found[name] = made
        return found

    def _ranks(self, mp: int) -> range:
        known = [dp for dp, own in (*self.tag.shards, *self.tag.models) if own == mp and dp is not None]
        return range(self.tag.data_parallel or min(max(known, default=-1) + 1, MOST))

    def _group(self, mp: int, group: int, key: str | None) -> Tensors:
        """Return the tensors of a group of parameters: float32 weights, or the moments called ``key``."""
        parameters = self.tag.layout(mp, group)
        shards = [self.tag.shards.get((rank, mp)) for rank in self._ranks(mp)]
        if self.tag.stage == 3:
            return self._stage_3(mp, group, shards, key)
        found: Tensors = {}
        sets = self.tag.experts(mp, group)
        names = [parameter.name for parameter in parameters]
        for which in range(sets):
            vector = over_ranks([_part(shard, group, key) for shard in shards[which::sets]])
            for each in parameters:
                name = of_all_experts(names, each.name, which) if sets > 1 else each.name
                pieces = vector.pieces(each.start, each.start + each.numel)
                made = tensor(name, each.shape, pieces, "float32" if key is None else None)
                if made is not None:
                    found[name] = made
        return found

    def _stage_3(self, mp: int, group: int, shards: list[Shard | None], key: str | None) -> Tensors:
        """Return the tensors of a group in stage 3, which cuts every parameter over all ranks, padded at the end."""
        world = len(shards)
        vectors = {rank: _whole(shard, key) for rank, shard in enumerate(shards) if shard is not None}
        start = sum(-(-each.numel // world) for before in range(group) for each in self.tag.layout(mp, before))
        found: Tensors = {}
        for each in self.tag.layout(mp, group):
            made = _sliced(each, vectors, world, start)
            start += -(-each.numel // world)
            if made is not None:
                found[each.name] = made
        return found

    def _kinds(self, mp: int) -> list[str]:
        """Return the names of the moments that are cut like the weights (``exp_avg``)."""
        kinds: dict[str, None] = {}
        for (_, own), shard in self.tag.shards.items():
            for ref, state in zip(shard.flat, shard.moments, strict=False) if own == mp else ():
                long = (key for key, held in state.items() if isinstance(held, TensorRef) and held.numel >= ref.numel)
                kinds.update((key, None) for key in long if isinstance(key, str) and key != "step")
        return list(kinds)

    @cached_property
    def optimizer_tensors(self) -> Mapping[str, TensorRef]:
        each: dict[int, Tensors] = {}
        for mp in self.tag.parallel:
            found = each.setdefault(mp, {})
            for key in self._kinds(mp):
                for group in range(len(self.tag.shapes(mp))):
                    for name, ref in self._group(mp, group, key).items():
                        found[f"state.{name}.{key}"] = named(ref, f"state.{name}.{key}")
        joined = _joined(each, "state.", tied=bool(self.tag.of("layer")))
        return joined or self._unpartitioned

    @cached_property
    def _unpartitioned(self) -> Tensors:
        """The moments where nothing is partitioned: by number, and by rank where several have their own."""
        kind = "expert-optimizer" if self.tag.of("expert-optimizer") else "model"
        each: dict[str, Tensors] = {}
        for file, part in self.tag.of(kind):
            content = self.view.content(part)
            for at in ("optimizer.optimizer_state_dict.state.", "optimizer.state."):
                refs = content.tensors.items() if content is not None else ()
                held = {name.removeprefix(at): ref for name, ref in refs if name.startswith(at)}
                rank = f"mp_rank_{file.mp:02d}." if file.dp is None else f"expp_rank_{file.dp}."
                each.setdefault(rank, {}).update(held)
        several = sum(map(bool, each.values())) > 1
        found: Tensors = {}
        for rank, held in each.items():
            for name, ref in held.items():
                key = f"state.{rank if several else ''}{name}"
                found[key] = named(ref, key)
        return found

    @cached_property
    def optimizer(self) -> Mapping[Any, Value] | None:
        return state_of(self.tag, sliced=self.sliced)

    @property
    def scheduler(self) -> Mapping[Any, Value] | None:
        return as_mapping(self.tag.first.get("lr_scheduler"))


def _is_copy(copy: TensorRef, ref: TensorRef | None, tied: str) -> bool:
    """Whether a layer's tensor may be the copy of the parameter ``tied_modules.<key>.<name>``."""
    rest = tied.removeprefix(_TIED).partition(".")[2]
    return ref is not None and copy.shape == ref.shape and copy.fqn.partition(".")[2] == rest


def _part(shard: Shard | None, group: int, key: str | None) -> TensorRef | None:
    if shard is None or group >= len(shard.flat):
        return None
    held = shard.flat[group] if key is None else shard.moments[group].get(key)
    return held if isinstance(held, TensorRef) else None


def _whole(shard: Shard, key: str | None) -> Vector:
    """Return all that a rank of stage 3 holds, one sub-group after the other."""
    return Vector((ref.numel, _part(shard, place, key)) for place, ref in enumerate(shard.flat))


def _sliced(each: Parameter, vectors: Mapping[int, Vector], world: int, start: int) -> TensorRef | None:
    """Return a parameter of which rank ``r`` has slice ``r``, at ``start`` of what it holds."""
    size = -(-each.numel // world) if world else 0
    pieces: list[Piece] = []
    for rank, vector in vectors.items():
        low, high = rank * size, min((rank + 1) * size, each.numel)
        if low < high:
            pieces += vector.pieces(start, start + high - low, low)
    return tensor(each.name, each.shape, pieces)


def _joined(ranks: Mapping[int, Tensors], root: str = "", *, tied: bool) -> Tensors:
    """Return the tensors of all model-parallel ranks; those of one name get that of their rank before it.

    In a pipeline those that are ``tied`` are copies of one.
    """
    seen: dict[str, int] = {}
    for mp, tensors in ranks.items():
        for name in tensors if mp >= 0 else ():
            seen[name] = seen.get(name, 0) + (0 if tied and name.startswith(f"{root}{_TIED}") else 1)
    found: Tensors = dict(ranks.get(-1, {}))
    for mp, tensors in ranks.items():
        for name, ref in tensors.items() if mp >= 0 else ():
            own = f"{root}mp_rank_{mp:02d}.{name.removeprefix(root)}" if seen[name] > 1 else name
            if ref.chunks or own not in found:
                found[own] = named(ref, own)
    return found
