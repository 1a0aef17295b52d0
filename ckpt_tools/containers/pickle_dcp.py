"""The opcodes that torch.distributed.checkpoint's metadata has once per chunk, recognised whole.

A short cut and nothing else: hundreds of thousands of small objects come out as named tuples, at a fraction of the
time and memory.  What the skipped opcodes leave in the memo is kept where torch may ask for it again (objects, sizes,
texts); a pickle that asks for anything else is read again without the short cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_tools.model.values import Opaque, Value

if TYPE_CHECKING:
    from ckpt_tools.containers.pickle_machine import Machine
    from ckpt_tools.containers.pickle_scan import Memo


class BlockMeta(NamedTuple):
    """``ChunkStorageMetadata``."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class IndexMeta(NamedTuple):
    """``MetadataIndex``; ``offsets`` is None for what is no tensor."""

    fqn: str
    offsets: tuple[int, ...] | None


class StorageMeta(NamedTuple):
    """``_StorageInfo``."""

    path: str
    offset: int
    length: int
    transforms: tuple[str, ...] = ()


class PropertiesMeta(NamedTuple):
    """``TensorProperties``, of which the dtype alone matters here."""

    dtype: str


_GET = rb"(h.|j.{4})"
_NUMBER = rb"(?:K.|M..|J.{4}|\x8a\x05.{5}|\x8a\x06.{6})"
_TEXT = rb"(h.|j.{4}|\x8c.[\x20-\x7e]{1,255}\x94)"
_SHAPE = rb"(\)|(?:" + _NUMBER + rb"){1,3}[\x85-\x87]\x94|\((?:" + _NUMBER + rb"){4,8}t\x94)\x85\x94R\x94"
_SHAPED = _GET + rb"(?:" + _SHAPE + rb")?"  # a call of torch.Size, or one that was made before
_NUMBERS = re.compile(_NUMBER, re.DOTALL)
_BLOCK = re.compile(rb"\x94\}\x94\(" + _GET + _SHAPED + _GET + _SHAPED + rb"ub", re.DOTALL)
_ENTRY = re.compile(
    rb"\x94\}\x94\(" + _GET + _TEXT + _GET + rb"(?:N|K.|M..|J.{4})" + _GET + rb"(?:N|" + _SHAPED + rb")ub"
    + _GET + rb"\)\x81\x94\}\x94\(" + _GET + _TEXT + _GET + _NUMBER + _GET + _NUMBER + rb"ub",
    re.DOTALL,
)  # fmt: skip
_PROPERTIES = re.compile(rb"\x94\(" + _GET + _GET + rb"[\x88\x89]" + _GET + rb"[\x88\x89]t\x94b", re.DOTALL)
_U4 = Struct("<I").unpack_from
_I4 = Struct("<i").unpack_from
_HOME = "torch.distributed.checkpoint."
_CHUNK, _INDEX = f"{_HOME}metadata.ChunkStorageMetadata", f"{_HOME}metadata.MetadataIndex"
_INFO, _PROPERTY = f"{_HOME}filesystem._StorageInfo", f"{_HOME}metadata.TensorProperties"
_BLOCK_FORM = rb"\x94\}\x94\(KEYSIZEKEYSIZEub(?:" + _GET + rb"\)\x81)?"
_ENTRY_FORM = (
    rb"\x94\}\x94\(KEY" + _TEXT + rb"KEY(?:N|K.|M..|J.{4})KEYSIZEubKEY\)\x81\x94\}\x94\(KEY" + _TEXT
    + rb"KEY(" + _NUMBER + rb")KEY(" + _NUMBER + rb")ub(?:" + _GET + rb"\)\x81)?"
)  # fmt: skip
MAX_CACHED = 1 << 16
MAX_FORMS = 64

_Piece = bytes | None


class _Unknown(Exception):
    """The opcodes have the form, and refer to other things than torch's do."""


class Shortcut:
    """Takes runs of opcodes of one pickle.

    The first object of a run tells which numbers of the memo stand for the names and classes that all of them refer to;
    a pattern made of these takes the others.  Nothing is changed before the end of the run.
    """

    def __init__(self) -> None:
        self._shapes: dict[bytes, tuple[int, ...]] = {}
        self._texts: dict[bytes, str] = {}
        self._forms: dict[tuple[bytes | None, ...], re.Pattern[bytes]] = {}
        self._memo: Mapping[int, Value] = {}
        self._next = 0
        self._left_out = 0
        self._stored: dict[int, Value] = {}
        self._made: list[Value] = []

    def __call__(self, walk: Machine, stack: list[Value], memo: Memo) -> bool:
        """Take the opcodes behind the class on the stack; False, with nothing changed, where they are not known."""
        target = stack[-1]
        if type(target) is not Opaque or target.called:
            return False
        run = _RUNS.get(target.qualname)
        if run is None:
            return False
        first = self._next = len(memo) + memo.left_out
        self._memo, self._left_out, self._stored, self._made = memo, 0, {}, []
        end = run(self, walk.data, walk.position, target)
        if not self._made or not memo.keys().isdisjoint(range(first, self._next)):
            return False
        memo.update(self._stored)
        memo.left_out += self._left_out
        stack[-1:] = self._made
        walk.position = end
        walk.budget -= 5 * len(self._made)
        return True

    def _properties(self, data: bytes, position: int, target: Opaque) -> int:
        match = _PROPERTIES.match(data, position)
        dtype = self._memo.get(_number(match[1])) if match is not None else None
        if match is None or type(dtype) is not Opaque or not dtype.qualname.startswith("torch.") or dtype.called:
            return position
        properties = PropertiesMeta(dtype.qualname.removeprefix("torch."))
        self._made.append(properties)
        self._stored[self._next] = properties
        self._next += 2
        self._left_out += 1
        return match.end()

    def _blocks(self, data: bytes, position: int, target: Opaque) -> int:
        seen = _BLOCK.match(data, position)
        if seen is None:
            return position
        key, get, raw, second_key, second_get, second_raw = seen.groups()
        shape = get if raw is not None else second_get if second_raw is not None else None
        if not self._are((key, "offsets"), (second_key, "sizes")) or not self._is_class(shape, "torch.Size"):
            return position
        form = self._form((key, second_key), shape, b"", _BLOCK_FORM)
        return self._repeated(form, self._block, data, position, target) if form is not None else position

    def _block(self, pieces: tuple[_Piece, _Piece, _Piece, _Piece, _Piece]) -> _Piece:
        raw, get, second_raw, second_get, following = pieces
        place = self._next
        self._next += 2
        self._left_out += 1
        block = BlockMeta(self._size(raw, get), self._size(second_raw, second_get))
        self._stored[place] = block
        self._made.append(block)
        return following

    def _entries(self, data: bytes, position: int, target: Opaque) -> int:
        seen = _ENTRY.match(data, position)
        if seen is None:
            return position
        fqn_key, _, index_key, offset_key, get, raw, info, path_key, _, begin_key, length_key = seen.groups()
        shape = get if raw is not None else None
        fit = self._are((fqn_key, "fqn"), (index_key, "index"), (offset_key, "offset"), (path_key, "relative_path"))
        fit = fit and self._are((begin_key, "offset"), (length_key, "length")) and self._is_class(info, _INFO)
        if not fit or not self._is_class(shape, "torch.Size"):
            return position
        keys = (fqn_key, index_key, offset_key, info, path_key, begin_key, length_key)
        form = self._form(keys, shape, b"N|", _ENTRY_FORM)
        return self._repeated(form, self._entry, data, position, target) if form is not None else position

    def _entry(self, pieces: tuple[bytes, _Piece, _Piece, bytes, bytes, bytes, _Piece]) -> _Piece:
        text, raw, get, path, begin, length, following = pieces
        place = self._next
        self._next += 2
        self._left_out += 2
        name = self._text(text)
        offsets = None if raw is None and get is None else self._size(raw, get)
        second = self._next
        self._next += 2
        storage = StorageMeta(self._text(path), _positive(begin), _positive(length))
        index = self._stored[place] = IndexMeta(name, offsets)
        self._stored[second] = storage
        self._made += (index, storage)
        return following

    def _repeated(
        self, form: re.Pattern[bytes], take: Callable[[Any], _Piece], data: bytes, position: int, target: Opaque
    ) -> int:
        """Let ``take`` make objects of one ``form`` and one class; return where the run of them ends.

        ``take`` returns the opcode that fetches the class of the next object.  It is left to the walk where that is
        another class, or where what follows it has another form.
        """
        match = form.match(data, position)
        known: bytes | None = None
        while match is not None:
            place, left_out = self._next, self._left_out
            try:
                following = take(match.groups())
            except (_Unknown, KeyError):
                self._back(place, left_out)
                break
            position = match.end()
            if following is None:
                return position
            if following != known and self._memo.get(_number(following)) is not target:
                return position - len(following) - 2
            known = following
            match = form.match(data, position)
        return position - len(known) - 2 if known is not None else position

    def _form(
        self, keys: tuple[bytes, ...], shape: bytes | None, other: bytes, form: bytes
    ) -> re.Pattern[bytes] | None:
        """Return the pattern of objects whose names and classes have these numbers; None after too many others."""
        known = self._forms.get((*keys, shape))
        if known is None and len(self._forms) < MAX_FORMS:
            call = re.escape(shape) + _SHAPE if shape is not None else rb"(\b\B)"
            pattern = form.replace(b"SIZE", rb"(?:" + other + call + rb"|" + _GET + rb")")
            for key in keys:
                pattern = pattern.replace(b"KEY", re.escape(key).replace(b"KEY", b"K[E]Y"), 1)
            known = self._forms[*keys, shape] = re.compile(pattern, re.DOTALL)
        return known

    def _back(self, place: int, left_out: int) -> None:
        """Take back what was noted of an object that goes on in another way."""
        for number in range(place, self._next):
            self._stored.pop(number, None)
        self._next, self._left_out = place, left_out

    def _are(self, *pairs: tuple[bytes, str]) -> bool:
        return all(self._memo.get(_number(get)) == text for get, text in pairs)

    def _is_class(self, get: bytes | None, qualname: str) -> bool:
        value = self._memo.get(_number(get)) if get is not None else None
        return get is None or (type(value) is Opaque and value.qualname == qualname and not value.called)

    def _fetched(self, get: bytes) -> Value:
        number = _number(get)
        return self._stored[number] if number in self._stored else self._memo[number]

    def _size(self, raw: bytes | None, get: bytes | None) -> tuple[int, ...]:
        """Return the sizes that a call of torch.Size is made of, or those that were made before."""
        if raw is None:
            assert get is not None
            value = self._fetched(get)
            if type(value) is not tuple:
                raise _Unknown
            return value
        known = self._shapes.get(raw)
        if known is None:
            known = tuple(_number(piece) for piece in _NUMBERS.findall(raw))
            if any(number < 0 for number in known):
                raise _Unknown
            if len(self._shapes) < MAX_CACHED:
                self._shapes[raw] = known
        skipped = 1 if raw == b")" else 2
        self._left_out += skipped
        self._next += skipped
        self._stored[self._next] = known
        self._next += 1
        return known

    def _text(self, raw: bytes) -> str:
        if raw[0] != 0x8C:
            value = self._fetched(raw)
            if type(value) is not str or not value:
                raise _Unknown
            return value
        known = self._texts.get(raw)
        if known is None:
            if raw[1] != len(raw) - 3:
                raise _Unknown
            known = raw[2:-1].decode()
            if len(self._texts) < MAX_CACHED:
                self._texts[raw] = known
        self._stored[self._next] = known
        self._next += 1
        return known


_Run = Callable[[Shortcut, bytes, int, Opaque], int]
_RUNS: dict[str, _Run] = {
    _CHUNK: Shortcut._blocks,
    _INDEX: Shortcut._entries,
    _PROPERTY: Shortcut._properties,
}


def _positive(raw: bytes) -> int:
    number = _number(raw)
    if number < 0:
        raise _Unknown
    return number


def _number(raw: bytes) -> int:
    """Return the number of BININT1, BININT2, BININT, LONG1, BINGET and LONG_BINGET."""
    kind = raw[0]
    if kind == 0x4B or kind == 0x68:
        return raw[1]
    if kind == 0x4D:
        return raw[1] | raw[2] << 8
    if kind in (0x6A, 0x4A):
        value: int = (_U4 if kind == 0x6A else _I4)(raw, 1)[0]
        return value
    return int.from_bytes(raw[2:], "little", signed=True)
