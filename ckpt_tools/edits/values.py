"""From "this key path becomes this value" to bytes, for the pickles of torch files and for JSON.

Before a plan is shown, the file is decoded as it will be: the values must differ by exactly what was asked for.  The
same is asked of the real file once the plan was carried out.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckpt_tools.containers import pickle_stream, reader
from ckpt_tools.containers.base import Content, FormatError
from ckpt_tools.containers.numpy_values import numpy_scalar_value
from ckpt_tools.containers.pickle_positions import Keys, NoPositionError, Positions, Scalar, opcodes
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.source import Source
from ckpt_tools.edits import inside
from ckpt_tools.edits.outcome import VERIFY
from ckpt_tools.edits.overlay import Edited
from ckpt_tools.edits.proof import Changed, packed, same, shown, tensor_number, unmet, unpacked
from ckpt_tools.edits.zip_patch import edit_zip
from ckpt_tools.edits.zip_room import refit_zip
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.plan import Action, PatchBytes, WriteFile
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Value, as_mapping

SMALL = 1 << 24
"""Files up to this size may be written anew as a whole where nothing else works."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A place in a file, and the value that it gets: a number, or in JSON anything."""

    part: Part
    keys: Keys
    new: Value


@dataclass(frozen=True, slots=True)
class ValuePlan:
    """The actions that make the changes, in the order of files."""

    actions: tuple[Action, ...]
    changed: tuple[Changed, ...]


def value_at(value: Value, keys: Keys) -> Value:
    """Return what ``keys`` lead to.

    Raises:
        KeyError: nothing.
    """
    for key in keys:
        mapping = as_mapping(value)
        if mapping is not None and key in mapping:
            value = mapping[key]
        elif isinstance(value, list | tuple) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise KeyError(shown(keys))
    return value


def number_of(view: View, value: Value) -> float | int | None:
    """Return the number that a value is: itself, a tensor's single element, a numpy scalar; None for all else."""
    if isinstance(value, TensorRef):
        value = view.scalar(value)
    elif isinstance(value, Opaque):
        value = numpy_scalar_value(value)
    return None if isinstance(value, bool) or not isinstance(value, int | float) else value


def plan_values(view: View, settings: Iterable[Setting], *, rehearse: bool = True) -> ValuePlan:
    """Return how the files of a checkpoint are changed; places that hold the value already are left out.

    With ``rehearse`` every file is decoded as it will be; without it those are not of which bytes are only replaced,
    for an edit that will be proven once it is made.

    Raises:
        EditRefusedError: a place holds no number, or a file cannot be changed without harm.
        SourceError: a file could not be read.
    """
    by_part: dict[str, list[Setting]] = {}
    for setting in settings:
        by_part.setdefault(setting.part.path, []).append(setting)
    actions: list[Action] = []
    changed: list[Changed] = []
    for wanted in by_part.values():
        part = wanted[0].part
        with view.listing.open(part.path) as source:
            for file, own in _files(view, part, source, wanted):
                made, differing = file.plan(own)
                if made and (rehearse or not all(isinstance(action, PatchBytes) for action in made)):
                    planned = Edited(file.source, made)
                    reason = unmet(file.content, file.read(planned), differing, planned)
                    if reason is not None:
                        raise EditRefusedError(
                            f"{part.path}: cannot be edited without changing something else: {reason}"
                        )
                actions += file.placed(made)
                changed += differing if made else ()
    return ValuePlan(tuple(actions), tuple(changed))


# One file --------------------------------------------------------------------------------------------------


def _readable(view: View, part: Part) -> Content:
    content = view.content(part)
    if content is None:
        error = view.errors.get(part.path)
        raise error if error is not None else EditRefusedError(f"{part.path}: cannot be read")
    if not content.readable:
        why = content.problems[0].message if content.problems else f"is {reader.describe(content.container)}"
        raise EditRefusedError(f"{part.path}: {why}; it is not edited", hint=VERIFY)
    return content


def _files(
    view: View, part: Part, source: Source, settings: Sequence[Setting]
) -> Iterator[tuple[_File, Sequence[Setting]]]:
    """Yield what is edited as a file: a part, or in a data file each of the files inside that is meant."""
    if part.role is not Role.CHUNKS:
        yield _File(part, _readable(view, part), source), settings
        return
    by_name: dict[str, list[Setting]] = {}
    for setting in settings:
        by_name.setdefault(setting.keys[0], []).append(setting)
    for inner in inside.opened(view, part, by_name, source):
        inside.keep(view, part, inner)
        yield _File(part, inner.content, inner.source, inner), by_name[inner.name]


class _File:
    """A file, or a file inside of a data file: that keeps its length, and its name is the first of all keys."""

    def __init__(self, part: Part, content: Content, source: Source, inner: inside.Inner | None = None) -> None:
        self.part, self.content, self.source, self.inner = part, content, source, inner
        self.depth = 0 if inner is None else 1

    def read(self, source: Source) -> Content:
        """Return what another version of the file holds."""
        return reader.read(source, self.part.containers) if self.inner is None else inside.read(source, self.inner.name)

    def placed(self, actions: Iterable[Action]) -> Iterator[Action]:
        """Yield actions on this file as those on the file that is a part."""
        begin = self.inner.offset if self.inner is not None else 0
        for action in actions:
            yield replace(action, offset=action.offset + begin) if begin and isinstance(action, PatchBytes) else action

    def plan(self, settings: Sequence[Setting]) -> tuple[list[Action], list[Changed]]:
        if self.content.container == "json":
            return self._json(settings)
        places: dict[int, tuple[bytes, TensorRef]] = {}
        scalars: list[tuple[Setting, Value]] = []
        changed: list[Changed] = []
        for setting in settings:
            old = self._old(setting.keys)
            if isinstance(old, TensorRef):
                changed += self._tensor(setting, old, places)
            elif isinstance(old, int | float | None) or numpy_scalar_value(old) is not None:
                if type(old) is type(setting.new) and same(old, setting.new):
                    continue
                scalars.append((setting, old))
                number = old if isinstance(old, int | float | None) else numpy_scalar_value(old)
                changed.append(Changed(setting.part, setting.keys, number, setting.new))
            else:
                raise self._refused(setting.keys, f"holds {_kind(old)}, and no number")
        names = {".".join(map(str, change.keys)) for change in changed}
        alone = self.inner is not None or isinstance(self.content.value, TensorRef)
        self._unshared(places, set(self.content.tensors) if alone else names)
        patches = [(offset, raw) for offset, (raw, _) in places.items()]
        return list(self._pickle(scalars, patches)), changed

    def _old(self, keys: Keys) -> Value:
        try:
            return value_at(self.content.value, keys)
        except KeyError:
            raise self._refused(keys, "is not there") from None

    def _refused(self, keys: Keys, why: str) -> EditRefusedError:
        return EditRefusedError(f"{self.part.path}: {shown(keys)} {why}; nothing was changed")

    # Tensors ------------------------------------------------------------------------------------------------

    def _tensor(
        self, setting: Setting, ref: TensorRef, places: dict[int, tuple[bytes, TensorRef]]
    ) -> Iterator[Changed]:
        old = tensor_number(self.source, ref)
        if old is None or ref.kind not in ("", "torch.nn.parameter.Parameter", "torch.nn.Parameter"):
            raise self._refused(setting.keys, f"is a tensor of type {ref.dtype} and shape {list(ref.shape)}")
        try:
            raw = packed(ref, setting.new)
        except (struct.error, OverflowError):
            raise self._refused(setting.keys, f"of type {ref.dtype} cannot hold {setting.new}") from None
        offset = ref.chunks[0].extent.offset
        if offset in places and places[offset][0] != raw:
            raise self._refused(setting.keys, "shares its bytes with a place that becomes something else")
        places[offset] = (raw, ref)
        new = unpacked(ref, raw)
        if new != old:
            yield Changed(setting.part, setting.keys, old, new)

    def _unshared(self, places: Mapping[int, tuple[bytes, TensorRef]], names: set[str]) -> None:
        """Refuse to change bytes that another tensor looks at as well."""
        moved = sorted(at for at, (raw, _) in places.items() if self.source.read(at, len(raw)) != raw)
        if not moved:
            return
        for name, ref in self.content.tensors.items():
            for chunk in ref.chunks:
                place = bisect_left(moved, chunk.extent.offset)
                if place < len(moved) and moved[place] < chunk.extent.end and name not in names:
                    raise EditRefusedError(f"{self.part.path}: {name} shares the bytes that would be changed")

    # Pickles ------------------------------------------------------------------------------------------------

    def _pickle(self, scalars: Sequence[tuple[Setting, Value]], patches: list[tuple[int, bytes]]) -> Iterator[Action]:
        container = self.content.container
        data, begin, name = self._data() if scalars else (b"", 0, "")
        kept, other, positions = self._spans(scalars, data)
        patches += [(begin + scalar.start, new) for scalar, new in kept]
        path = self.part.path
        if container == "torch-zip":
            if other and positions is not None:
                patches = [(at, raw) for at, raw in patches if not begin <= at < begin + len(data)]
                records = {name: positions.rewritten([*kept, *other])}
                edit = edit_zip if self.inner is None else refit_zip
                yield from edit(self.source, path, patches, records)
            else:
                yield from edit_zip(self.source, path, patches)
            return
        for offset, raw in sorted(patches):
            old = self.source.read(offset, len(raw))
            if old != raw and not other:
                yield PatchBytes(path, offset, old, raw)
        if other and positions is not None:
            yield self._whole(positions, [*kept, *other], patches)

    def _spans(
        self, scalars: Sequence[tuple[Setting, Value]], data: bytes
    ) -> tuple[list[tuple[Scalar, bytes]], list[tuple[Scalar, bytes]], Positions | None]:
        """Return the opcodes to change: those that keep their length, and the others."""
        kept: list[tuple[Scalar, bytes]] = []
        other: list[tuple[Scalar, bytes]] = []
        if not scalars:
            return kept, other, None
        try:
            positions = Positions(data)
            taken: dict[int, bytes] = {}
            for setting, old in scalars:
                place = positions.find(setting.keys[self.depth :])
                new = opcodes(setting.new, data[place.start : place.end])
                if not place.numpy and not same(positions.number(place), old):
                    raise self._refused(setting.keys, "has another value where its bytes were looked for")
                if taken.get(place.start, new) != new:
                    raise self._refused(setting.keys, "shares its bytes with a place that becomes something else")
                if place.start in taken:  # one list in two places of the state
                    continue
                taken[place.start] = new
                fits = len(new) == place.end - place.start and not place.numpy
                (kept if fits else other).append((place, new))
        except NoPositionError as error:
            raise EditRefusedError(f"{self.part.path}: {error}; nothing was changed") from None
        return kept, other, positions

    def _data(self) -> tuple[bytes, int, str]:
        """Return the bytes of the pickle, where its first byte lies in the file, and the name of its record."""
        if self.content.container == "torch-zip":
            name = f"{self.content.facts.get('root', '')}/data.pkl"
            record = next((record for record in self.content.records if record.name == name), None)
            if record is None:
                raise EditRefusedError(f"{self.part.path}: {name} was not found; nothing was changed")
            return self.source.read(record.extent.offset, record.extent.length), record.extent.offset, name
        if self.content.container == "torch-legacy":
            position = 0
            try:
                for _ in range(3):
                    length, _ = pickle_stream.read_growing(self.source, position)
                    position += length
                length, _ = pickle_stream.read_growing(self.source, position)
            except FormatError as error:
                raise EditRefusedError(f"{self.part.path}: {error.problem.message}; it is not edited") from None
            return self.source.read(position, length), position, ""
        if self.content.container == "pickle":
            return self.source.read(0, self.source.size), 0, ""
        raise EditRefusedError(f"{self.part.path}: is {reader.describe(self.content.container)}; it is not edited")

    def _whole(
        self, positions: Positions, changes: Sequence[tuple[Scalar, bytes]], patches: Sequence[tuple[int, bytes]]
    ) -> Action:
        """Return the writing of a whole small file, for formats that nothing can be appended to."""
        if self.source.size > SMALL:
            raise EditRefusedError(
                f"{self.part.path}: a number would take more bytes than it has, and the old format of torch has no"
                " room for them; nothing was changed",
                hint="load and save it once with torch, which writes the new format",
            )
        old = self.source.read(0, self.source.size)
        pickled, begin, _ = self._data()
        new = bytearray(old)
        for offset, raw in patches:
            if not begin <= offset < begin + len(pickled):
                new[offset : offset + len(raw)] = raw
        new[begin : begin + positions.end] = positions.rewritten(changes)
        return WriteFile(self.part.path, bytes(new), old)

    # JSON ---------------------------------------------------------------------------------------------------

    def _json(self, settings: Sequence[Setting]) -> tuple[list[Action], list[Changed]]:
        if any(problem.kind != "json-nan" for problem in self.content.problems):
            raise EditRefusedError(f"{self.part.path}: {self.content.problems[0].message}; it is not edited")
        old = self.source.read(0, self.source.size)
        value = json.loads(old)
        style = _style(old, value)
        changed = []
        for setting in settings:
            before = self._old(setting.keys)
            if type(before) is type(setting.new) and same(before, setting.new):
                continue
            target = value_at(value, setting.keys[:-1])
            target[setting.keys[-1]] = setting.new
            changed.append(Changed(setting.part, setting.keys, before, setting.new))
        if not changed:
            return [], []
        return [WriteFile(self.part.path, style(value), old)], changed


class _Style:
    def __init__(self, end: str, **options: Any) -> None:
        self.end, self.options = end, options

    def __call__(self, value: Value) -> bytes:
        return (json.dumps(value, **self.options) + self.end).encode("utf-8", "surrogatepass")


def _style(text: bytes, value: Value) -> _Style:
    """Return the way of writing JSON that gives back ``text``, or a plain one where none does."""
    for indent in (2, None, 4, 1):
        for ascii_only in (True, False):
            for end in ("\n", ""):
                for ordered in (True, False):
                    style = _Style(end, indent=indent, sort_keys=ordered, ensure_ascii=ascii_only)
                    if style(value) == text:
                        return style
    return _Style("\n", indent=2)


def _kind(value: Value) -> str:
    if isinstance(value, Opaque):
        return f"an object ({value.qualname})"
    return f"a value of type {type(value).__name__}"
