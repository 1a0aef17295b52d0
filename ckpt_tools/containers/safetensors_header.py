"""The header of a safetensors file: its JSON turned into rows, with what is wrong in each entry.

Bounds: a header above ``DENSE_FROM`` bytes must not have more than one bracket per ``DENSE`` bytes outside of strings,
so that decoding costs at most about 16 bytes of memory per byte of header (1.5 GB for the largest header allowed).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn

from ckpt_tools.containers.base import FormatError, too_deep
from ckpt_tools.containers.kinds import clipped, printable, typed
from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import DTYPE_BITS

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
_NESTED = 125
_HUGE = sys.float_info.max


Row = tuple[int, int, str, str, tuple[int, ...], int | None]
"""begin, end, name, torch's name of the dtype, shape, bytes that dtype and shape need (None: cannot be told)"""


class Faults(dict[str, list[tuple[str, str, int | None]]]):
    """What is wrong with the tensors: by kind of problem, each tensor's name, what is wrong, and where."""

    def add(self, kind: str, name: str, why: str, offset: int | None = None) -> None:
        self.setdefault(kind, []).append((name, why, offset))


@dataclass(slots=True)
class Header:
    """A decoded header.  ``loose`` counts the entries that name no range."""

    rows: list[Row]
    metadata: dict[str, str]
    dtypes: set[str]
    loose: int = 0
    faults: Faults = field(default_factory=Faults)
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


def decode(source: Source, length: int) -> Header:
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
        value = None
        nested = True
    else:
        nested = too_deep(raw, value, _NESTED + 3)
    if nested:
        raise _unreadable(
            "the header is nested too deeply to be read", "a header needs three levels", refused, offset=start
        )
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null", bool: "a truth value"}.get(type(value), "a number")
        raise _unreadable(f"the header is {kind}, not an object of tensors", refused, offset=start)
    if re.search(r"\\u[dD][89a-fA-F]", text) and (broken := _lone_surrogate(value)) is not None:
        raise _unreadable(
            "the header is not valid JSON", f"{printable(broken)} holds half of a surrogate pair", refused, offset=start
        )
    return _entries(value)


_ENTRY = re.compile(
    r'"([^"\\\x00-\x1f]*+)":\{"dtype":"([A-Z0-9_]++)","shape":\[([0-9,]*+)\],'
    r'"data_offsets":\[(0|[1-9][0-9]{0,18}),(0|[1-9][0-9]{0,18})\]\}(?:,(?=")|\}\Z)'
)
_ENTRY_MARKS = len('"":{"dtype":"","shape":[],"data_offsets":[,]},')


def _compact(text: str) -> Header | None:
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
    rows: list[Row] = []
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
    return Header(rows, metadata, {dtype for dtype, _ in shapes})


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
        return "something follows the header's JSON inside its own length", f"it begins with {printable(rest[:24])}"
    return (
        "the header is not valid JSON",
        f"{error.msg[:1].lower()}{error.msg[1:]} at character {at:,}: {printable(rest[:24])}",
    )


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


def _entries(found: dict[str, Any]) -> Header:
    """Look at every entry of a header that is unusual or wrong."""
    repeated = found.repeated if isinstance(found, _Repeating) else []
    header = Header([], {}, set())
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
    return header


def _metadata(header: Header, value: Any, repeated: bool) -> Iterator[Problem]:
    why = None
    if repeated:
        why = "it occurs more than once"
    elif value is not None and not isinstance(value, dict):
        why = f"it is {typed(value)}, not an object of texts"
    elif value:
        bad = [key for key, text in value.items() if not isinstance(text, str)]
        if bad:
            more = f", and {len(bad) - 1:,} more" if len(bad) > 1 else ""
            why = f"the value of {printable(bad[0])} is {typed(value[bad[0]])}, not a text{more}"
    if isinstance(value, dict):
        header.metadata.update((key, text) for key, text in value.items() if isinstance(text, str))
    if why:
        detail = (why, "safetensors refuses the whole file")
        yield Problem("metadata-invalid", "the header's __metadata__ is not valid", detail, Spot(key=_METADATA))


def _row(header: Header, name: str, entry: dict[str, Any]) -> Row:
    """Return an entry's row, with the faults of its dtype and shape told."""
    faults = header.faults
    (begin, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
    if dtype not in DTYPES:
        hint = f"; {dtype.upper()} is meant?" if dtype.upper() in DTYPES else ""
        faults.add("unknown-dtype", name, f"has the type {printable(dtype)}, which safetensors does not know{hint}")
        return begin, end, name, "", shape, None
    header.dtypes.add(dtype)
    known = DTYPES[dtype][0]
    product = 1
    for size in shape:
        product *= size
        if product >= _WORD:
            break
    bits = product * _BITS[dtype]
    dims = shown(shape)
    if bits >= _WORD:
        faults.add("tensor-entry-invalid", name, f"has the shape {dims}, whose size does not fit 64 bits")
        return begin, end, name, known, shape, None
    if bits % 8:
        why = f"has the shape {dims} of {dtype}, which is {bits:,} bits: not a whole number of bytes"
        faults.add("tensor-size-mismatch", name, why, begin)
        return begin, end, name, known, shape, None
    return begin, end, name, known, shape, bits // 8


def _wrong_entry(entry: Any) -> str | None:
    """Say what keeps an entry of the header from being one, None when its fields are in order."""
    if not isinstance(entry, dict):
        return f"is {typed(entry)}, not an object with dtype, shape and data_offsets"
    if isinstance(entry, _Repeating):
        known = [key for key in entry.repeated if key in ("dtype", "shape", "data_offsets")]
        if known:
            return f"has {known[0]} more than once"
    missing = [key for key in ("dtype", "shape", "data_offsets") if key not in entry]
    if missing:
        return f"has no {' and no '.join(missing)}"
    if not isinstance(entry["dtype"], str):
        return f"has {typed(entry['dtype'])} as dtype"
    for key in ("shape", "data_offsets"):
        numbers = entry[key]
        if not isinstance(numbers, list):
            return f"has {typed(numbers)} as {key}, not a list"
        for number in numbers:
            if type(number) is not int:
                return f"has {typed(number)} in its {key}"
            if not 0 <= number < _WORD:
                return f"has {clipped(number)} in its {key}, which is no size"
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


def _unreadable(message: str, *detail: str, offset: int) -> FormatError:
    return FormatError(Problem("header-unreadable", message, detail, Spot(offset=offset)))


def shown(shape: tuple[int, ...]) -> str:
    dims = ", ".join(clipped(size) for size in shape[:8])
    return f"[{dims}, ... {len(shape)} in all]" if len(shape) > 8 else f"[{dims}]"
