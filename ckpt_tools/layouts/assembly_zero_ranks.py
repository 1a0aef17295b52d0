"""One tag of DeepSpeed's as whole tensors: partitions of ZeRO, layers of pipelines, and experts.

Weights are the float32 masters that a resume goes on with, where all pieces of one are there, and else what the model
states hold.  A name that several model-parallel ranks have is a slice of a tensor, and how it was sliced is written
nowhere: it is then given for each rank, ``mp_rank_00.<name>``.  The layers of a pipeline are named by their number, as
in DeepSpeed's own model (``2.weight``).  As ``deepspeed/utils/zero_to_fp32.py`` does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.layouts.assembly_zero_cut import Piece, Vector, named, over_ranks, tensor
from ckpt_tools.layouts.assembly_zero_tag import MOST, Parameter, Shard, State, Tag, of_all_experts
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping

FRAMEWORK = "DeepSpeed"
Tensors = dict[str, TensorRef]


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
            ranks = f"{self.tag.data_parallel or 0:,} data-parallel ranks"
            slices = f", {len(self.tag.parallel):,} model-parallel ones" if len(self.tag.parallel) > 1 else ""
            yield "ZeRO", f"stage {self.tag.stage}, partitioned over {ranks}{slices}"
        layers = len(self.tag.of("layer"))
        if layers:
            yield "pipeline", f"{layers:,} layers in files of their own"
        experts = {(file.layer, file.expert) for file, _ in self.tag.of("expert")}
        if experts:
            yield "experts", f"{len(experts):,} in files of their own"

    @cached_property
    def weights(self) -> Mapping[str, TensorRef]:
        return _joined({mp: self._weights(mp) for mp in self.tag.parallel} | {-1: self._layers()})

    def _weights(self, mp: int) -> Tensors:
        model = self.tag.model(mp)
        found = {name: ref for name, ref in _tensors(model.get("module")).items() if ref.numel or self.tag.stage != 3}
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
            for name, ref in _tensors(self.tag.read(part)).items():
                found[prefix + name] = named(ref, prefix + name)
        return found

    def _frozen(self, mp: int) -> Tensors:
        """Return the frozen parameters of stage 3, of which each rank has a slice."""
        if self.tag.stage != 3:
            return {}
        ranks = self._ranks(mp)
        states = [self.tag.models.get((rank, mp)) for rank in ranks]
        slices = [_tensors(state.get("frozen_param_fragments")) if state else {} for state in states]
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
        joined = _joined(each, "state.")
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
        groups: list[Value] = []
        state: dict[Value, Value] = {}
        for mp in self.tag.parallel:
            shard = next((self.tag.shards[rank] for rank in sorted(self.tag.shards, key=_first) if rank[1] == mp), None)
            if shard is not None:
                groups += self._named(mp, shard, state)
        if groups:
            return {"state": state, "param_groups": groups}
        return self._plain()

    def _named(self, mp: int, shard: Shard, state: dict[Value, Value]) -> Iterator[Value]:
        """Yield the groups of a shard with the names of their parameters, and note their states without bytes."""
        steps = [moments["step"] for moments in shard.moments if "step" in moments]
        for place, shapes in enumerate(self.tag.shapes(mp)[: len(shard.groups)]):
            sets, own = self.tag.experts(mp, place), list(shapes)
            states = shard.moments if shard.stage == 3 else shard.moments[place : place + 1]
            kinds = {key: ref.dtype for held in states for key, ref in _tensors(held).items() if key != "step"}
            names: list[str] = []
            for name in own:
                shared = f"mp_rank_{mp:02d}.{name}" if name in self._repeated else name
                entry = {key: TensorRef(shared, dtype, shapes[name], ()) for key, dtype in kinds.items()}
                members = [of_all_experts(own, name, which) for which in range(sets)] if sets > 1 else [shared]
                step = {"step": steps[min(place, len(steps) - 1)]} if steps else {}
                state.update((member, {**step, **entry}) for member in members if step or entry)
                names += members
            yield {**shard.groups[place], "params": names}

    @cached_property
    def _repeated(self) -> frozenset[str]:
        """The parameters that several model-parallel ranks have a slice of."""
        seen = Counter(name for mp in self.tag.parallel for group in self.tag.shapes(mp) for name in group)
        return frozenset(name for name, count in seen.items() if count > 1)

    def _plain(self) -> Mapping[Any, Value] | None:
        """Return the optimizer that is not partitioned; those of several pipeline stages as one, named by stage."""
        kind = "expert-optimizer" if self.tag.of("expert-optimizer") else "model"
        found: list[tuple[str, State]] = []
        for file, part in self.tag.of(kind):
            said = as_mapping((self.tag.read(part) or {}).get("optimizer")) or {}
            states = (as_mapping(said.get("optimizer_state_dict")), said)
            held = next((state for state in states if state and "param_groups" in state), None)
            if held is not None and (kind == "model" or not found):
                found.append((f"mp_rank_{file.mp:02d}.", held))
        if len(found) < 2:
            return found[0][1] if found else None
        state: dict[Value, Value] = {}
        groups: list[Value] = []
        for prefix, held in found:
            state |= {f"{prefix}{key}": entry for key, entry in (as_mapping(held.get("state")) or {}).items()}
            own = held["param_groups"]
            for group in own if isinstance(own, list | tuple) else ():
                each = as_mapping(group) or {}
                members = each.get("params")
                numbers = members if isinstance(members, list | tuple) else ()
                groups.append({**each, "params": [f"{prefix}{number}" for number in numbers]})
        return {"state": state, "param_groups": groups}

    @property
    def scheduler(self) -> Mapping[Any, Value] | None:
        return as_mapping(self.tag.first.get("lr_scheduler"))


def _first(rank: tuple[int | None, int]) -> tuple[int, int]:
    return rank[1], rank[0] or 0


def _tensors(value: Value) -> Tensors:
    mapping = as_mapping(value) or {}
    return {name: ref for name, ref in mapping.items() if isinstance(name, str) and isinstance(ref, TensorRef)}


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


def _joined(ranks: Mapping[int, Tensors], root: str = "") -> Tensors:
    """Return the tensors of all model-parallel ranks; those of one name get that of their rank before it."""
    seen: dict[str, int] = {}
    for mp, tensors in ranks.items():
        for name in tensors if mp >= 0 else ():
            seen[name] = seen.get(name, 0) + 1
    found: Tensors = dict(ranks.get(-1, {}))
    for mp, tensors in ranks.items():
        for name, ref in tensors.items() if mp >= 0 else ():
            own = f"{root}mp_rank_{mp:02d}.{name.removeprefix(root)}" if seen[name] > 1 else name
            if ref.chunks or own not in found:
                found[own] = named(ref, own)
    return found
