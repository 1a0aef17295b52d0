"""State dicts of distributed checkpoints: every number of theirs is an object, or a tensor, of its own.

Of a name that several ranks stored (``use_collectives=False``), each is changed.  An optimizer that was flattened
has its rates parameter by parameter: parameters whose numbers are all alike are one group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from ckpt_tools.containers import reader
from ckpt_tools.containers.pickle_positions import Keys
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.source import BytesSource
from ckpt_tools.edits.outcome import VERIFY
from ckpt_tools.edits.proof import tensor_number
from ckpt_tools.edits.states import Place, State, States
from ckpt_tools.layouts.assembly_dcp import DcpAssembly
from ckpt_tools.layouts.assembly_dcp_blobs import Piece
from ckpt_tools.layouts.assembly_dcp_names import Kind
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part
from ckpt_tools.model.findings import Verdict
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping, real

MAX_OBJECT = 1 << 24
_OTHERS = re.compile(r"data_?loader|sampler|rng|metrics|callbacks|loops|loss")
"""What has counters of its own, which are not those of the training."""

_PARAMETERS = "params"
_COUNTED_BY_STEP = frozenset(("milestones",))


@dataclass(frozen=True, slots=True)
class InnerPlace(Place):
    """A data file: ``names`` are those of what stands for the beginning of a key path in it."""

    names: Mapping[Keys, list[str]] = field(default_factory=dict)

    def every(self, keys: Keys) -> Iterable[Keys]:
        for cut in range(len(keys), 0, -1):
            if keys[:cut] in self.names:
                return [(name, *keys[cut:]) for name in self.names[keys[:cut]]]
        return ()


Wheres = dict[Keys, list[str]]
"""The names of what is stored, by the key path that it has in a state dict."""


def find(view: View) -> States:
    """Return the state dicts in the distributed checkpoints of a checkpoint.

    Raises:
        EditRefusedError: a file is damaged, or in a form in which no number can be changed.
        SourceError: a file could not be read.
    """
    optimizers: list[State] = []
    schedulers: list[State] = []
    trainer: State | None = None
    beside: list[Part] = []
    staying: list[str] = []
    for made in view.assemblies:
        if isinstance(made, DcpAssembly):
            directory = _Directory(made)
            if directory.of_training:
                directory.refuse_unfit()
                own = list(directory.schedulers())
                trainer = trainer or directory.trainer()
                optimizers += directory.optimizers(own)
                schedulers += own
                beside += made.metadata
                staying += directory.others()
    return States(tuple(optimizers), tuple(schedulers), trainer, tuple(beside), tuple(staying))


class _Directory:
    def __init__(self, made: DcpAssembly) -> None:
        if not made.metadata:
            raise EditRefusedError(
                f"{made.place or 'the directory'} has no .metadata: its save did not end", hint=VERIFY
            )
        self.made, self.keys = made, made.keys
        self.stored: dict[str, list[Piece]] = {}
        small = {fqn for fqn, ref in made.tensors.items() if ref.numel == 1}
        for pieces in made.pieces.values():
            for piece in pieces:
                if piece.chunk is None or piece.fqn in small:
                    self.stored.setdefault(piece.fqn, []).append(piece)
        for part in made.metadata:
            content = made.view.content(part)
            if content is None or not content.readable:
                raise EditRefusedError(f"{part.path}: cannot be read; nothing was changed", hint=VERIFY)

    @property
    def of_training(self) -> bool:
        """Whether there is more than a model."""
        return any(self.made.kind(fqn) is not Kind.WEIGHTS for fqn in self.stored)

    def refuse_unfit(self) -> None:
        """Refuse a directory whose pieces do not fit together, or are in a form in which no number can be changed."""
        for path, pieces in self.made.pieces.items():
            transform = next((piece.transform for piece in pieces if piece.transform), "")
            if transform:
                raise EditRefusedError(
                    f"{path}: its pieces went through {transform}, so that no number in them can be changed in place",
                    hint="load and save it once without that extension",
                )
        for path in self.made.packed:
            raise EditRefusedError(f"{path}: its tensors are one safetensors file, which torch's reader does not load")
        for misfit in self.made.misfits:
            if misfit.impact.resume is Verdict.BROKEN:
                raise EditRefusedError(f"{misfit.path}: {misfit.problem.message}; it is not edited", hint=VERIFY)

    # Values -------------------------------------------------------------------------------------------------

    def look(self, names: Iterable[str]) -> dict[str, tuple[bytes, Value]]:
        """Return a digest of the bytes and the value of each, that of the first rank that stored it.

        Raises:
            EditRefusedError: one cannot be read.
        """
        by_file: dict[str, list[Piece]] = {}
        for fqn in names:
            piece = self.stored[fqn][0]
            by_file.setdefault(piece.extent.path, []).append(piece)
        found: dict[str, tuple[bytes, Value]] = {}
        known: dict[bytes, Value] = {}
        for path, pieces in by_file.items():
            if path not in self.made.data:
                raise EditRefusedError(f"{path}: is missing; nothing was changed", hint=VERIFY)
            with self.made.view.listing.open(path) as source:
                for piece in pieces:
                    extent = piece.extent
                    if extent.end > source.size or extent.length > MAX_OBJECT:
                        why = "is not all there" if extent.end > source.size else f"has {extent.length:,} bytes"
                        raise EditRefusedError(f"{path}: {piece.fqn} {why}; it is not edited", hint=VERIFY)
                    raw = source.read(extent.offset, extent.length)
                    digest = blake2b(raw, digest_size=16).digest()
                    if digest not in known:
                        known[digest] = self._decoded(raw, piece)
                    found[piece.fqn] = digest, known[digest]
        return found

    def _decoded(self, raw: bytes, piece: Piece) -> Value:
        source = BytesSource(raw, piece.extent.path)
        content = reader.read(source, ("torch-zip",))
        if content.container != "torch-zip" or not content.readable:
            why = content.problems[0].message if content.problems else f"it is {reader.describe(content.container)}"
            raise EditRefusedError(f"{piece.extent.path}: {piece.fqn}: {why}; it is not edited", hint=VERIFY)
        value = content.value
        number = tensor_number(source, value) if isinstance(value, TensorRef) else None
        return value if number is None else number

    def places(self, root: str, wheres: Wheres) -> tuple[Place, ...]:
        """Return the data files with what each of them holds of a state dict."""
        by_file: dict[str, Wheres] = {}
        for keys, names in wheres.items():
            for name in names:
                for piece in self.stored[name]:
                    by_file.setdefault(piece.extent.path, {}).setdefault(keys, []).append(name)
        missing = next((path for path in by_file if path not in self.made.data), None)
        if missing is not None:
            raise EditRefusedError(f"{missing}: is missing; nothing was changed", hint=VERIFY)
        return tuple(InnerPlace(self.made.data[path], (root,), own) for path, own in sorted(by_file.items()))

    def _of(self, kind: Kind) -> Iterator[tuple[str, list[str]]]:
        """Yield what the names of a kind begin with, and these names: two optimizers have roots of their own."""
        roots: dict[str, list[str]] = {}
        for fqn in self.stored:
            if self.made.kind(fqn) is kind:
                rest = self.keys.rest(fqn)
                roots.setdefault(fqn[: len(fqn) - len(rest)].rstrip("."), []).append(fqn)
        yield from roots.items()

    # Schedulers and counters --------------------------------------------------------------------------------

    def schedulers(self) -> Iterator[State]:
        for root, names in self._of(Kind.SCHEDULER):
            values = self.look(names)
            paths = {self.keys.below(fqn): fqn for fqn in names}
            whole = _tree({path: values[fqn][1] for path, fqn in paths.items()})
            for prefix, state in _scheduled(whole):
                depth = len(prefix)
                wheres = {path[depth:]: [fqn] for path, fqn in paths.items() if path[:depth] == prefix}
                yield State(state, self.places(root, wheres))

    def _counter(self, fqn: str) -> str | None:
        apart = _OTHERS.match(str(self.keys.path(fqn)[0]))
        return None if apart else self.keys.counter(fqn)

    def others(self) -> list[str]:
        """Return the names of what else is stored of the training."""
        return [fqn for fqn in self.stored if self.made.kind(fqn) is Kind.STATE and self._counter(fqn) is None]

    def trainer(self) -> State | None:
        """Return the counters of the training itself."""
        wheres: Wheres = {}
        for fqn in self.stored:
            name = self._counter(fqn)
            if name is not None:
                wheres.setdefault((name,), []).append(fqn)
        if not wheres:
            return None
        values = self.look(names[0] for names in wheres.values())
        return State({keys[0]: values[names[0]][1] for keys, names in wheres.items()}, self.places("counters", wheres))

    # Optimizers ---------------------------------------------------------------------------------------------

    def optimizers(self, schedulers: list[State]) -> Iterator[State]:
        """Yield the optimizers; ``schedulers`` are those beside them, which say in what order groups are."""
        for root, names in self._of(Kind.OPTIMIZER):
            wheres: Wheres = {}
            groups: dict[str | int, dict[str, str]] = {}
            for fqn in names:
                group, owner = self.keys.group_of(fqn), self.keys.state_of(fqn)
                if group is not None:
                    groups.setdefault(group[0], {})[group[1]] = fqn
                elif owner[0] is not None and owner[1] == "step":
                    wheres["state", owner[0], "step"] = [fqn]
            if not wheres and not groups:
                continue
            steps = self.look(names[0] for names in wheres.values())
            state = {keys[1]: {"step": steps[names[0]][1]} for keys, names in wheres.items()}
            made = self._groups(groups, wheres, schedulers)
            yield State({"state": state, "param_groups": made}, self.places(root, wheres))

    def _groups(
        self, stored: Mapping[str | int, dict[str, str]], wheres: Wheres, schedulers: list[State]
    ) -> list[dict[str, Value]]:
        """Return the groups in their order, and note where their numbers are."""
        flat = any(isinstance(group, str) for group in stored)
        values = self.look(fqn for own in stored.values() for name, fqn in own.items() if name != _PARAMETERS)
        alike: dict[Any, list[dict[str, str]]] = {}
        for group, own in stored.items():
            seen = {name: values[fqn][0] for name, fqn in sorted(own.items()) if fqn in values}
            alike.setdefault(tuple(seen.items()) if flat else group, []).append(own)
        members = list(alike.values()) if flat else [alike[group] for group in sorted(alike)]
        made = [{name: values[fqn][1] for name, fqn in each[0].items() if fqn in values} for each in members]
        order = _order(made, schedulers) if flat else range(len(made))
        for number, group in enumerate(order):
            for name in made[group]:
                wheres["param_groups", number, name] = [own[name] for own in members[group]]
        return [made[group] for group in order]


def _order(groups: list[dict[str, Value]], schedulers: list[State]) -> list[int]:
    """Return the groups of a flattened optimizer as the scheduler counts them: by the rates that it set last.

    Raises:
        EditRefusedError: the scheduler has more groups than can be told apart.
    """
    last = schedulers[0].value.get("_last_lr") if len(schedulers) == 1 else None
    bases = schedulers[0].value.get("base_lrs") if len(schedulers) == 1 else None
    if not isinstance(last, list) or len(last) == len(groups) == 1:
        return list(range(len(groups)))
    if len(last) > len(groups):
        raise EditRefusedError(
            f"the scheduler has {len(last):,} groups, and what was saved parameter by parameter tells apart"
            f" {len(groups):,}: which parameters are of which cannot be told",
        )
    left = list(range(len(groups)))
    order: list[int] = []
    for number, rate in enumerate(last):
        base = bases[number] if isinstance(bases, list) and number < len(bases) else None
        rates = [(real(groups[each].get("lr")), real(groups[each].get("initial_lr"))) for each in left]
        wanted = real(rate), real(base)
        chosen = rates.index(wanted) if wanted in rates else next(
            (place for place, found in enumerate(rates) if found[0] == wanted[0]), None
        )  # fmt: skip
        if chosen is None:
            return list(range(len(groups)))
        order.append(left.pop(chosen))
    return order + left


def _scheduled(whole: Any) -> Iterator[tuple[Keys, dict[Any, Value]]]:
    """Yield each scheduler of a tree with the keys that lead to it: the tree itself, or one level below."""
    if isinstance(whole, dict) and ("last_epoch" in whole or "_last_lr" in whole):
        yield (), whole
        return
    pairs = enumerate(whole) if isinstance(whole, list) else (as_mapping(whole) or {}).items()
    for key, inner in pairs:
        if isinstance(inner, dict) and ("last_epoch" in inner or "_last_lr" in inner):
            yield (key,), inner


def _tree(values: Mapping[Keys, Value]) -> Any:
    """Return the nested value whose leaves have these paths; whole numbers are places in a list."""
    top: dict[Any, Any] = {}
    for path, value in values.items():
        at = top
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
    return _listed(top, "")


def _listed(value: Any, name: Any) -> Any:
    if not isinstance(value, dict):
        return value
    made = {key: _listed(below, key) for key, below in value.items()}
    if name in _COUNTED_BY_STEP:  # torch writes the whole numbers of a dictionary as text
        return {int(key) if str(key).isdecimal() else key: below for key, below in made.items()}
    return [made[key] for key in sorted(made)] if made and all(type(key) is int for key in made) else made
