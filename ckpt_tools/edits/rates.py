"""The learning rates of the steps to come, as torch's schedulers and those of transformers compute them.

Each formula is that of the class's ``get_lr``; where a rate is computed from the one before, so it is here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from ckpt_tools.edits.lambdas import Factor
from ckpt_tools.edits.schedulers import NONE, OF_DEEPSPEED, UNKNOWN, kind_of
from ckpt_tools.model.values import real

Numbers = dict[str, Any]
Rates = list[float]


class UnknownRatesError(Exception):
    """Why the rates of later steps are not known."""


def upcoming(
    groups: list[Numbers], state: Numbers | None, factor: Factor | None, count: int
) -> tuple[list[tuple[float, ...]], str | None]:
    """Return the rates of the next ``count`` steps, one per group and step, and why there are no more of them.

    ``groups`` and ``state`` are plain numbers and are changed; ``factor`` is what a LambdaLR multiplies its base
    rates with.
    """
    kind = kind_of(state)
    rates: Rates = [real(group.get("lr")) or 0.0 for group in groups]
    if kind == "GreedyLR" and state is not None and isinstance(state.get("_last_lr"), list):
        rates = [real(rate) or 0.0 for rate in state["_last_lr"]]
    found = [tuple(rates)]
    try:
        for _ in range(count - 1):
            rates = _advance(kind or UNKNOWN, state, rates, groups, factor)
            found.append(tuple(rates))
    except UnknownRatesError as error:
        return found, str(error)
    except (KeyError, TypeError, ZeroDivisionError, ValueError, IndexError, OverflowError):
        return found, "the scheduler's state lacks numbers that its rates are computed from"
    return found, None


def _advance(kind: str, state: Numbers | None, rates: Rates, groups: list[Numbers], factor: Factor | None) -> Rates:
    """Return the rates after one call of the scheduler's ``step``, and count it in its state."""
    if state is None or kind == NONE:
        return rates
    if kind in ("ReduceLROnPlateau", "GreedyLR"):
        raise UnknownRatesError(f"{kind} keeps this rate until its metric decides otherwise")
    if kind == OF_DEEPSPEED:
        raise UnknownRatesError("DeepSpeed computes them from the ds_config given at launch")
    if kind == UNKNOWN:
        raise UnknownRatesError("what decides the later rates is not known")
    if kind == "SequentialLR":
        return _sequential(state, rates, groups)
    if kind == "ChainedScheduler":
        for inner in state["_schedulers"]:
            rates = _advance(kind_of(inner) or UNKNOWN, inner, rates, groups, None)
        return rates
    state["last_epoch"] += 1
    if kind == "LambdaLR":
        if factor is None:
            raise UnknownRatesError("the later rates come from a function that no file holds")
        return [base * factor(state["last_epoch"]) for base in state["base_lrs"]]
    if kind in _LISTED:
        return _LISTED[kind](state, rates, groups)
    return [rate * _RATIO[kind](state, state["last_epoch"]) for rate in rates]


def closed_form(kind: str, state: Numbers, groups: list[Numbers], factor: Factor | None, epoch: int) -> Rates | None:
    """Return the rates that a scheduler has after ``epoch`` calls since its beginning, None where it has no formula.

    ``state`` is changed to that of then.
    """
    if kind == "SequentialLR":
        return _turn(state, groups, epoch)
    if kind == "ChainedScheduler":
        return _product(state, epoch)
    state["last_epoch"] = epoch
    bases = state.get("base_lrs")
    if not isinstance(bases, list):
        return None
    if kind == "LambdaLR":
        return None if factor is None else [base * factor(epoch) for base in bases]
    if kind in ("CyclicLR", "OneCycleLR"):
        return _LISTED[kind](state, [], groups)
    if kind == "CosineAnnealingWarmRestarts":
        _restart(state, epoch)
        return _around(state, state["T_cur"] / state["T_i"])
    if kind == "CosineAnnealingLR":
        return _around(state, epoch / state["T_max"])
    if kind not in _WHOLE:
        return None
    return [base * _WHOLE[kind](state, epoch) for base in bases]


def _turn(state: Numbers, groups: list[Numbers], epoch: int) -> Rates | None:
    """Return the rates of the part whose turn it is: it begins anew at its milestone."""
    marks = state["_milestones"]
    number = bisect_right(marks, epoch)
    part = state["_schedulers"][number]
    if "_schedulers" in part:
        return None
    return closed_form(kind_of(part) or UNKNOWN, part, groups, None, epoch - (marks[number - 1] if number else 0))


def _product(state: Numbers, epoch: int) -> Rates | None:
    """Return the rates of a chain whose parts only multiply."""
    parts = state["_schedulers"]
    kinds = [kind_of(part) or UNKNOWN for part in parts]
    if not parts or not set(kinds) <= set(_WHOLE) or any(part["base_lrs"] != parts[0]["base_lrs"] for part in parts):
        return None
    factor = math.prod(_WHOLE[kind](part, epoch) for kind, part in zip(kinds, parts, strict=True))
    return [base * factor for base in parts[0]["base_lrs"]]


# Rates from the ones before --------------------------------------------------------------------------------


def _step(s: Numbers, e: int) -> float:
    return 1.0 if e == 0 or e % s["step_size"] else s["gamma"]


def _multi_step(s: Numbers, e: int) -> float:
    return float(s["gamma"] ** s["milestones"].get(e, 0))


def _exponential(s: Numbers, e: int) -> float:
    return float(s["gamma"]) if e else 1.0


def _constant(s: Numbers, e: int) -> float:
    return s["factor"] if e == 0 else 1.0 / s["factor"] if e == s["total_iters"] else 1.0


def _linear(s: Numbers, e: int) -> float:
    start, rise, total = s["start_factor"], s["end_factor"] - s["start_factor"], s["total_iters"]
    return float(start) if e == 0 else 1.0 if e > total else 1.0 + rise / (total * start + (e - 1) * rise)


def _polynomial(s: Numbers, e: int) -> float:
    total = s["total_iters"]
    return 1.0 if e == 0 or e > total else float(((1.0 - e / total) / (1.0 - (e - 1) / total)) ** s["power"])


_RATIO: dict[str, Callable[[Numbers, int], float]] = {
    "StepLR": _step,
    "MultiStepLR": _multi_step,
    "ExponentialLR": _exponential,
    "ConstantLR": _constant,
    "LinearLR": _linear,
    "PolynomialLR": _polynomial,
}


def _cosine(s: Numbers, rates: Rates, groups: list[Numbers]) -> Rates:
    e, total, floor = s["last_epoch"], s["T_max"], s["eta_min"]
    if (e - 1 - total) % (2 * total) == 0:
        return [
            rate + (base - floor) * (1 - math.cos(math.pi / total)) / 2
            for rate, base in zip(rates, s["base_lrs"], strict=True)
        ]
    ratio = (1 + math.cos(math.pi * e / total)) / (1 + math.cos(math.pi * (e - 1) / total))
    return [ratio * (rate - floor) + floor for rate in rates]


# Rates from the base rates ---------------------------------------------------------------------------------


def _around(s: Numbers, share: float) -> Rates:
    floor = s["eta_min"]
    return [floor + (base - floor) * (1 + math.cos(math.pi * share)) / 2 for base in s["base_lrs"]]


def _restarts(s: Numbers, rates: Rates, groups: list[Numbers]) -> Rates:
    s["T_cur"] += 1
    if s["T_cur"] >= s["T_i"]:
        s["T_cur"] %= s["T_i"]
        s["T_i"] *= s["T_mult"]
    return _around(s, s["T_cur"] / s["T_i"])


def _restart(s: Numbers, epoch: int) -> None:
    first, multiple = s["T_0"], s["T_mult"]
    s["T_i"], s["T_cur"] = first, epoch
    if epoch >= first and multiple == 1:
        s["T_cur"] = epoch % first
    elif epoch >= first:
        while s["T_cur"] >= s["T_i"]:
            s["T_cur"] -= s["T_i"]
            s["T_i"] *= multiple


def _cyclic(s: Numbers, rates: Rates, groups: list[Numbers]) -> Rates:
    if s.get("_scale_fn_custom") is not None or s["mode"] not in ("triangular", "triangular2", "exp_range"):
        raise UnknownRatesError("CyclicLR is scaled by a function that no file holds")
    e, size = s["last_epoch"], s["total_size"]
    cycle = math.floor(1 + e / size)
    x = 1.0 + e / size - cycle
    height = x / s["step_ratio"] if x <= s["step_ratio"] else (x - 1) / (s["step_ratio"] - 1)
    height *= {"triangular": 1.0, "triangular2": 0.5 ** (cycle - 1)}.get(s["mode"], s["gamma"] ** e)
    return [base + (top - base) * height for base, top in zip(s["base_lrs"], s["max_lrs"], strict=True)]


def _one_cycle(s: Numbers, rates: Rates, groups: list[Numbers]) -> Rates:
    e, phases = s["last_epoch"], s["_schedule_phases"]
    if e > s["total_steps"]:
        raise UnknownRatesError(f"OneCycleLR ends after {s['total_steps']:,} steps and raises an error then")
    begin = 0.0
    phase = phases[-1]
    for phase in phases:
        if e <= phase["end_step"] or phase is phases[-1]:
            break
        begin = phase["end_step"]
    share = (e - begin) / (phase["end_step"] - begin)
    found = []
    for group in groups:
        start, end = group[phase["start_lr"]], group[phase["end_lr"]]
        curved = s.get("_anneal_func_type", "cos") == "cos"
        found.append(end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1) if curved
                     else (end - start) * share + start)  # fmt: skip
    return found


_LISTED: dict[str, Callable[[Numbers, Rates, list[Numbers]], Rates]] = {
    "CosineAnnealingLR": _cosine,
    "CosineAnnealingWarmRestarts": _restarts,
    "CyclicLR": _cyclic,
    "OneCycleLR": _one_cycle,
}


def _sequential(state: Numbers, rates: Rates, groups: list[Numbers]) -> Rates:
    state["last_epoch"] += 1
    milestones, epoch = state["_milestones"], state["last_epoch"]
    number = bisect_right(milestones, epoch)
    inner = state["_schedulers"][number]
    kind = kind_of(inner) or UNKNOWN
    if number == 0 or milestones[number - 1] != epoch:
        return _advance(kind, inner, rates, groups, None)
    begun = closed_form(kind, inner, groups, None, 0)
    if begun is None:
        raise UnknownRatesError(f"SequentialLR goes over to {kind} then, which starts from numbers that no file holds")
    return begun


# As functions of the step ----------------------------------------------------------------------------------

_WHOLE: dict[str, Callable[[Numbers, int], float]] = {
    "StepLR": lambda s, e: float(s["gamma"] ** (e // s["step_size"])),
    "MultiStepLR": lambda s, e: float(
        s["gamma"] ** bisect_right(sorted(key for key, n in s["milestones"].items() for _ in range(n)), e)
    ),
    "ExponentialLR": lambda s, e: float(s["gamma"] ** e),
    "ConstantLR": lambda s, e: float(s["factor"]) if e < s["total_iters"] else 1.0,
    "LinearLR": lambda s, e: float(
        s["start_factor"] + (s["end_factor"] - s["start_factor"]) * min(s["total_iters"], e) / s["total_iters"]
    ),
    "PolynomialLR": lambda s, e: float((1.0 - min(s["total_iters"], e) / s["total_iters"]) ** s["power"]),
}
