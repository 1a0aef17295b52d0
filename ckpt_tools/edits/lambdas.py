"""The schedules of transformers, which are functions of the step and stored nowhere but in the training arguments.

``factor(step)`` is what the base rate is multiplied with: ``transformers/optimization.py``, ``get_*_schedule*``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ckpt_tools.model.values import Value, as_mapping, real, whole

Factor = Callable[[int], float]

FROM_ARGUMENTS = frozenset(("polynomial",))
"""Schedules that divide by the ``learning_rate`` of the arguments, with ``cosine*`` where ``min_lr`` is given."""


class _Schedule:
    """What the functions share: warm-up ``w``, total ``n``, further arguments, and the rate of the arguments."""

    def __init__(self, warmup: int, total: int, more: Mapping[str, Any], rate: float) -> None:
        self.w, self.n, self.more, self.rate = warmup, total, more, rate

    def warm(self, step: int) -> float:
        return step / max(1, self.w)

    def progress(self, step: int) -> float:
        return (step - self.w) / max(1, self.n - self.w)

    def number(self, name: str, default: float) -> float:
        found = real(self.more.get(name))
        return default if found is None else found

    def floor(self) -> float:
        least = real(self.more.get("min_lr"))
        return self.number("min_lr_rate", 0.0) if least is None else least / self.rate


def _constant(s: _Schedule, step: int) -> float:
    return 1.0


def _constant_with_warmup(s: _Schedule, step: int) -> float:
    return s.warm(step) if step < s.w else 1.0


def _linear(s: _Schedule, step: int) -> float:
    return s.warm(step) if step < s.w else max(0.0, (s.n - step) / max(1, s.n - s.w))


def _cosine(s: _Schedule, step: int) -> float:
    if step < s.w:
        return s.warm(step)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * s.number("num_cycles", 0.5) * 2.0 * s.progress(step))))


def _restarts(s: _Schedule, step: int) -> float:
    if step < s.w:
        return s.warm(step)
    progress = s.progress(step)
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((s.number("num_cycles", 1) * progress) % 1.0))))


def _polynomial(s: _Schedule, step: int) -> float:
    end = s.number("lr_end", 1e-7)
    if step < s.w:
        return s.warm(step)
    if step > s.n:
        return end / s.rate
    left = 1 - (step - s.w) / (s.n - s.w)
    decay: float = (s.rate - end) * left ** s.number("power", 1.0) + end
    return decay / s.rate


def _inverse_sqrt(s: _Schedule, step: int) -> float:
    if step < s.w:
        return s.warm(step)
    scale = s.number("timescale", s.w or 10_000)
    return 1.0 / math.sqrt((step + scale - s.w) / scale)


def _cosine_with_min_lr(s: _Schedule, step: int) -> float:
    if step < s.w:
        return s.warm(step)
    factor = 0.5 * (1.0 + math.cos(math.pi * s.number("num_cycles", 0.5) * 2.0 * s.progress(step)))
    return max(0.0, factor * (1 - s.floor()) + s.floor())


def _cosine_warmup_with_min_lr(s: _Schedule, step: int) -> float:
    if step < s.w:
        least = real(s.more.get("warmup_lr_rate"))
        if least is None:
            return (step + 1.0) / max(1.0, s.w)
        return least + (1.0 - least) * step / max(1, s.w - 1)
    progress = (step - s.w + 1.0) / max(1.0, s.n - s.w)
    factor = 0.5 * (1.0 + math.cos(math.pi * s.number("num_cycles", 0.5) * 2.0 * progress))
    return max(0.0, factor * (1 - s.floor()) + s.floor())


_SHAPES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda left, cycles: left,
    "cosine": lambda left, cycles: 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * (1.0 - left))),
    "1-sqrt": lambda left, cycles: 1.0 - math.sqrt(1.0 - left),
}


def _warmup_stable_decay(s: _Schedule, step: int) -> float:
    least, decay = s.number("min_lr_ratio", 0.0), s.number("num_decay_steps", 0)
    stable = s.number("num_stable_steps", s.n - s.w - decay)
    if step < s.w:
        progress = s.warm(step)
        kind = s.more.get("warmup_type", "linear")
        rise = {"linear": progress, "cosine": 0.5 * (1.0 - math.cos(math.pi * progress))}
        return max(0.0, rise.get(kind, 1.0 - math.sqrt(1.0 - progress)) * (1.0 - least) + least)
    if step < s.w + stable:
        return 1.0
    if step < s.w + stable + decay:
        left = 1.0 - (step - s.w - stable) / max(1, decay)
        shape = _SHAPES[s.more.get("decay_type", "cosine")]
        return max(0.0, shape(left, s.number("num_cycles", 0.5)) * (1.0 - least) + least)
    return least


SCHEDULES: dict[str, Callable[[_Schedule, int], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "cosine_warmup_with_min_lr": _cosine_warmup_with_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
}
_NEEDS = {
    "warmup_stable_decay": ("num_decay_steps",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
}


def factor_of(arguments: Mapping[str, Value], total: int | None) -> tuple[Factor | None, str]:
    """Return the function that the training arguments name, or None and why it is not known.

    ``total`` is the number of steps of the whole run.
    """
    name = arguments.get("lr_scheduler_type")
    if not isinstance(name, str):
        return None, "the later rates come from a function that no file holds"
    shape = SCHEDULES.get(name)
    if shape is None:
        return None, f"the formula of the schedule {name!r} is not known here"
    given = arguments.get("lr_scheduler_kwargs")
    more = as_mapping(given) if given is not None else {}
    if more is None or not all(isinstance(value, int | float | str | None) for value in more.values()):
        return None, "lr_scheduler_kwargs of the training arguments cannot be read"
    needed = _NEEDS.get(name, ())
    if needed and all(real(more.get(key)) is None for key in needed):
        return None, f"lr_scheduler_kwargs lack {' or '.join(needed)}"
    if total is None or total < 1:
        return None, "how many steps the run has is stored nowhere"
    rate = real(arguments.get("learning_rate"))
    if not rate and (name in FROM_ARGUMENTS or real(more.get("min_lr"))):
        return None, "the training arguments have no learning_rate, which this schedule divides by"
    schedule = _Schedule(warmup_steps(arguments, total), total, more, rate or 1.0)
    return (lambda step: float(shape(schedule, step))), ""


def warmup_steps(arguments: Mapping[str, Value], total: int) -> int:
    """Return the steps of warm-up, as transformers 5 and 4 count them."""
    steps, ratio = real(arguments.get("warmup_steps")) or 0.0, real(arguments.get("warmup_ratio")) or 0.0
    if steps >= 1:
        return int(steps)
    return math.ceil(total * (steps or ratio))


def total_steps(arguments: Mapping[str, Value], state: Mapping[Any, Value] | None) -> int | None:
    """Return the steps of the whole run, as the arguments or the trainer's state tell them."""
    for value in (arguments.get("max_steps"), (state or {}).get("max_steps")):
        found = whole(value)
        if found is not None and found > 0:
            return found
    return None
