"""The optimizer's state of one tag as torch would have it: groups and moments with the names of their parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ckpt_tools.layouts.assembly_zero_tag import Shard, State, Tag, of_all_experts
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping, whole


def state_of(tag: Tag, *, sliced: bool) -> State | None:
    """Return the optimizer's state of all ranks with the names of the parameters, as far as it is small.

    Where ranks have slices of the same parameters, these are named once.
    """
    groups: list[Value] = []
    state: dict[Value, Value] = {}
    seen: set[str] = set()
    for mp in tag.parallel:
        shard = next((tag.shards[rank] for rank in sorted(tag.shards, key=_first) if rank[1] == mp), None)
        if shard is not None:
            groups += _named(tag, mp, shard, state, frozenset(seen))
        seen |= {name for group in tag.shapes(mp) for name in group}
    if groups:
        return {"state": state, "param_groups": groups}
    return _plain(tag, sliced=sliced)


def _named(tag: Tag, mp: int, shard: Shard, state: dict[Value, Value], told: frozenset[str]) -> Iterator[Value]:
    """Yield the groups of a shard with the names of their parameters, and note their states without bytes.

    What is ``told`` of a rank before it is the same parameter: another slice, or the copy of another stage.
    """
    steps = [moments["step"] for moments in shard.moments if "step" in moments]
    every = tag.shapes(mp)
    for group, places in _places(shard, len(every)):
        names: list[str] = []
        for place in places:
            shapes = every[place]
            sets, own = tag.experts(mp, place), list(shapes)
            states = shard.moments if shard.stage == 3 else shard.moments[place : place + 1]
            kinds = {key: ref.dtype for held in states for key, ref in tensors_in(held).items() if key != "step"}
            step = {"step": steps[min(place, len(steps) - 1)]} if steps else {}
            for name in own:
                entry = {key: TensorRef(name, dtype, shapes[name], ()) for key, dtype in kinds.items()}
                members = [of_all_experts(own, name, which) for which in range(sets)] if sets > 1 else [name]
                fresh = [member for member in members if member not in told]
                state.update((member, {**step, **entry}) for member in fresh if step or entry)
                names += fresh
        yield {**group, "params": names}


def _plain(tag: Tag, *, sliced: bool) -> State | None:
    """Return the optimizer that is not partitioned; those of several pipeline stages as one, named by stage."""
    kind = "expert-optimizer" if tag.of("expert-optimizer") else "model"
    found: list[tuple[str, State]] = []
    for file, part in tag.of(kind):
        said = as_mapping((tag.read(part) or {}).get("optimizer")) or {}
        states = (as_mapping(said.get("optimizer_state_dict")), said)
        held = next((state for state in states if state and "param_groups" in state), None)
        if held is not None and (kind == "model" or not found):
            found.append((f"mp_rank_{file.mp:02d}.", held))
    if len(found) < 2:
        return found[0][1] if found else None
    state: dict[Value, Value] = {}
    groups: list[Value] = []
    for prefix, held in found[:1] if sliced else found:
        state |= {f"{prefix}{key}": entry for key, entry in (as_mapping(held.get("state")) or {}).items()}
        own = held["param_groups"]
        for group in own if isinstance(own, list | tuple) else ():
            each = as_mapping(group) or {}
            members = each.get("params")
            numbers = members if isinstance(members, list | tuple) else ()
            groups.append({**each, "params": [f"{prefix}{number}" for number in numbers]})
    groups += [{**(as_mapping(group) or {}), "params": []} for group in _groups(found[1:] if sliced else ())]
    return {"state": state, "param_groups": groups}


def _places(shard: Shard, count: int) -> Iterator[tuple[State, list[int]]]:
    """Yield the groups of a shard with the places of their flat vectors: in stage 3 a group may have several.

    The elastic form of the moments has no groups, and a vector for each that there was.
    """
    if shard.elastic:
        yield from (({}, [place]) for place in range(count))
        return
    held = [group.get("params") for group in shard.groups]
    lists = [list(map(whole, each)) if isinstance(each, list | tuple) else [] for each in held]
    if sorted(place for places in lists for place in places if place is not None) != list(range(count)):
        lists = [[place] for place in range(min(count, len(shard.groups)))]
    for group, places in zip(shard.groups, lists, strict=False):
        yield group, [place for place in places if place is not None]


def _groups(states: Iterable[tuple[str, State]]) -> Iterator[Value]:
    for _, held in states:
        own = held["param_groups"]
        yield from own if isinstance(own, list | tuple) else ()


def _first(rank: tuple[int | None, int]) -> tuple[int, int]:
    return rank[1], rank[0] or 0


def tensors_in(value: Value) -> dict[str, TensorRef]:
    """Return the tensors that a mapping holds directly."""
    mapping = as_mapping(value) or {}
    return {name: ref for name, ref in mapping.items() if isinstance(name, str) and isinstance(ref, TensorRef)}
