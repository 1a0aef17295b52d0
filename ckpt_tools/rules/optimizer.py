"""CK515 to CK521: the optimizer's state dict against itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ckpt_tools.containers.torch_values import numpy_scalar_value
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import BREAKS_RESUME, DEGRADES_RESUME, HARMLESS, Fix, Severity, Spot
from ckpt_tools.model.optimizers import OptimizerState, key_name, read_state_dict
from ckpt_tools.model.values import Opaque, Value, as_mapping, children
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_MAX_SCALARS = 1000
_ADDRESS = 1 << 20
_ADAM = frozenset(("step", "exp_avg", "exp_avg_sq"))
_SHOWN = 10


def _optimizer(view: View) -> OptimizerState | None:
    """Return the only optimizer of the checkpoint, None where there is none or it is of another make."""
    parts = list(view.checkpoint.of(Role.OPTIMIZER, Role.COMBINED))
    return read_state_dict(view.optimizer or {}) if len(parts) == 1 else None


def _path(checkpoint: Checkpoint) -> str:
    part = checkpoint.first(Role.OPTIMIZER, Role.COMBINED)
    return part.path if part is not None else ""


def _listed(texts: Iterable[str]) -> str:
    names = list(texts)
    more = f" ... and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


@rule("CK515", "parameter-ids-invalid", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def parameter_ids_invalid(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The parameters' numbers in the optimizer's groups are not 0 to n-1 in this order, or the state has others.

    **Why it matters.** torch counts parameters through the groups. Where the numbers skip or jump, a group lost a
    member or changed places: `parameter group that doesn't match the size of optimizer's group`. State under another
    number is found by nobody: those moments start afresh.

    **How to repair.** The file was edited or put together: take it from another checkpoint.

    **Known exceptions.** Full states of FSDP use names. Very old ones used addresses in memory, which only need to
    differ. A parameter without state is legal. State for a number more, where no parameter lacks its own, is a
    warning.
    """
    optimizer = _optimizer(context.view)
    if optimizer is None:
        return
    ids, path = optimizer.ids, _path(checkpoint)
    if not all(type(item) in (int, str) for item in ids):
        yield Hit("parameters are neither numbered nor named", path, Spot(key="param_groups"))
        return
    addresses = optimizer.numbered and min(ids, default=0) >= _ADDRESS and len(set(ids)) == len(ids)
    if optimizer.numbered and not addresses and ids != list(range(len(ids))):
        place = next(place for place, item in enumerate(ids) if item != place)
        said = f"number {place:,} in the order of the groups is {key_name(ids[place])}"
        yield Hit("the numbers of the parameters are not 0 to n-1", path, Spot(key="param_groups"), (said,))
    known = set(ids)
    strange = [key_name(key)[:60] for key in optimizer.state if type(key) not in (int, str) or key not in known]
    lacking = sum(item not in optimizer.state for item in ids)
    if strange:
        yield Hit(
            "the state has entries for parameters that no group has",
            path,
            Spot(key=f"state[{strange[0]}]"),
            (
                f"{len(strange):,} of {len(optimizer.state):,}: {_listed(strange)}",
                f"{lacking:,} parameters have no entry",
            ),
            severity=None if lacking else Severity.WARNING,
            impact=DEGRADES_RESUME if lacking else HARMLESS,
        )


@rule("CK516", "moments-missing", Severity.NOTE, Checkpoint)
def moments_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer has no state for some of its parameters, or for none of them though it is past its first step.

    **Why it matters.** Without any, all moments start afresh while the step and the schedule go on: an error. For
    some it is normal: parameters that never got a gradient have none.

    **How to repair.** Take the optimizer's file from another checkpoint of the run.

    **Known exceptions.** Optimizers without moments: only groups with `betas` count.
    """
    optimizer = _optimizer(context.view)
    if optimizer is None or not optimizer.ids or not any("betas" in group for group in optimizer.groups):
        return
    steps = [context.view.number(quantity) or 0 for quantity in ("step", "scheduler-step")]
    if not optimizer.state and max(steps) > 0:
        yield Hit(
            "the optimizer has no state at all",
            _path(checkpoint),
            Spot(key="state"),
            (f"{len(optimizer.ids):,} parameters would start with fresh moments at step {max(steps):,.0f}",),
            severity=Severity.ERROR,
            impact=DEGRADES_RESUME,
        )
    elif 0 < len(optimizer.state) < len(optimizer.ids):
        count = len(optimizer.ids) - len(optimizer.state)
        text = f"{count:,} of {len(optimizer.ids):,} parameters have no state: they never got a gradient, or lost it"
        yield Hit(text, _path(checkpoint), Spot(key="state"))


@rule("CK517", "group-hyperparameters-missing", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def group_hyperparameters_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A group of the optimizer lacks `lr`, or lacks `betas` where its moments are Adam's.

    **Why it matters.** The saved groups replace the new ones as a whole: the first step stops with a `KeyError`, or a
    `TypeError` where `lr` is null.

    **How to repair.** Take the optimizer's file from another checkpoint of the run.

    **Known exceptions.** Optimizers that name their betas otherwise (`beta1`) or have a null `lr` (Adafactor), and
    groups of another rule (Muon's `momentum`).
    """
    optimizer = _optimizer(context.view)
    if optimizer is None:
        return
    adam = any({"exp_avg", "exp_avg_sq"} <= entry.keys() for _, entry in optimizer.entries())
    for place, group in enumerate(optimizer.groups):
        keys = {key for key in group if isinstance(key, str)}
        other = "momentum" in keys or any(key.startswith("beta") for key in keys)
        no_rate = "lr" not in keys or (group["lr"] is None and "betas" in keys)
        lacking = [*(["lr"] if no_rate else []), *(["betas"] if adam and not other else [])]
        if lacking and group["params"]:
            yield Hit(
                f"group {place} of the optimizer lacks {' and '.join(lacking)}",
                _path(checkpoint),
                Spot(key=f"param_groups[{place}]"),
                (f"it has {_listed(sorted(keys))}",),
            )


@rule("CK518", "optimizer-unusable", Severity.ERROR, Part, impact=None)
def optimizer_unusable(part: Part, context: Context) -> Iterator[Hit]:
    """The optimizer's file is no state dict: `state` or `param_groups` is missing or of another type.

    **Why it matters.** `load_state_dict` stops with a `KeyError` or `TypeError`.

    **How to repair.** Take the optimizer's file from another checkpoint of the run.

    **Known exceptions.** Checkpoints of FSDP and DeepSpeed, whose own files are not looked into.
    """
    content = context.content(part) if part.role is Role.OPTIMIZER else None
    if content is None or not content.readable or context.view.elsewhere or content.container not in part.containers:
        return
    value = as_mapping(content.value)
    if value is None or read_state_dict(value) is None:
        kind = type(content.value).__name__
        found = _listed(key_name(key)[:60] for key in value) if value is not None else f"a {kind}"
        yield Hit(
            "this is no state dict of an optimizer",
            part.path,
            detail=(f"holds {found or 'nothing'}; needs `state` and `param_groups`, with `params` in every group",),
            impact=context.damaged(part),
        )


@rule("CK519", "moment-missing", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def moment_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A parameter's entry lacks `step`, `exp_avg` or `exp_avg_sq`, while most others of its group have all three.

    **Why it matters.** Adam makes all three at the first step and never looks again: the next one stops with a
    `KeyError`.

    **How to repair.** Take the optimizer's file from another checkpoint of the run.

    **Known exceptions.** Entries with tensors of another rule (factored moments, Muon's), and groups without `betas`.
    """
    optimizer = _optimizer(context.view)
    if optimizer is None or not any("betas" in group for group in optimizer.groups):
        return
    entries = [(key, set(map(key_name, as_mapping(value) or {}))) for key, value in optimizer.state.items()]
    whole = sum(names >= _ADAM for _, names in entries)
    wrong = [(key, sorted(_ADAM - names)) for key, names in entries if names and names < _ADAM]
    if wrong and 2 * whole > len(entries):
        key, names = wrong[0]
        yield Hit(
            f"{len(wrong):,} parameter{'' if len(wrong) == 1 else 's'} with an incomplete state",
            _path(checkpoint),
            Spot(key=f"state[{key_name(key)}]"),
            (f"state[{key_name(key)}] lacks {', '.join(names)}",),
        )


@rule("CK521", "rate-numpy-scalar", Severity.ERROR, Part, impact=None)
def rate_numpy_scalar(part: Part, context: Context) -> Iterator[Hit]:
    """The optimizer's or scheduler's file holds a number as a numpy scalar: mostly a learning rate.

    **Why it matters.** `torch.load(weights_only=True)`, which a resume uses, refuses numpy scalars: `Unsupported
    global: numpy._core.multiarray.scalar`. Some schedules and user code make the rate one.

    **How to repair.** Write the same number as a plain float; nothing else changes.
    """
    content = context.content(part)
    if part.role not in (Role.OPTIMIZER, Role.SCHEDULER, Role.SCALER) or content is None or not content.readable:
        return
    if not any(name.endswith(".multiarray.scalar") for name in content.globals):
        return
    found = list(_scalars(content.value))
    if found:
        yield Hit(
            f"{len(found):,} number{' is a numpy scalar' if len(found) == 1 else 's are numpy scalars'}",
            part.path,
            Spot(key=found[0][0]),
            (_listed(f"{key} = {number}" for key, number in found), "a resume stops: torch.load refuses such a file"),
            fix=Fix("write them as plain numbers", True, "replace-numpy-scalar", {"keys": [key for key, _ in found]}),
            impact=context.damaged(part),
        )


def _scalars(value: Value) -> Iterator[tuple[str, float]]:
    """Yield the numpy scalars below ``value`` with their key paths."""
    work = [("", value)]
    count = 0
    while work and count < _MAX_SCALARS:
        at, item = work.pop()
        number = numpy_scalar_value(item) if isinstance(item, Opaque) else None
        if number is not None:
            count += 1
            yield at.removeprefix("."), number
        elif not isinstance(item, Opaque) or at == "":
            work += [(at + key, child) for key, child in reversed(list(children(item)))]


RULES: tuple[Rule, ...] = (
    parameter_ids_invalid,
    moments_missing,
    group_hyperparameters_missing,
    optimizer_unusable,
    moment_missing,
    rate_numpy_scalar,
)
