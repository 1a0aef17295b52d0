"""State dicts in the files of DeepSpeed: every rank has its own of the same numbers, and all are changed, or none.

What of them decides was measured by resumes.  Each rank takes its rates from its own optimizer file, and nothing
compares them.  A scheduler of torch goes on from its state in the model states; where there is none, the Trainer's does
from ``scheduler.pt``.  DeepSpeed's own schedulers keep one counter and compute every rate anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from ckpt_tools.containers.pickle_positions import Keys
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.edits import counters
from ckpt_tools.edits.outcome import VERIFY
from ckpt_tools.edits.proof import same, shown
from ckpt_tools.edits.schedulers import OF_DEEPSPEED, kind_of
from ckpt_tools.edits.states import Place, State, States, numbers
from ckpt_tools.edits.values import number_of, value_at
from ckpt_tools.layouts import plain
from ckpt_tools.layouts.assembly_zero import tag_of
from ckpt_tools.layouts.assembly_zero_tag import Tag
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part
from ckpt_tools.model.values import Value, as_mapping, real, whole

_LIGHTNING = "pytorch-lightning_version"
_SHARED = "zero/optimizer_state.pt"
_ROOTS: Mapping[str, tuple[Keys, ...]] = {
    "optimizer": (
        ("optimizer_state_dict", "base_optimizer_state"),  # stages 1 and 2
        ("optimizer_state_dict", "optimizer_state_dict"),  # stage 3
    ),
    "model": (("optimizer",), ("optimizer", "optimizer_state_dict")),  # stage 0, in float32 and in half precision
    "expert-optimizer": (("optimizer",), ("optimizer", "optimizer_state_dict")),
    "shared": ((), ("optimizer_state_dict",), ("base_optimizer_state",)),  # universal
}
_RATES = ("lr", "initial_lr", "scheduled_lr", "max_lr", "min_lr")
_CLOSE = 1e-9
_OWN = frozenset(
    (
        "module", "buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "shared_params",
        "frozen_param_fragments", "lr_scheduler", "skipped_steps", "global_steps", "global_samples", "dp_world_size",
        "mp_world_size", "checkpoint_parallel_dimensions", "ds_config", "ds_version", "num_experts", "ds_autoep_layers",
        "sparse_tensor_module_names",
    )
)  # fmt: skip
"""What DeepSpeed itself keeps in model states and counts no steps with, or is changed; the loop may add anything."""

_EDITED = ("model", "optimizer", "expert-optimizer")

Ranks = dict[int, list["Held"]]
"""The optimizers by model-parallel rank."""


@dataclass(frozen=True, slots=True)
class RankPlace(Place):
    """A file in which a state dict is at each of ``roots``, as far as it is there: other ranks may have other keys.

    ``listed`` says that the states of parameters are a list of their own, as older versions wrote them.
    """

    value: Value = None
    roots: tuple[Keys, ...] = ((),)
    listed: bool = False

    def every(self, keys: Keys) -> Iterable[Keys]:
        inner = keys[1:] if self.listed and keys[:1] == ("state",) else keys
        return [(*root, *inner) for root in self.roots if _at(self.value, (*root, *inner)) is not None]


@dataclass(frozen=True, slots=True)
class StepPlace(Place):
    """A file that is one counter and nothing else; ``owner`` is the parameter's name."""

    owner: str = ""

    def every(self, keys: Keys) -> Iterable[Keys]:
        return ((),) if keys == ("state", self.owner, "step") else ()


@dataclass(slots=True)
class Held:
    """The optimizer's state as one file has it, in torch's own shape."""

    place: Place
    value: Mapping[Any, Value] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.place.part.path


def find(view: View, found: States) -> States:
    """Return the state dicts of a checkpoint with a tag of DeepSpeed's; ``found`` are those in files of their own.

    Raises:
        EditRefusedError: files are missing, damaged, or do not say the same.
        SourceError: a file could not be read.
    """
    tag = _whole_tag(view)
    apart = False
    if tag.universal:
        optimizers = [_universal(tag)]
    else:
        ranks = [held for _, held in sorted(_optimizers(tag).items())]
        for held in ranks:
            _require_alike(view, held)
        apart = not _alike(view, [held[0] for held in ranks])
        merged = ranks if apart else [[each for held in ranks for each in held]]
        optimizers = [_joined(held) for held in merged if held]
    engine = _engine(tag)
    return States(
        tuple(optimizers) or found.optimizers,
        tuple(_schedulers(tag, apart=apart)) or found.schedulers,
        found.trainer,
        staying=tuple(_staying(engine.value)),
        engine=engine,
    )


def refuse_rates(view: View) -> None:
    """Refuse a tag from which a resume takes no rate.

    Raises:
        EditRefusedError: DeepSpeed computes it, and the hint says from which settings.
    """
    tag = _whole_tag(view)
    own = as_mapping(tag.first.get("lr_scheduler"))
    if own is not None and kind_of(own) == OF_DEEPSPEED:
        raise EditRefusedError(
            "the scheduler is one of DeepSpeed's own, which keeps no rate: whatever the files say, it computes every"
            " rate from the ds_config given at launch",
            hint=_settings(as_mapping(tag.first.get("ds_config")) or {}, view),
        )
    if any(shard.elastic for shard in tag.shards.values()):
        raise EditRefusedError(
            "the optimizer's files hold no rates, as elastic checkpoints have none",
            hint="resume with another optimizer.params.lr in the ds_config given at launch",
        )


def told(view: View) -> Iterator[str]:
    """Yield what a launch still decides about the rates."""
    tag = _whole_tag(view)
    yield "DeepSpeed ignores the lr of the ds_config that it is launched with: the saved rates decide"
    if tag.universal and tag.stage == 3:
        yield "of a universal checkpoint of stage 3 all groups get the rates of group 0, until a scheduler sets them"


def _settings(configured: Mapping[Any, Value], view: View) -> str:
    """Return which setting of a launch to change, with the values that the stored configuration has."""
    scheduler = as_mapping(configured.get("scheduler")) or {}
    params = as_mapping(scheduler.get("params")) or {}
    said = {f"scheduler.params.{key}": value for key, value in params.items() if _is_rate(key) and value is not None}
    if scheduler.get("type") == "WarmupCosineLR":
        optimizer = as_mapping((as_mapping(configured.get("optimizer")) or {}).get("params")) or {}
        said["optimizer.params.lr"] = optimizer.get("lr")
    if not said:
        return "change its rates where the training makes the scheduler"
    listed = ", ".join(f"{key} ({_shown(value)})" for key, value in said.items())
    more = ", or --learning_rate where it says auto" if view.training_args else ""
    return f"resume with other values in the ds_config: {scheduler.get('type')} was saved with {listed}{more}"


def _is_rate(key: Value) -> bool:
    return isinstance(key, str) and ("_lr" in key or key.endswith(("_ratio", "step_rate")))


def _shown(value: Value) -> str:
    number = real(value)
    return f"{number:g}" if number is not None else str(value)


# Files -----------------------------------------------------------------------------------------------------


def _whole_tag(view: View) -> Tag:
    """Return the tag whose files are all there, and none too many."""
    tag = tag_of(view)
    if tag is None or not tag.files:
        raise EditRefusedError("the files of DeepSpeed are not there", hint=VERIFY)
    for part in (part for file, part in tag.files if file.kind in _EDITED or file.prefix == "step"):
        content = view.content(part)
        if content is None:
            error = view.errors.get(part.path)
            raise error if error is not None else EditRefusedError(f"{part.path}: cannot be read")
        if not tag.intact(part):
            why = content.problems[0].message if content.problems else "it is not all there"
            raise EditRefusedError(f"{part.path}: {why}; the files of all ranks are changed, or none", hint=VERIFY)
    census = tag.census
    lacking = [f"an optimizer file of rank {dp} (mp_rank {mp:02d})" for dp, mp in census.missing_partitions]
    lacking += [f"model states of mp_rank {mp:02d}" + _of(dp) for dp, mp in census.missing_models]
    lacking += [f"an optimizer file of expert rank {rank}" for rank in census.missing_expert_ranks]
    if lacking:
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        raise EditRefusedError(
            f"{lacking[0]}{more} is missing; the files of all ranks are changed, or none", hint=VERIFY
        )
    odd = next(iter((*census.extra, *census.misnamed)), None)
    if odd is not None:
        raise EditRefusedError(f"{odd.path}: belongs to no rank of this save; nothing was changed", hint=VERIFY)
    if _LIGHTNING in tag.first:
        raise EditRefusedError("Lightning's directories of DeepSpeed are not edited by this version")
    return tag


def _of(dp: int | None) -> str:
    return f", rank {dp}" if dp is not None else ""


def _at(value: Value, keys: Keys) -> Value:
    try:
        return value_at(value, keys)
    except KeyError:
        return None


def _mapping(tag: Tag, part: Part) -> Mapping[Any, Value]:
    found = tag.read(part)
    if found is None:
        raise EditRefusedError(f"{part.path}: holds no states", hint=VERIFY)
    return found


def _held(tag: Tag, part: Part, kind: str) -> Held | None:
    """Return the optimizer that a file holds, None where it holds none."""
    value = _mapping(tag, part)
    roots = [root for root in _ROOTS[kind] if _is_optimizer(_at(value, root))]
    if not roots:
        return None
    inner = _at(value, roots[-1])
    if isinstance(inner, list | tuple):
        return Held(RankPlace(part, (), value, tuple(roots), True), {"state": dict(enumerate(inner))})
    return Held(RankPlace(part, (), value, tuple(roots)), as_mapping(inner) or {})


def _is_optimizer(value: Value) -> bool:
    if isinstance(value, list | tuple):
        return any("exp_avg" in (as_mapping(each) or {}) or "step" in (as_mapping(each) or {}) for each in value)
    return "param_groups" in (as_mapping(value) or {})


def _optimizers(tag: Tag) -> Ranks:
    """Return the optimizers of all ranks; those of experts hold what the model states have, too."""
    found: Ranks = {}
    kinds = ("optimizer",) if tag.of("optimizer") else ("model", "expert-optimizer")
    for kind in kinds:
        for file, part in tag.of(kind):
            held = _held(tag, part, kind)
            if held is not None:
                found.setdefault(file.mp, []).append(held)
            elif kind != "model":
                raise EditRefusedError(f"{part.path}: holds no optimizer; nothing was changed", hint=VERIFY)
    return found


def _joined(held: Sequence[Held]) -> State:
    """Return what all ranks have as one; stages of a pipeline that is not partitioned have other parameters each."""
    state = {key: entry for each in held for key, entry in (as_mapping(each.value.get("state")) or {}).items()}
    return State({**held[0].value, "state": state}, tuple(each.place for each in held))


def _universal(tag: Tag) -> State:
    """Return the one optimizer of a universal checkpoint; in stages 1 and 2 a counter is a file of its own."""
    part = next((part for part in tag.view.checkpoint.parts if f"/{part.path}".endswith(f"/{_SHARED}")), None)
    held = _held(tag, part, "shared") if part is not None else None
    if held is None:
        raise EditRefusedError(f"{_SHARED} is missing; nothing was changed", hint=VERIFY)
    state = dict(as_mapping(held.value.get("state")) or {})
    places: list[Place] = [held.place]
    for file, own in tag.of("piece"):
        content = tag.view.content(own) if file.prefix == "step" else None
        if content is not None:
            state[file.name] = {"step": content.value}
            places.append(StepPlace(own, (), file.name))
    return State({**held.value, "state": state}, tuple(places))


# Whether all say the same ----------------------------------------------------------------------------------


def _require_alike(view: View, held: Sequence[Held]) -> None:
    """Refuse ranks that would go on with different rates, or from different steps."""
    for key, numbers_of in (("rates", _rates), ("steps", _steps)):
        said = [(each.path, numbers_of(view, each)) for each in held]
        for path, own in said[1:]:
            where = _differing(said[0][1], own)
            if where is not None:
                first, other = said[0][1].get(where), own.get(where)
                raise EditRefusedError(
                    f"the {key} of the ranks differ: {shown(where)} is {first} in {said[0][0]} and {other} in {path};"
                    " nothing was changed",
                    hint="`ckpt undo` takes an edit of one file back; else copy the file again from its source",
                )


def _alike(view: View, held: Sequence[Held]) -> bool:
    """Return whether the model-parallel ranks have the same groups, rates and steps, so that they are one optimizer."""
    rates, steps = [[numbers_of(view, each) for each in held] for numbers_of in (_rates, _steps)]
    once = {step for own in steps for step in own.values()}
    return len(once) < 2 and all(_differing(rates[0], each) is None for each in rates[1:])


def _rates(view: View, held: Held) -> dict[Keys, float | None]:
    groups = held.value.get("param_groups")
    plain_groups = numbers(view, groups if isinstance(groups, list) else [])
    return {
        ("param_groups", place, name): real(group[name])
        for place, group in enumerate(plain_groups if isinstance(plain_groups, list) else ())
        for name in _RATES
        if isinstance(group, dict) and name in group
    }


def _steps(view: View, held: Held) -> dict[Keys, float | None]:
    keys = counters.counter_keys(held.value)
    return {path: real(number_of(view, value_at(held.value, path))) for path in keys}


def _differing(one: Mapping[Keys, float | None], other: Mapping[Keys, float | None]) -> Keys | None:
    for keys in dict.fromkeys((*one, *other)):
        a, b = one.get(keys), other.get(keys)
        if a != b and (a is None or b is None or not isclose(a, b, rel_tol=_CLOSE)):
            return keys
    return None


# Model states ----------------------------------------------------------------------------------------------


def _schedulers(tag: Tag, *, apart: bool) -> Iterator[State]:
    """Yield the scheduler that was given to DeepSpeed, which every model states file has."""
    by_rank: dict[int, list[tuple[Part, Mapping[Any, Value]]]] = {}
    for file, part in tag.of("model"):
        own = as_mapping(_mapping(tag, part).get("lr_scheduler"))
        if own is not None:
            by_rank.setdefault(file.mp if apart else 0, []).append((part, own))
    for held in by_rank.values():
        _require_same(held, len(tag.of("model")) if not apart else None, lambda own: numbers(tag.view, own))
        yield State(held[0][1], tuple(Place(part, ("lr_scheduler",)) for part, _ in held))


def _require_same(
    held: Sequence[tuple[Part, Mapping[Any, Value]]], count: int | None, read: Callable[[Value], Value]
) -> None:
    first, value = held[0]
    odd = next((part for part, own in held[1:] if not same(read(value), read(own))), None)
    if odd is not None or (count is not None and len(held) != count):
        where = f"{first.path} and {odd.path} differ" if odd is not None else "some have none"
        raise EditRefusedError(f"the schedulers of the ranks are not the same: {where}", hint=VERIFY)


def _engine(tag: Tag) -> State:
    files = [(part, _mapping(tag, part)) for _, part in tag.of("model")]
    for part, value in files[1:]:
        for name in ("global_steps", "global_samples"):
            if value.get(name) != files[0][1].get(name):
                raise EditRefusedError(f"{part.path}: {name} is not that of {files[0][0].path}", hint=VERIFY)
    return State(files[0][1], tuple(RankPlace(part, (), value) for part, value in files))


def _staying(engine: Mapping[Any, Value]) -> Iterator[str]:
    """Yield what else the model states hold that may count: data samplers, and what the loop added."""
    step = engine.get("global_steps")
    for name, value in engine.items():
        follows = name in plain.STEP_KEYS and whole(value) == step
        if name not in _OWN and value is not None and isinstance(name, str) and not follows:
            yield name
