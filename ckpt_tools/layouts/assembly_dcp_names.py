"""What the names in a distributed checkpoint stand for, told by their paths in the nested dictionary that was saved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cached_property
from typing import Any

from ckpt_tools.model.values import Value

Path = tuple[Value, ...]


class Kind(StrEnum):
    WEIGHTS = "weights"
    OPTIMIZER = "optimizer"
    SCHEDULER = "scheduler"
    STATE = "state"


_OPTIMIZER = re.compile(r"optim(?:izer)?(?:s|_state_dict|_state|_\d+)?\Z")
_SCHEDULER = re.compile(r"(?:lr_?|opt_param_)?scheduler(?:s|_state_dict|_\d+)?\Z")
_MODEL = re.compile(r"(?:model|module|net|network|state_dict|model_state_dict|weights)(?:_0)?\Z")
_STATE = re.compile(
    r"(?:train(?:er|ing)?_?(?:state|progress)?|data_?loader\w*|sampler\w*|rng\w*|step|global_step|iteration|epoch\w*|"
    r"args|config|hparams|loss|metrics|extra_state|common_state|checkpoint_version|callbacks|loops|stateful\w*)\Z"
)
_WRAPPERS = frozenset(("app", "state", "checkpoint"))
_STEPS = frozenset(("step", "global_step", "iteration", "epoch", "current_epoch"))


def _kind_of(root: Value) -> Kind | None:
    if not isinstance(root, str):
        return None
    for expression, kind in (
        (_MODEL, Kind.WEIGHTS),
        (_OPTIMIZER, Kind.OPTIMIZER),
        (_SCHEDULER, Kind.SCHEDULER),
        (_STATE, Kind.STATE),
    ):
        if expression.match(root):
            return kind
    return None


class Keys:
    """The names of one checkpoint; ``planner`` gives the paths of those that were flattened."""

    def __init__(self, planner: Mapping[str, Path], names: Iterable[str]) -> None:
        self._planner = planner
        self._names = tuple(names)
        self._kinds: dict[Value, tuple[Kind, int]] = {}

    @cached_property
    def _rooted(self) -> bool:
        """Whether the model has a key of its own: else its weights lie at the top, beside the others' keys."""
        if not self._planner:
            return False
        seen = {(path[:2] if path[0] in _WRAPPERS else path[:1]) for path in self._planner.values() if path}
        return any(_kind_of(path[-1]) is Kind.WEIGHTS for path in seen) and all(
            len(path) > 1 for path in self._planner.values() if path and _kind_of(path[0]) is Kind.WEIGHTS
        )

    def path(self, fqn: str) -> Path:
        """Return the path of a name; one that was not flattened is cut at its dots."""
        found = self._planner.get(fqn)
        return found or ((fqn,) if self._planner else tuple(fqn.split(".")))

    def _placed(self, fqn: str) -> tuple[Kind, int]:
        """Return what a name stands for, and how many steps of its path say that."""
        path = self.path(fqn)
        depth = 1 if path[0] in _WRAPPERS and len(path) > 1 else 0
        root = path[depth]
        known = self._kinds.get((depth, root))
        if known is None:
            kind = _kind_of(root)
            if kind is Kind.WEIGHTS:
                known = (kind, depth + 1 if self._rooted else 0)
            elif kind is not None:
                known = (kind, depth + 1)
            else:
                known = (Kind.STATE if self._rooted else Kind.WEIGHTS, 0)
            if len(self._kinds) < 4096:
                self._kinds[depth, root] = known
        return known

    def kind(self, fqn: str) -> Kind:
        return self._placed(fqn)[0]

    def below(self, fqn: str) -> Path:
        """Return the path below the key that says what the name stands for."""
        path = self.path(fqn)
        return path[self._placed(fqn)[1] :] or path[-1:]

    def rest(self, fqn: str) -> str:
        """Return the name without that key: as the model, or the optimizer, calls it."""
        _, depth = self._placed(fqn)
        if not depth:
            return fqn
        return fqn[sum(len(str(step)) + 1 for step in self.path(fqn)[:depth]) :] or fqn

    def state_of(self, fqn: str) -> tuple[str | None, str]:
        """Return ``(parameter, name)`` of what an optimizer keeps for a parameter; None where it is nothing of it."""
        head, _, rest = self.rest(fqn).partition(".")
        owner, _, name = rest.rpartition(".")
        return (owner, name) if head == "state" and owner else (None, name)

    def group_of(self, fqn: str) -> tuple[str | int, str] | None:
        """Return ``(group, name)`` of a hyperparameter: groups have numbers, or are named by their one parameter."""
        below = self.below(fqn)
        if len(below) > 2 and below[0] == "param_groups" and isinstance(below[1], int):
            return below[1], ".".join(map(str, below[2:]))
        head, _, rest = self.rest(fqn).partition(".")
        owner, _, name = rest.rpartition(".")
        if head != "param_groups" or not owner:
            return None
        return (int(owner) if owner.isdecimal() and len(owner) < 9 else owner), name

    def counter(self, fqn: str) -> str | None:
        """Return ``step``, ``epoch`` ... where a name is such a counter of the training itself."""
        if self.kind(fqn) is not Kind.STATE:
            return None
        path = self.path(fqn)
        last = path[-1]
        return last if isinstance(last, str) and last in _STEPS and len(path) <= 3 else None


def nested(values: Iterable[tuple[Path, Value]]) -> Value:
    """Return the dictionaries and lists whose leaves have these paths: a whole number is a place in a list."""
    top: dict[Any, Any] = {}
    for path, value in values:
        at = top
        for step in path[:-1]:
            below = at.setdefault(step, {})
            if not isinstance(below, dict):
                break
            at = below
        else:
            if path:
                at[path[-1]] = value
    return _listed(top, 0)


def _listed(value: Value, depth: int) -> Value:
    if not isinstance(value, dict) or depth > 100:
        return value
    made = {key: _listed(below, depth + 1) for key, below in value.items()}
    if made and all(type(key) is int for key in made):
        return [made[key] for key in sorted(made)]
    return made
