"""What a change of the learning rate means, scheduler by scheduler: every place that counts.

Which places do was measured by resuming with one of them changed at a time.  Functions of the step (LambdaLR) start
from ``base_lrs``, recursive schedulers from the optimizer's ``lr``, OneCycleLR from numbers in the optimizer's groups.
Places that do not decide are changed with the others, so that the files agree with each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_tools.containers.pickle_positions import Keys
from ckpt_tools.core.errors import EditRefusedError, UsageError
from ckpt_tools.edits.outcome import VERIFY
from ckpt_tools.model import schedules
from ckpt_tools.model.values import Value, real

OPTIMIZER, SCHEDULER = "optimizer", "scheduler"
NONE = "none"
UNKNOWN = "unknown"
OF_DEEPSPEED = "of DeepSpeed"
"""DeepSpeed's own schedulers, which keep one counter and no rate."""

_BARE = frozenset(
    ("base_lrs", "last_epoch", "verbose", "_step_count", "_is_initial", "_get_lr_called_within_step", "_last_lr")
)
_GROUP_RATES = ("lr", "initial_lr", "scheduled_lr")
_LISTS = ("base_lrs", "_last_lr")
_FLOORS = ("eta_min", "default_min_lr")
_OF_KIND: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # kind -> further lists of the scheduler's state, one number per group: bounds, and those that are floors
    "ReduceLROnPlateau": ((), ("min_lrs",)),
    "GreedyLR": (("_init_lrs", "max_lrs"), ("min_lrs",)),
    "CyclicLR": (("max_lrs",), ()),
}


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for: the rate of the next step, the base rate (``peak``) or a factor (``scale``).

    ``groups`` are the parameter groups that are meant, empty for all.
    """

    rate: float | None = None
    peak: float | None = None
    scale: float | None = None
    groups: tuple[int, ...] = ()
    keep_floor: bool = False
    force: bool = False


@dataclass(slots=True)
class Rescaled:
    """Every place that changes, ``(file, keys, new number)``, and by what factor the schedule is scaled."""

    kind: str
    factor: float = 1.0
    places: list[tuple[str, Keys, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def kind_of(state: Mapping[Any, Value] | None) -> str | None:
    """Return the class of a scheduler's state dict, ``"none"`` where there is no scheduler, None where unknown."""
    if state is None:
        return NONE
    row = schedules.scheduler(state)
    if row is not None:
        return row.kind
    bare = {"base_lrs", "_last_lr", "last_epoch"} <= set(state) <= _BARE
    return "LambdaLR" if bare else None


def rescale(
    groups: Sequence[Mapping[Any, Value]],
    state: Mapping[Any, Value] | None,
    request: Request,
    *,
    by_function: bool = False,
) -> Rescaled:
    """Return what changes in an optimizer's groups and a scheduler's state, both given as plain numbers.

    ``by_function`` says that the schedule is known to be a function of the step: then the scheduler's rates count
    where the optimizer has others, which would last one step.

    Raises:
        EditRefusedError: the rate is not decided by a number that is stored, or the scheduler is not known.
        UsageError: there is no such group, or the number makes no sense.
    """
    _check(groups, request)
    kind = kind_of(state)
    if kind is None and not request.force:
        keys = ", ".join(sorted(str(key) for key in state or {})[:12]) or "no keys"
        raise EditRefusedError(
            f"the scheduler is of no known kind: its state has {keys}, and what decides its rate is not known",
            hint="`--force` edits the optimizer alone, which may last one step",
        )
    work = _Work(groups, state if kind is not None else None, kind or UNKNOWN, request)
    work.leads = by_function and kind == "LambdaLR"
    work.run()
    if kind is None:
        work.made.notes.append("the scheduler is of no known kind and was left alone: the new rate may last one step")
    return work.made


def _check(groups: Sequence[Mapping[Any, Value]], request: Request) -> None:
    wanted = [number for number in (request.rate, request.peak, request.scale) if number is not None]
    if len(wanted) != 1:
        raise UsageError("give one of VALUE, --peak and --scale")
    if not math.isfinite(wanted[0]) or wanted[0] <= 0:
        raise UsageError(f"{wanted[0]:g} is no rate or factor that a schedule can have; it must be above 0")
    for number in request.groups:
        if not 0 <= number < len(groups):
            raise UsageError(f"there is no group {number}; the optimizer has {len(groups)}, counted from 0")
    for number in request.groups or range(len(groups)):
        group = groups[number]
        if group.get("relative_step") is True:
            raise EditRefusedError(
                "Adafactor with relative_step computes its rate from the step; no stored number decides it",
                hint="resume with relative_step=False and a learning rate",
            )
        if real(group.get("lr")) is None:
            raise EditRefusedError(f"param_groups[{number}].lr is no number; nothing was changed")


class _Work:
    def __init__(
        self, groups: Sequence[Mapping[Any, Value]], state: Mapping[Any, Value] | None, kind: str, request: Request
    ) -> None:
        self.groups, self.state, self.request = groups, state, request
        self.selected = tuple(dict.fromkeys(request.groups)) or tuple(range(len(groups)))
        self.made = Rescaled(kind)
        self.old = self.new = 0.0
        self.leads = False

    def run(self) -> None:
        request, first = self.request, self.selected[0]
        if request.scale is not None:
            self.old, self.new = math.nan, math.nan
            self.made.factor = request.scale
        else:
            base = self._peak(first) if request.peak is not None else self._present(first)
            target = request.peak if request.peak is not None else request.rate
            assert target is not None
            if base == 0:
                raise EditRefusedError(
                    "the rate of the next step is 0, which no factor changes" if request.peak is None
                    else "the base rate is 0, which no factor changes",
                    hint="`--peak VALUE` sets the base rate of the schedule" if request.peak is None else None,
                )  # fmt: skip
            self.old, self.new = base, target
            self.made.factor = target / base
        for number in self.selected:
            self._group(number)
        if self.state is not None:
            self._scheduler(self.state, (), self.made.kind)

    def _scaled(self, value: float) -> float:
        return self.new if value == self.old else value * self.made.factor

    def _put(self, file: str, keys: Keys, value: Value) -> None:
        number = real(value)
        if number:
            self.made.places.append((file, keys, self._scaled(number)))

    # What the rates are now ---------------------------------------------------------------------------------

    def _present(self, number: int) -> float:
        """Return the rate of the next step."""
        last = self._listed("_last_lr", number)
        if last is not None and (self.leads or self.made.kind == "GreedyLR"):  # both outlast the optimizer's
            return last
        return real(self.groups[number].get("lr")) or 0.0

    def _peak(self, number: int) -> float:
        kind, group = self.made.kind, self.groups[number]
        if kind == "ReduceLROnPlateau":
            raise EditRefusedError(
                "ReduceLROnPlateau has no base rate, only a present one", hint="give VALUE without --peak"
            )
        found: float | None = None
        if kind == "OneCycleLR":
            found = real(group.get("max_lr"))
        elif kind in ("CyclicLR", "GreedyLR"):
            found = self._listed("max_lrs" if kind == "CyclicLR" else "_init_lrs", number)
        elif self.state is not None:
            found = self._listed("base_lrs", number)
        if found is None:
            found = real(group.get("initial_lr"))
        return found if found is not None else real(group.get("lr")) or 0.0

    def _listed(self, name: str, number: int) -> float | None:
        values = (self.state or {}).get(name)
        return real(values[number]) if isinstance(values, list) and number < len(values) else None

    # What changes -------------------------------------------------------------------------------------------

    def _group(self, number: int) -> None:
        group = self.groups[number]
        names = list(_GROUP_RATES)
        if self.made.kind == "OneCycleLR" or "OneCycleLR" in _inner_kinds(self.state):
            names += ["max_lr"] if self.request.keep_floor else ["max_lr", "min_lr"]
        for name in names:
            if name not in group:
                continue
            value, last = group[name], self._listed("_last_lr", number)
            if name == "lr" and self.leads and last and not math.isclose(last, real(value) or 0.0, rel_tol=1e-6):
                self.made.notes.append(
                    f"the optimizer's own rate {value:g} of group {number} would have lasted one step"
                )
                value = last
            self._put(OPTIMIZER, ("param_groups", number, name), value)
        if "lr_max" in group and "weight_sum" in group:
            self.made.notes.append(
                "schedule-free: lr_max and weight_sum stay, so that averaging goes on from what was averaged"
            )

    def _scheduler(self, state: Mapping[Any, Value], keys: Keys, kind: str) -> None:
        whole = len(self.selected) == len(self.groups)
        bounds, floors = _OF_KIND.get(kind, ((), ()))
        lists = (*_LISTS, *bounds, *(() if self.request.keep_floor else floors))
        for name in lists:
            values = state.get(name)
            if not isinstance(values, list):
                continue
            if len(values) != len(self.groups):
                raise EditRefusedError(
                    f"the scheduler's {name} has {len(values)} rates for {len(self.groups)} parameter groups;"
                    " they do not belong together",
                    hint=VERIFY,
                )
            for number in self.selected:
                self._put(SCHEDULER, (*keys, name, number), values[number])
        for name in _FLOORS:
            if real(state.get(name)):
                if whole and not self.request.keep_floor:
                    self._put(SCHEDULER, (*keys, name), state[name])
                elif not whole:
                    self.made.notes.append(f"{name} is one number for all groups, and stays")
        for number, inner in enumerate(_children(state)):
            inner_kind = kind_of(inner)
            if inner_kind is None and not self.request.force:
                raise EditRefusedError(f"scheduler {number} of the {kind} is of no known kind")
            if inner_kind is not None:
                self._scheduler(inner, (*keys, "_schedulers", number), inner_kind)


def _children(state: Mapping[Any, Value]) -> list[Mapping[Any, Value]]:
    inner = state.get("_schedulers")
    return [each for each in inner if isinstance(each, Mapping)] if isinstance(inner, list) else []


def _inner_kinds(state: Mapping[Any, Value] | None) -> Iterator[str]:
    for inner in _children(state or {}):
        yield kind_of(inner) or UNKNOWN
        yield from _inner_kinds(inner)
