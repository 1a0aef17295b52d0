"""safetensors: eight bytes of length, a JSON header, then the tensors' bytes.

Only the length and the header are read.  The rules are those of the reference reader (``tensor.rs``); where it
stops at the first fault, this one goes on and tells each cause once.

Bounds: a header has at most ``HEADER_LIMIT`` bytes, and is not read when the file is shorter than it says.  One
above ``DENSE_FROM`` bytes must not have more than one bracket per ``DENSE`` bytes outside of strings, so that
decoding costs at most about 16 bytes of memory per byte of header (1.5 GB for the largest header allowed).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn

from ckpt_tools.containers.base import Content, FormatError
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import DTYPE_BITS, Chunk, TensorRef

HEADER_LIMIT = 100_000_000
DENSE_FROM = 4 << 20
DENSE = 12

DTYPES: dict[str, tuple[str, str]] = {
    "BOOL": ("bool", ""),
    "F4": ("float4_e2m1fn", "0.6.0"),
    "F6_E2M3": ("float6_e2m3fn", "0.6.0"),
    "F6_E3M2": ("float6_e3m2fn", "0.6.0"),
    "U8": ("uint8", ""),
    "I8": ("int8", ""),
    "F8_E5M2": ("float8_e5m2", "0.4.3"),
    "F8_E4M3": ("float8_e4m3fn", "0.4.3"),
    "F8_E8M0": ("float8_e8m0fnu", "0.6.0"),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", "0.8.0"),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", "0.8.0"),
    "I16": ("int16", ""),
    "U16": ("uint16", ""),
    "F16": ("float16", ""),
    "BF16": ("bfloat16", ""),
    "I32": ("int32", ""),
    "U32": ("uint32", ""),
    "F32": ("float32", ""),
    "C64": ("complex64", "0.7.0"),
    "F64": ("float64", ""),
    "I64": ("int64", ""),
    "U64": ("uint64", ""),
}
"""The 22 types by the format's name: torch's name, and the first version of the library that reads it."""

_BITS = {name: DTYPE_BITS[dtype] for name, (dtype, _) in DTYPES.items()}
_METADATA = "__metadata__"
_WORD = 1 << 64
_LISTED = 10
_NESTED = 125
_HUGE = sys.float_info.max

_UNCOVERED = 'safetensors refuses it: "incomplete metadata, file not fully covered"'


def read(source: Source) -> Content:
    """Return the tensors that the header describes and everything that is wrong with it.

    A tensor has a chunk only where its bytes are all there and as many as its shape needs; ``facts["absent"]``
    names those that reach past the end of the file.  Other facts: ``metadata``, ``header_length``, ``data_start``,
    ``covered`` (the length of the file that the header accounts for: what a repair of trailing bytes cuts to), and
    ``min_version`` of the library for the types used (``""`` for any).

    Raises:
        SourceError: the file could not be read, or changed while it was.
    """
    try:
        length = _header_length(source)
        header = _decode(source, length)
    except FormatError as error:
        return Content("safetensors", source.size, readable=False, problems=(error.problem,))
    return _content(source, length, header)


def _header_length(source: Source) -> int:
    size = source.size
    if size < 8:
        raise _fault(
            "file-cut-short",
            "the file is cut short, inside the length of its header",
            f"needs 8 bytes for the length alone, has {size:,}",
            'safetensors refuses it: "header too small"',
        )
    length = int.from_bytes(source.read(0, 8), "little")
    if length > HEADER_LIMIT:
        raise _fault(
            "header-too-large",
            "the length of the header is impossible",
            f"the first 8 bytes say {length:,} bytes of header; at most {HEADER_LIMIT:,} are allowed"
            f", and the file has {size:,}",
            'safetensors refuses it: "header too large"',
            at=Spot(offset=source.base),
        )
    if length == 0:
        rest = source.read(8, 4096)
        zeros = f"; zeros follow, at least {len(rest):,} bytes" if rest and not rest.strip(b"\0") else ""
        raise _fault(
            "header-unreadable",
            "the header has length zero",
            f"the first 8 bytes are zero{zeros}",
            'safetensors refuses it: "invalid JSON in header: EOF while parsing a value"',
            at=Spot(offset=source.base),
        )
    if 8 + length > size:
        where = "right after the length of its header" if size == 8 else "inside its header"
        raise _fault(
            "file-cut-short",
            f"the file is cut short, {where}",
            f"needs {8 + length:,} bytes for the header alone, has {size:,}",
            'safetensors refuses it: "invalid header length"',
            at=Spot(offset=source.base + size),
        )
    return length


_Row = tuple[int, int, str, str, tuple[int, ...], int | None]
"""begin, end, name, torch's name of the dtype, shape, bytes that dtype and shape need (None: cannot be told)"""


class _Faults(dict[str, list[tuple[str, str, int | None]]]):
    """What is wrong with the tensors: by kind of problem, each tensor's name, what is wrong, and where."""

    def add(self, kind: str, name: str, why: str, offset: int | None = None) -> None:
        self.setdefault(kind, []).append((name, why, offset))


@dataclass(slots=True)
class _Header:
    """A decoded header.  ``loose`` counts the entries that name no range, or lost theirs to one of the same name."""

    rows: list[_Row]
    metadata: dict[str, str]
    dtypes: set[str]
    loose: int = 0
    faults: _Faults = field(default_factory=_Faults)
    problems: list[Problem] = field(default_factory=list)


class _Repeating(dict[str, Any]):
    """A JSON object that named a key more than once."""

    __slots__ = ("repeated",)
    repeated: list[str]


class _NotJsonError(ValueError):
    """Something that Python's decoder would let through and JSON does not have."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    repeating = _Repeating(pairs)
    repeating.repeated = []
    for key, _ in pairs:
        if key in seen:
            repeating.repeated.append(key)
        seen.add(key)
    return repeating


def _constant(token: str) -> NoReturn:
    raise _NotJsonError(f"the token {token} is not JSON")


def _whole(token: str) -> int | float:
    return -0.0 if token == "-0" else int(token)


def _decode(source: Source, length: int) -> _Header:
    raw = source.read(8, length)
    start = source.base + 8
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(
            "the header is not UTF-8", f"byte {start + error.start:,} of the file is 0x{raw[error.start]:02x}",
            'safetensors refuses it: "invalid UTF-8 in header"', offset=start + error.start,
        ) from None  # fmt: skip
    header = _compact(text)
    if header is not None:
        return header
    _refuse_dense(raw, start)
    decoder = json.JSONDecoder(
        object_pairs_hook=_object, parse_constant=_constant, parse_int=_whole if b"-0" in raw else int
    )
    refused = 'safetensors refuses it: "invalid JSON in header"'
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise _unreadable(*_json_fault(text, error), refused, offset=start + len(text[: error.pos].encode())) from None
    except _NotJsonError as error:
        raise _unreadable("the header is not valid JSON", str(error), refused, offset=start) from None
    except ValueError:
        raise _unreadable(
            "the header is not valid JSON", "it holds an integer of thousands of digits", refused, offset=start
        ) from None
    except RecursionError:
        raise _unreadable(
            "the header is nested too deeply to be read", "a header needs three levels", refused, offset=start
        ) from None
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null", bool: "a truth value"}.get(type(value), "a number")
        raise _unreadable(f"the header is {kind}, not an object of tensors", refused, offset=start)
    if re.search(r"\\u[dD][89a-fA-F]", text) and (broken := _lone_surrogate(value)) is not None:
        raise _unreadable(
            "the header is not valid JSON", f"{_quoted(broken)} holds half of a surrogate pair", refused, offset=start
        )
    return _entries(value)


_ENTRY = re.compile(
    r'"([^"\\\x00-\x1f]*+)":\{"dtype":"([A-Z0-9_]++)","shape":\[([0-9,]*+)\],'
    r'"data_offsets":\[(0|[1-9][0-9]{0,18}),(0|[1-9][0-9]{0,18})\]\}(?:,(?=")|\}\Z)'
)
_ENTRY_MARKS = len('"":{"dtype":"","shape":[],"data_offsets":[,]},')


def _compact(text: str) -> _Header | None:
    """Read a header as writers make it, several times faster than by way of JSON; None when it is any different."""
    text = text.rstrip(" ")
    metadata: Any = {}
    at = 1
    if text.startswith('{"__metadata__":{'):
        try:
            metadata, at = json.JSONDecoder().raw_decode(text, 16)
        except (ValueError, RecursionError):
            return None
        plain = all(isinstance(value, str) for value in metadata.values()) and "\\u" not in text[:at]
        if not plain or text[at : at + 1] != ",":
            return None
        at += 1
    elif not text.startswith('{"'):
        return None
    rows: list[_Row] = []
    names: set[str] = set()
    shapes: dict[tuple[str, str], tuple[str, tuple[int, ...], int] | None] = {}
    for name, dtype, dims, begin, end in _ENTRY.findall(text, at):
        kind = dtype, dims
        if kind not in shapes:
            shapes[kind] = _plain_shape(dtype, dims)
        known = shapes[kind]
        if known is None:
            return None
        at += len(name) + len(dtype) + len(dims) + len(begin) + len(end) + _ENTRY_MARKS
        names.add(name)
        rows.append((int(begin), int(end), name, *known))
    if at != len(text) or len(names) != len(rows) or _METADATA in names:
        return None
    return _Header(rows, metadata, {dtype for dtype, _ in shapes})


def _plain_shape(dtype: str, dims: str) -> tuple[str, tuple[int, ...], int] | None:
    """Return torch's dtype, the shape and the bytes it needs, None when anything about it is unusual."""
    pieces = dims.split(",") if dims else []
    if dtype not in DTYPES or any(not piece or len(piece) > 19 or (piece[0] == "0" != piece) for piece in pieces):
        return None
    shape = tuple(map(int, pieces))
    bits = prod(shape) * _BITS[dtype]
    usual = bits % 8 == 0 and (0 < bits < _WORD or sum(map(int.bit_length, shape)) < 60)
    return (DTYPES[dtype][0], shape, bits // 8) if usual else None


def _json_fault(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    at = error.pos
    if text.startswith("\ufeff"):
        return "the header begins with a byte order mark", "JSON has none"
    if at >= len(text.rstrip(" \t\r\n")):
        return "the header ends too early to be JSON", f"its last byte is number {len(text.encode()):,}"
    rest = text[at:]
    if error.msg == "Extra data":
        if not rest.strip("\0"):
            return "the header is followed by zero bytes inside its own length", f"{len(rest):,} of them"
        return "something follows the header's JSON inside its own length", f"it begins with {_quoted(rest[:24])}"
    return "the header is not valid JSON", f"{_lower(error.msg)} at character {at:,}: {_quoted(rest[:24])}"


def _refuse_dense(raw: bytes, start: int) -> None:
    """Refuse a large header made of brackets, which would cost many times its size in memory."""
    if len(raw) <= DENSE_FROM or (raw.count(b"{") + raw.count(b"[")) * DENSE <= len(raw):
        return
    bare = re.sub(rb'"(?:[^"\\]++|\\.)*+"', b"", raw, flags=re.DOTALL)
    openings = bare.count(b"{") + bare.count(b"[")
    if openings * DENSE > len(raw):
        raise _unreadable(
            "the header is made of brackets, not of tensors",
            f"{openings:,} objects and lists in {len(raw):,} bytes; it was not decoded, to save memory",
            offset=start,
        )


def _lone_surrogate(value: dict[str, Any]) -> str | None:
    for key, child in value.items():
        texts: list[Any] = [key]
        if key == _METADATA and isinstance(child, dict):
            texts += [*child.keys(), *child.values()]
        for text in texts:
            if isinstance(text, str) and _is_broken(text):
                return text
    return None


def _content(source: Source, length: int, header: _Header) -> Content:
    data_start = 8 + length
    room = source.size - data_start
    base = source.base + data_start
    path = source.name
    rows = header.rows
    rows.sort(key=_position)
    walk = _Walk(rows, room, header.loose, header.faults)
    needed = walk.run()
    problems = [
        *header.problems,
        *_summaries(header.faults, base),
        *_ending(walk, source.base, data_start, source.size),
    ]
    wrong = walk.unreadable
    tensors: dict[str, TensorRef] = {}
    for begin, end, name, dtype, shape, need in rows:
        whole = end <= room and end - begin == need and name not in wrong
        chunks = (Chunk((0,) * len(shape), shape, Extent(path, base + begin, end - begin)),) if whole else ()
        if dtype:
            tensors[name] = TensorRef(name, dtype, shape, chunks)
    facts = {
        "metadata": header.metadata,
        "header_length": length,
        "data_start": data_start,
        "covered": data_start + needed,
        "min_version": max((DTYPES[dtype][1] for dtype in header.dtypes), default=""),
        "absent": tuple(row[2] for row in rows if row[1] > room),
    }
    return Content("safetensors", source.size, tensors=tensors, facts=facts, problems=tuple(problems))


def _position(row: _Row) -> tuple[int, int]:
    return row[0], row[1]


def _entries(found: dict[str, Any]) -> _Header:
    """Look at every entry of a header that is unusual or wrong."""
    repeated = found.repeated if isinstance(found, _Repeating) else []
    header = _Header([], {}, set())
    header.problems += _metadata(header, found.pop(_METADATA, None), _METADATA in repeated)
    for name, entry in found.items():
        why = _wrong_entry(entry)
        if why:
            header.faults.add("tensor-entry-invalid", name, why)
            header.loose += 1
        else:
            header.rows.append(_row(header, name, entry))
    for name in repeated:
        if name != _METADATA:
            why = "is named more than once; safetensors keeps the last and says nothing"
            header.faults.add("duplicate-tensor", name, why)
            header.loose += 1
    return header


def _metadata(header: _Header, value: Any, repeated: bool) -> Iterator[Problem]:
    why = None
    if repeated:
        why = "it occurs more than once"
    elif value is not None and not isinstance(value, dict):
        why = f"it is {_typed(value)}, not an object of texts"
    elif value:
        bad = [key for key, text in value.items() if not isinstance(text, str)]
        if bad:
            more = f", and {len(bad) - 1:,} more" if len(bad) > 1 else ""
            why = f"the value of {_quoted(bad[0])} is {_typed(value[bad[0]])}, not a text{more}"
    if isinstance(value, dict):
        header.metadata.update((key, text) for key, text in value.items() if isinstance(text, str))
    if why:
        detail = (why, "safetensors refuses the whole file")
        yield Problem("metadata-invalid", "the header's __metadata__ is not valid", detail, Spot(key=_METADATA))


def _row(header: _Header, name: str, entry: dict[str, Any]) -> _Row:
    """Return an entry's row, with the faults of its dtype and shape told."""
    faults = header.faults
    (begin, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
    if dtype not in DTYPES:
        hint = f"; {dtype.upper()} is meant?" if dtype.upper() in DTYPES else ""
        faults.add("unknown-dtype", name, f"has the type {_quoted(dtype)}, which safetensors does not know{hint}")
        return begin, end, name, "", shape, None
    header.dtypes.add(dtype)
    known = DTYPES[dtype][0]
    product = 1
    for size in shape:
        product *= size
        if product >= _WORD:
            break
    bits = product * _BITS[dtype]
    shown = _shown(shape)
    if bits >= _WORD:
        faults.add("tensor-entry-invalid", name, f"has the shape {shown}, whose size does not fit 64 bits")
        return begin, end, name, known, shape, None
    if bits % 8:
        why = f"has the shape {shown} of {dtype}, which is {bits:,} bits: not a whole number of bytes"
        faults.add("tensor-size-mismatch", name, why, begin)
        return begin, end, name, known, shape, None
    return begin, end, name, known, shape, bits // 8


def _wrong_entry(entry: Any) -> str | None:
    """Say what keeps an entry of the header from being one, None when its fields are in order."""
    if not isinstance(entry, dict):
        return f"is {_typed(entry)}, not an object with dtype, shape and data_offsets"
    if isinstance(entry, _Repeating):
        known = [key for key in entry.repeated if key in ("dtype", "shape", "data_offsets")]
        if known:
            return f"has {known[0]} more than once"
    missing = [key for key in ("dtype", "shape", "data_offsets") if key not in entry]
    if missing:
        return f"has no {' and no '.join(missing)}"
    if not isinstance(entry["dtype"], str):
        return f"has {_typed(entry['dtype'])} as dtype"
    for key in ("shape", "data_offsets"):
        numbers = entry[key]
        if not isinstance(numbers, list):
            return f"has {_typed(numbers)} as {key}, not a list"
        for number in numbers:
            if type(number) is not int:
                return f"has {_typed(number)} in its {key}"
            if not 0 <= number < _WORD:
                return f"has {_clipped(number)} in its {key}, which is no size"
    if len(entry["data_offsets"]) != 2:
        return f"has {len(entry['data_offsets']):,} data_offsets, not 2"
    return _wrong_extra(entry) if len(entry) > 3 else None


def _wrong_extra(entry: dict[str, Any]) -> str | None:
    """Say what in the further fields of an entry stops the reference reader, which ignores them but decodes them."""
    level: list[Any] = [child for key, child in entry.items() if key not in ("dtype", "shape", "data_offsets")]
    texts: list[str] = list(entry)
    for _ in range(_NESTED):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                texts += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                texts.append(value)
            elif isinstance(value, int | float) and not -_HUGE <= value <= _HUGE:
                return "has a number that is out of range in a further field"
        level = below
        if not level:
            break
    if any(isinstance(value, dict | list) for value in level):
        return f"has a further field nested more than {_NESTED} levels deep"
    return "has half of a surrogate pair in a further field" if any(map(_is_broken, texts)) else None


def _is_broken(text: str) -> bool:
    """Say whether a text holds half of a surrogate pair, which no UTF-8 can hold."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


class _Walk:
    """Goes over the ranges in order of position and tells each fault once.

    After a fault several places are right for the next tensor: where this one's range ends, and where it would
    end if its begin, or its end, were the wrong number.  ``spare`` counts entries that named no range, each of
    which accounts for one gap.
    """

    def __init__(self, rows: list[_Row], room: int, spare: int, faults: _Faults) -> None:
        self.rows = rows
        self.room = room
        self.spare = spare
        self.faults = faults
        self.unreadable: set[str] = set()
        self.clean_end = 0
        self.end = 0
        self.first_absent: _Row | None = None
        self.absent = 0
        self._cursor = 0
        self._others: frozenset[int] = frozenset()
        self._owner = ""
        self._faulty: list[tuple[str, _Row, str]] = []
        self._gaps: list[tuple[_Row, int, int]] = []

    def run(self) -> int:
        """Record the faults and return the number of data bytes that the header accounts for."""
        cursor = 0
        room = self.room
        for row in self.rows:
            begin, end, name, _, _, need = row
            if begin == cursor and end - begin == need and not self._others:
                cursor = end
                if end <= room:
                    self.clean_end = end
                else:
                    self._note_absent(row)
            else:
                self._cursor = cursor
                self._examine(row)
                if self._cursor == cursor and end < cursor:
                    name = self._owner
                cursor = self._cursor
            self._owner = name
            self.end = max(self.end, end)
        self._cursor = cursor
        self._settle()
        return self.end

    def _note_absent(self, row: _Row) -> None:
        self.clean_end = max(self.clean_end, row[1])
        if row[1] > self.room:
            self.first_absent = self.first_absent or row
            self.absent += 1

    def _examine(self, row: _Row) -> None:
        begin, end, name, _, shape, need = row
        before = self._cursor
        if end < begin:
            why = f"ends at {end:,}, before it begins at {begin:,}"
            self.faults.add("tensor-entry-invalid", name, why, begin)
            self.unreadable.add(name)
            self._others = frozenset({before, before + (need or 0), begin, begin + (need or 0)})
            return
        span = end - begin
        fits = need is None or span == need
        placed = begin == before or begin in self._others
        self._others = frozenset()
        if fits and placed:
            self._cursor = end
            self._note_absent(row)
            return
        misfit = "" if fits else f"has {span:,} bytes, its shape {_shown(shape)} needs {need:,}"
        if placed:
            self._faulty.append(("tensor-size-mismatch", row, misfit))
        elif begin > before:
            self._gaps.append((row, before, begin - before))
        else:
            other = f"`{_quoted(self._owner)}`" if self._owner else "the tensor before it"
            why = f"begins at {begin:,}, inside {other}, which ends at {before:,}"
            self._faulty.append(("tensor-overlap", row, "; ".join(filter(None, (why, misfit)))))
        self._others = frozenset({end, begin + (need or span), before + (need or span)})
        self._cursor = max(before, end)

    def _settle(self) -> None:
        """Decide, with all ranges known, which faults are the causes."""
        limit = max(self.room, self.clean_end)
        moved = [row[5] or row[1] - row[0] for kind, row, _ in self._faulty if kind == "tensor-overlap"]
        gaps = []
        for row, start, length in self._gaps:
            if row[1] > limit:
                self._faulty.append(("tensor-out-of-range", row, ""))
                moved.append(row[5] or row[1] - row[0])
            else:
                gaps.append((row, start, length))
        for row, start, length in gaps:
            if length in moved:
                moved.remove(length)
            elif self.spare:
                self.spare -= 1
            else:
                before = "before it" if start else "before the first tensor"
                why = f"begins at {row[0]:,}; the {length:,} bytes {before} belong to no tensor"
                self.faults.add("tensor-gap", row[2], why, start)
        for kind, row, why in sorted(self._faulty, key=lambda fault: fault[1][:2]):
            begin, end, name, _, _, need = row
            if end > limit:
                kind = "tensor-out-of-range"
                past = f"ends at {end:,}, past the {self.room:,} bytes of data"
                misfit = need is not None and need != end - begin
                why = f"{past}; its shape needs {need:,} bytes, its range has {end - begin:,}" if misfit else past
            self.faults.add(kind, name, why, begin)
            if kind == "tensor-size-mismatch" or end - begin != need:
                self.unreadable.add(name)
        self.accounted = self.room in self._others or any(end > limit for _, end, *_ in self.rows)


def _ending(walk: _Walk, base: int, data_start: int, size: int) -> Iterator[Problem]:
    """Compare where the data should end with where the file ends."""
    if walk.clean_end > walk.room:
        row = walk.first_absent
        assert row is not None
        part = "only partly there" if row[0] < walk.room else "not there"
        whole = len(walk.rows)
        are = "is" if walk.absent == 1 else "are"
        yield Problem(
            "file-cut-short",
            "the file is cut short",
            (
                f"needs {data_start + walk.clean_end:,} bytes, has {size:,}",
                f"{walk.absent:,} of {whole:,} tensors {are} incomplete; the first, `{_quoted(row[2])}`, is {part}",
                _UNCOVERED,
            ),
            Spot(tensor=row[2], offset=base + size),
        )
        return
    extra = walk.room - walk.end
    if extra <= 0 or walk.accounted or walk.spare:
        return
    covered = data_start + walk.end
    noun = "1 byte follows" if extra == 1 else f"{extra:,} bytes follow"
    yield Problem(
        "trailing-bytes",
        f"{noun} the data",
        (f"the header accounts for {covered:,} bytes, the file has {size:,}", _UNCOVERED),
        Spot(offset=base + covered),
        help="`ckpt repair` can cut them off",
    )


_MESSAGES: tuple[tuple[str, str, str], ...] = (
    ("duplicate-tensor", "is named more than once", "tensors are named more than once"),
    ("tensor-entry-invalid", "has no valid entry in the header", "tensors have no valid entry in the header"),
    ("unknown-dtype", "has an unknown type", "tensors have an unknown type"),
    ("tensor-size-mismatch", "does not fit its bytes", "tensors do not fit their bytes"),
    ("tensor-overlap", "overlaps another", "tensors overlap others"),
    ("tensor-gap", "has a gap before it", "tensors have a gap before them"),
    ("tensor-out-of-range", "lies past the end of the file", "tensors lie past the end of the file"),
)


def _summaries(faults: _Faults, data_start: int) -> Iterator[Problem]:
    """Yield one problem per kind of fault, naming the first ten tensors."""
    for kind, one, many in _MESSAGES:
        found = faults.get(kind)
        if not found:
            continue
        first, _, place = found[0]
        spot = Spot(tensor=first, offset=None if place is None else data_start + place)
        detail = [f"`{_quoted(name)}` {why}" for name, why, _ in found[:_LISTED]]
        if len(found) > _LISTED:
            detail.append(f"... and {len(found) - _LISTED:,} more")
        message = f"tensor `{_quoted(first)}` {one}" if len(found) == 1 else f"{len(found):,} {many}"
        if kind != "duplicate-tensor":
            detail.append("safetensors refuses the whole file")
        yield Problem(kind, message, tuple(detail), spot)


def _fault(kind: str, message: str, *detail: str, at: Spot = Spot()) -> FormatError:  # noqa: B008
    return FormatError(Problem(kind, message, detail, at))


def _unreadable(message: str, *detail: str, offset: int) -> FormatError:
    return _fault("header-unreadable", message, *detail, at=Spot(offset=offset))


def _quoted(text: str, limit: int = 200) -> str:
    """Return a name of the file as one printable line."""
    short = text if len(text) <= limit else f"{text[:limit]}..."
    return short if short.isprintable() else short.encode("unicode_escape").decode("ascii")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _typed(value: Any) -> str:
    """Say what a JSON value is, with the value where it is short."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return f"the number {_clipped(value)}"
        case float():
            return f"the number {value!r}"
        case str():
            return f'the text "{_quoted(value, 40)}"'
        case list():
            return "a list"
        case _:
            return "an object"


def _clipped(number: int) -> str:
    return f"{number:,}" if abs(number) < 10**30 else "a number of more than 30 digits"


def _shown(shape: tuple[int, ...]) -> str:
    dims = ", ".join(_clipped(size) for size in shape[:8])
    return f"[{dims}, ... {len(shape)} in all]" if len(shape) > 8 else f"[{dims}]"
