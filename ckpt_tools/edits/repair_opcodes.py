"""Small changes to pickles on the level of opcodes; what is not of the usual form is refused."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.containers.base import Content
from ckpt_tools.containers.pickle_positions import opcodes
from ckpt_tools.core.source import Source
from ckpt_tools.edits.repair_base import MAX_WHOLE, CannotRepairError

_GETS = frozenset(("BINGET", "LONG_BINGET", "GET"))
_PUTS = frozenset(("BINPUT", "LONG_BINPUT", "PUT"))
_TEXTS = frozenset(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"))
_ARRAYS = frozenset(("numpy._core.multiarray _reconstruct", "numpy.core.multiarray _reconstruct"))


def pickle_of(source: Source, content: Content, path: str, *, newest: int = 3) -> tuple[str, bytes]:
    """Return the name of the record with the pickle of a torch zip, and its bytes; ``newest`` is a protocol."""
    name = f"{content.facts.get('root', '')}/data.pkl"
    record = next((record for record in reversed(content.records) if record.name == name), None)
    if record is None or record.extent.length > MAX_WHOLE:
        raise CannotRepairError(f"{path}: {name} was not found, or is too large")
    data = source.read(record.extent.offset, record.extent.length)
    known(data, path, newest)
    return name, data


def known(data: bytes, path: str, newest: int) -> None:
    """Require that a pickle is of protocol 2 or later, up to ``newest``."""
    if data[:1] != b"\x80" or not 2 <= data[1] <= newest:
        raise CannotRepairError(
            f"{path}: its pickle is of a protocol that is not edited", "load and save it with torch"
        )


def with_texts(data: bytes, texts: Mapping[str, str]) -> bytes:
    """Return a pickle with other texts in the place of some; they are memoised as before, and frames are left out."""
    made, at = bytearray(), 0
    for name, argument, start, end in _walk(data):
        if name == "FRAME":  # says only how much a reader may fetch at once
            made += data[at:start]
            at = start + 9
        elif name in _TEXTS and argument in texts:
            raw = texts[argument].encode("utf-8", "surrogatepass")
            made += data[at:start] + b"X" + len(raw).to_bytes(4, "little") + raw
            at = end
    return bytes(made + data[at:])


def without_arrays(data: bytes, values: list[list[int]]) -> bytes:
    """Return a pickle with lists of integers in the place of its numpy arrays, in their order."""
    spans = list(_arrays(data))
    if len(spans) != len(values):
        raise CannotRepairError("its numpy arrays were not found")
    lost: set[int] = set()
    made, at, number = bytearray(), 0, 0
    inside = [range(start, end) for start, end in spans]
    for name, argument, start, _ in _walk(data):
        if any(start in span for span in inside):
            if name in _PUTS:
                lost.add(int(argument))
        elif name in _GETS and int(argument) in lost:
            raise CannotRepairError("what its numpy arrays are made of is used elsewhere too")
        elif name in _PUTS:
            lost.discard(int(argument))
    for (start, end), numbers in zip(spans, values, strict=True):
        items = b"".join(opcodes(each, b"K") for each in numbers)
        made += data[at:start] + b"](" + items + b"e"
        at, number = end, number + 1
    return bytes(made + data[at:])


def _walk(data: bytes) -> Iterator[tuple[str, Any, int, int]]:
    """Yield name, argument and span of every opcode."""
    previous: tuple[str, Any, int] | None = None
    try:
        for opcode, argument, position in pickletools.genops(data):
            if previous is not None:
                yield (*previous, int(position or 0))
            previous = (opcode.name, argument, int(position or 0))
    except ValueError as error:
        raise CannotRepairError(f"its pickle cannot be followed: {error}") from None
    if previous is not None:
        yield (*previous, previous[2] + 1)


def _arrays(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the spans of numpy arrays: from the name of ``_reconstruct`` to the BUILD that gives them their bytes."""
    depths: list[int] = []
    depth, begin, floor = 0, -1, 0
    effects = {opcode.name: opcode for opcode in pickletools.opcodes}
    memo: dict[int, str] = {}
    last = ""
    for name, argument, start, end in _walk(data):
        effect = effects[name]
        named = argument if name == "GLOBAL" else memo.get(int(argument), "") if name in _GETS else ""
        if name in _PUTS and last:
            memo[int(argument)] = last
        last = named
        if name == "MARK":
            depths.append(depth)
            depth += 1
        elif pickletools.markobject in effect.stack_before:
            taken = effect.stack_before.index(pickletools.markobject)
            depth = depths.pop() - taken + len(effect.stack_after)
        else:
            depth += len(effect.stack_after) - len(effect.stack_before)
        if begin < 0 and named in _ARRAYS:
            begin, floor = start, depth
        elif begin >= 0 and name == "BUILD" and depth == floor:
            yield begin, end
            begin = -1
