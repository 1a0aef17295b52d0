"""Where the numbers of a training lie: the state dicts of optimizers and schedulers, the trainer's own state.

A state dict is a *logical* thing: its numbers may be stored in one place, or the same in several (every rank's file).
A number is changed wherever it is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from ckpt_tools.containers.pickle_positions import Keys
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.edits.outcome import VERIFY
from ckpt_tools.edits.proof import Changed, shown
from ckpt_tools.edits.values import Setting, number_of
from ckpt_tools.layouts import plain
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Value, as_mapping, real

_CLOSE = 1e-6


@dataclass(frozen=True, slots=True)
class Place:
    """Where a state dict is stored: ``keys`` lead to it in the file.

    A kind of file that names things otherwise, or holds only some of them, has a place of its own with another ``at``,
    or with another ``every`` where one number may be stored in it more than once.
    """

    part: Part
    keys: Keys = ()

    def at(self, keys: Keys) -> Keys | None:
        """Return the whole key path of what ``keys`` lead to in the state dict, None where it is not stored here."""
        return (*self.keys, *keys)

    def every(self, keys: Keys) -> Iterable[Keys]:
        """Return all such key paths."""
        there = self.at(keys)
        return () if there is None else (there,)


@dataclass(frozen=True, slots=True)
class State:
    """A state dict in torch's own shape, and the places where it is stored, one or more."""

    value: Mapping[Any, Value]
    places: tuple[Place, ...]

    @property
    def part(self) -> Part:
        return self.places[0].part

    @property
    def name(self) -> str:
        """What to call it."""
        inner = shown(self.places[0].keys)
        return f"{inner} of {self.part.path}" if inner else self.part.path


@dataclass(frozen=True, slots=True)
class Line:
    """An optimizer and the scheduler that sets its rates; ``groups`` and ``state`` are their plain numbers.

    One of the two is there.
    """

    optimizer: State | None
    scheduler: State | None
    groups: list[dict[Any, Any]]
    state: dict[Any, Any] | None

    @property
    def name(self) -> str:
        state = self.optimizer or self.scheduler
        return state.name if state is not None else ""


@dataclass(frozen=True, slots=True)
class States:
    """What a resume continues from, as far as it is there."""

    optimizers: tuple[State, ...]
    schedulers: tuple[State, ...]
    trainer: State | None
    beside: tuple[Part, ...] = ()
    """Files that say where it is: they have to be whole, and stay as they are."""
    staying: tuple[str, ...] = ()
    """What else of the training's state is stored and may count, by name: no edit knows what it means."""
    engine: State | None = None
    """What an engine below the training counts itself (DeepSpeed's model states)."""

    @property
    def parts(self) -> list[Part]:
        """Every file that holds any of it."""
        own = [state for state in (self.trainer, self.engine) if state is not None]
        every = (*self.optimizers, *self.schedulers, *own)
        found = {place.part.path: place.part for state in every for place in state.places}
        return list({**found, **{part.path: part for part in self.beside}}.values())


def find(view: View) -> States:
    """Return the state dicts that files hold as a whole; ``edits.finding`` knows of others.

    Raises:
        EditRefusedError: a file cannot be read.
    """
    return States(
        tuple(_found(view, Role.OPTIMIZER, plain.OPTIMIZERS, "param_groups")),
        tuple(_found(view, Role.SCHEDULER, plain.SCHEDULERS, "_last_lr")),
        _trainer(view),
    )


def _found(view: View, role: Role, names: tuple[str, ...], mark: str) -> Iterator[State]:
    parts = list(view.checkpoint.of(role))
    for part in parts:
        mapping = as_mapping(_value(view, part))
        if mapping is None:
            raise EditRefusedError(f"{part.path}: holds no state dict", hint=VERIFY)
        yield State(mapping, (Place(part),))
    for part in view.checkpoint.of(Role.COMBINED) if not parts else ():
        for keys, inner in plain.inside(as_mapping(_value(view, part)) or {}, names, mark):
            yield State(inner, (Place(part, keys),))


def _trainer(view: View) -> State | None:
    for part in view.checkpoint.of(Role.TRAINER_STATE, Role.COMBINED):
        mapping = as_mapping(_value(view, part))
        if mapping is not None:
            return State(mapping, (Place(part),))
    return None


def _value(view: View, part: Part) -> Value:
    content = view.content(part)
    if content is None:
        error = view.errors.get(part.path)
        raise error if error is not None else EditRefusedError(f"{part.path}: cannot be read")
    if not content.readable:
        why = content.problems[0].message if content.problems else "it cannot be decoded"
        raise EditRefusedError(f"{part.path}: {why}; it is not edited", hint=VERIFY)
    return content.value


def numbers(view: View, value: Value) -> Value:
    """Return a copy of ``value`` in which every tensor or numpy scalar of one element is the number it holds.

    A dictionary's ``state`` and ``params``, the long part of an optimizer, are left out.
    """
    mapping = as_mapping(value)
    if mapping is not None:
        return {key: numbers(view, item) for key, item in mapping.items() if key not in ("state", "params")}
    if isinstance(value, list | tuple):
        return [numbers(view, item) for item in value]
    if isinstance(value, TensorRef | Opaque):
        return number_of(view, value)
    return value


# Which scheduler is whose ----------------------------------------------------------------------------------


def lines(view: View, found: States) -> list[Line]:
    """Return every optimizer with its scheduler, or a scheduler alone where there is no optimizer.

    The groups of an optimizer are empty where they cannot be read.

    Raises:
        EditRefusedError: whose a scheduler is cannot be told.
    """
    grouped = [(state, _groups(view, state)) for state in found.optimizers]
    pending = [(state, as_mapping(numbers(view, state.value)) or {}) for state in found.schedulers]
    if not grouped:
        return [Line(None, scheduler, [], dict(state)) for scheduler, state in pending]
    if len(grouped) == len(pending) and (len(grouped) == 1 or found.engine is not None):  # an engine has them by rank
        pairs = zip(grouped, pending, strict=True)
        return [Line(optimizer, scheduler, groups, dict(state)) for (optimizer, groups), (scheduler, state) in pairs]
    owners: dict[int, tuple[State, Mapping[Any, Any]]] = {}
    for number, (scheduler, state) in enumerate(pending):
        free = {owner: groups for owner, (_, groups) in enumerate(grouped) if owner not in owners}
        fitting = [owner for owner, groups in free.items() if _fits(groups, state)]
        owner = number if number in fitting else fitting[0] if len(fitting) == 1 else None
        if owner is None and len(free.get(number, ())) == len(state.get("_last_lr") or ()):
            owner = number if len(grouped) == len(pending) else None
        if owner is None:
            listed = ", ".join(state.name for state in (*found.optimizers, *found.schedulers))
            raise EditRefusedError(f"which scheduler is that of which optimizer cannot be told ({listed})")
        owners[owner] = scheduler, state
    made = []
    for number, (optimizer, groups) in enumerate(grouped):
        own = owners.get(number)
        made.append(Line(optimizer, own[0] if own else None, groups, dict(own[1]) if own else None))
    return made


def _groups(view: View, optimizer: State) -> list[dict[Any, Any]]:
    own = numbers(view, optimizer.value.get("param_groups"))
    whole = isinstance(own, list) and all(isinstance(group, dict) for group in own)
    return list(own) if whole else []


def _fits(groups: Sequence[Mapping[Any, Any]], state: Mapping[Any, Any]) -> bool:
    """Return whether the rates that a scheduler set last are those of an optimizer's groups."""
    last = state.get("_last_lr")
    if not isinstance(last, list):
        return False
    rates = [real(group.get("lr")) for group in groups]
    return len(last) == len(rates) and all(
        isclose(real(one) or 0.0, other or 0.0, rel_tol=_CLOSE, abs_tol=1e-15)
        for one, other in zip(last, rates, strict=True)
    )


# What is to be set -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Wanted:
    """New numbers in the words of state dicts, and what became of them in the words of files."""

    settings: list[Setting] = field(default_factory=list)
    _homes: dict[tuple[str, Keys], tuple[State, Keys]] = field(default_factory=dict)

    def put(self, state: State, keys: Keys, new: Value) -> None:
        """Set what ``keys`` lead to, in every place where it is stored.

        Raises:
            EditRefusedError: it is stored nowhere.
        """
        stored = [(place.part, there) for place in state.places for there in place.every(keys)]
        if not stored:
            raise EditRefusedError(f"{state.name}: {shown(keys)} is stored nowhere; nothing was changed")
        for part, there in stored:
            self.settings.append(Setting(part, there, new))
            self._homes[part.path, there] = state, keys

    def apply(self, changed: Iterable[Changed], state: State | None, target: Any) -> None:
        """Make the changes of one state dict in a copy of its numbers: a tensor's number is rounded."""
        for item in changed:
            home, keys = self._homes.get((item.part.path, item.keys), (None, ()))
            if home is state and keys:
                _assign(target, keys, item.new)


def _assign(target: Any, keys: Keys, new: Value) -> None:
    try:
        for key in keys[:-1]:
            target = target[key]
        if isinstance(target, list) or keys[-1] in target:
            target[keys[-1]] = new
    except (KeyError, IndexError, TypeError):
        return
