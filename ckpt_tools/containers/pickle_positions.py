"""Where the scalars of a pickle stand in its bytes, so that an edit can change one and nothing else.

A second, structural walk over opcodes that ``pickle_walk`` has already judged: it keeps spans instead of values.
Numbers, truth values and None are never memoised, so each has bytes of its own.  What this walk gets wrong cannot
do harm: every edit is decoded again by the first walk, and must differ by exactly what was planned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct, pack
from typing import Any

from ckpt_tools.containers.pickle_scan import TENSOR
from ckpt_tools.model.values import Value

Keys = tuple[Any, ...]
"""The keys and positions that lead to a value, as Python would write them."""

_U4 = Struct("<I").unpack_from
_FIXED = {0x80: 1, 0x82: 1, 0x83: 2, 0x84: 4, 0x95: 8}
_TEXT = {0x58: 4, 0x8C: 1, 0x8D: 8}
_BYTES = {0x54: 4, 0x55: 1, 0x42: 4, 0x43: 1, 0x8E: 8, 0x96: 8}
_NUMBER = {0x4B: 1, 0x4D: 2, 0x4A: 4, 0x47: 8}
_PLAIN = {0x4E: None, 0x88: True, 0x89: False}
_PUTS = {0x71: 1, 0x72: 4}
_INT_RANGE = {0x4B: (0, 0xFF, 1), 0x4D: (0, 0xFFFF, 2), 0x4A: (-(1 << 31), (1 << 31) - 1, 4)}
_DICTS = frozenset(("collections.OrderedDict", "collections.Counter", "collections.defaultdict"))
_NUMPY = frozenset(("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar"))


class NoPositionError(Exception):
    """The bytes of a value were not found: the opcodes are none that writers of checkpoints use."""


@dataclass(slots=True, eq=False)
class Scalar:
    """The bytes ``[start, end)`` of the pickle that stand for one number, truth value, None or numpy scalar."""

    start: int
    end: int
    value: Value
    numpy: bool = False


class _Other:
    """Anything else: a class, an object, a tensor."""

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        self.name = name


_OTHER = _Other()


class Positions:
    """The structure of one pickle, from ``start`` to its STOP opcode.

    Raises:
        NoPositionError: there is an opcode that this walk does not follow.
    """

    def __init__(self, data: bytes, start: int = 0) -> None:
        self.data = data
        self.start = start
        self.end = start
        self.frames: list[tuple[int, int, int]] = []
        self._memo: dict[int, Any] = {}
        self._stack: list[tuple[Any, int]] = []
        self._under: list[list[tuple[Any, int]]] = []
        try:
            self._root = self._run()
        except (IndexError, ValueError, UnicodeDecodeError) as error:
            raise NoPositionError(f"the pickle cannot be followed: {error}") from None

    def find(self, keys: Keys) -> Scalar:
        """Return where the scalar lies that ``keys`` lead to."""
        node: Any = self._root
        for key in keys:
            known = key in node if isinstance(node, dict) else _is_place(node, key)
            if not known:
                raise NoPositionError(f"its bytes were not found: there is no {key!r} where it was looked for")
            node = node[key]
        if not isinstance(node, Scalar):
            raise NoPositionError("its bytes were not found: it is no number there")
        return node

    def rewritten(self, changes: Iterable[tuple[Scalar, bytes]]) -> bytes:
        """Return the pickle with other opcodes in the place of scalars; lengths of frames follow."""
        ordered = sorted(changes, key=lambda change: change[0].start)
        pieces: list[bytes] = []
        at = self.start
        for scalar, new in ordered:
            pieces += (self.data[at : scalar.start], new)
            at = scalar.end
        pieces.append(self.data[at : self.end])
        made = bytearray(b"".join(pieces))
        for place, begin, end in reversed(self.frames):
            growth = sum(len(new) - (s.end - s.start) for s, new in ordered if begin <= s.start < end)
            shift = sum(len(new) - (s.end - s.start) for s, new in ordered if s.start < place)
            here = place + shift - self.start
            made[here : here + 8] = (end - begin + growth).to_bytes(8, "little")
        return bytes(made)

    def _run(self) -> Any:
        data, memo = self.data, self._memo
        position = self.start
        while True:
            begin = position
            op = data[position]
            position += 1
            if op == 0x2E:
                self.end = position
                return self._stack.pop()[0]
            if op in _NUMBER:
                position += _NUMBER[op]
                self._push(Scalar(begin, position, None), begin)
            elif op in (0x68, 0x6A):  # BINGET, LONG_BINGET
                index = data[position] if op == 0x68 else _U4(data, position)[0]
                position += 1 if op == 0x68 else 4
                self._fetch(index, begin, position)
            elif op in _PUTS:
                index = data[position] if op == 0x71 else _U4(data, position)[0]
                position += _PUTS[op]
                self._store(index, begin, position)
            elif op == 0x28:  # MARK
                match = TENSOR.match(data, begin) if data[position] == 0x28 else None
                if match is not None:
                    position = match.end()
                    put = match[match.lastindex or 0]
                    self._stack[-1] = (_OTHER, begin)
                    memo[put[1] if len(put) == 2 else _U4(put, 1)[0]] = _OTHER
                else:
                    self._under.append(self._stack)
                    self._stack = []
            elif op in _TEXT:
                width = _TEXT[op]
                length = int.from_bytes(data[position : position + width], "little")
                position += width + length
                self._push(data[position - length : position].decode("utf-8", "surrogatepass"), begin)
            elif op in _BYTES:
                width = _BYTES[op]
                position += width + int.from_bytes(data[position : position + width], "little")
                self._push(_OTHER, begin)
            elif op in _PLAIN:
                self._push(Scalar(begin, position, _PLAIN[op]), begin)
            elif op in _FIXED:
                if op == 0x95:
                    length = int.from_bytes(data[position : position + 8], "little")
                    self.frames.append((position, position + 8, position + 8 + length))
                elif op != 0x80:
                    self._push(_OTHER, begin)
                position += _FIXED[op]
            else:
                position = self._rare(op, begin, position)
            if position > len(data):
                raise NoPositionError("the pickle ends inside an opcode")

    def _push(self, node: Any, start: int) -> None:
        self._stack.append((node, start))

    def _fetch(self, index: int, begin: int, end: int) -> None:
        node = self._memo.get(index, _OTHER)
        if isinstance(node, Scalar):
            node = Scalar(begin, end, None, node.numpy)
        self._push(node, begin)

    def _store(self, index: int, begin: int, end: int) -> None:
        node = self._stack[-1][0]
        if isinstance(node, Scalar) and node.end == begin:
            node.end = end
        self._memo[index] = node

    def _rare(self, op: int, begin: int, position: int) -> int:
        stack = self._stack
        if op == 0x94:  # MEMOIZE
            self._store(len(self._memo), begin, position)
        elif op in (0x49, 0x4C, 0x46, 0x53, 0x56, 0x67, 0x70, 0x50):  # lines of text
            end = self.data.index(b"\n", position)
            line = self.data[position:end]
            position = end + 1
            if op in (0x49, 0x4C, 0x46):
                self._push(Scalar(begin, position, None), begin)
            elif op == 0x67:
                self._fetch(int(line), begin, position)
            elif op == 0x70:
                self._store(int(line), begin, position)
            else:
                text = line.decode("raw-unicode-escape") if op == 0x56 else line[1:-1].decode("latin-1")
                self._push(_OTHER if op == 0x50 else text, begin)
        elif op in (0x63, 0x69):  # GLOBAL, INST
            first = self.data.index(b"\n", position)
            second = self.data.index(b"\n", first + 1)
            name = f"{self.data[position:first].decode()}.{self.data[first + 1 : second].decode()}"
            position = second + 1
            if op == 0x69:
                self._under_mark()
            self._push(_OTHER if op == 0x69 else _Other(name), begin)
        elif op == 0x93:  # STACK_GLOBAL
            name, module = stack.pop()[0], stack.pop()
            self._push(_Other(f"{module[0]}.{name}"), module[1])
        elif op in (0x8A, 0x8B):  # LONG1, LONG4
            width = 1 if op == 0x8A else 4
            position += width + int.from_bytes(self.data[position : position + width], "little")
            self._push(Scalar(begin, position, None), begin)
        else:
            self._compose(op, begin, position)
        return position

    def _under_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._under.pop()
        return [node for node, _ in items]

    def _compose(self, op: int, begin: int, end: int) -> None:
        if op in (0x5D, 0x6C, 0x29, 0x74, 0x7D, 0x64, 0x8F, 0x91):
            self._collect(op, begin)
        elif op in (0x85, 0x86, 0x87):
            count = op - 0x84
            taken = self._stack[-count:]
            del self._stack[-count:]
            self._push(tuple(node for node, _ in taken), taken[0][1])
        elif op in (0x75, 0x65, 0x90):
            items = self._under_mark()
            self._fill(op, items)
        elif op == 0x73:
            value, key = self._stack.pop()[0], self._stack.pop()[0]
            self._fill(op, [key, value])
        elif op == 0x61:
            self._fill(op, [self._stack.pop()[0]])
        elif op in (0x52, 0x81):  # REDUCE, NEWOBJ
            arguments = self._stack.pop()[0]
            target, start = self._stack.pop()
            self._push(self._call(target, arguments, start, end), start)
        elif op == 0x92:
            del self._stack[-2:]
            self._stack[-1] = (_OTHER, self._stack[-1][1])
        elif op == 0x6F:
            self._under_mark()
            self._push(_OTHER, begin)
        elif op == 0x62:
            self._stack.pop()
        elif op == 0x51:
            self._stack[-1] = (_OTHER, self._stack[-1][1])
        elif op == 0x32:
            self._stack.append(self._stack[-1])
        elif op == 0x30 and self._stack:
            self._stack.pop()
        elif op in (0x30, 0x31):
            self._stack = self._under.pop()
        else:
            raise NoPositionError(f"it has the opcode {op:#04x}, which edits do not follow")

    def _collect(self, op: int, begin: int) -> None:
        if op in (0x5D, 0x29, 0x7D, 0x8F):
            made: Any = [] if op == 0x5D else () if op == 0x29 else {} if op == 0x7D else _OTHER
        else:
            items = self._under_mark()
            made = items if op == 0x6C else tuple(items) if op == 0x74 else _OTHER
            if op == 0x64:
                made = {}
                self._pairs(made, items)
        self._push(made, begin)

    def _fill(self, op: int, items: list[Any]) -> None:
        target = self._stack[-1][0]
        if isinstance(target, list) and op in (0x65, 0x61):
            target.extend(items)
        elif isinstance(target, dict) and op in (0x75, 0x73):
            self._pairs(target, items)

    def _pairs(self, target: dict[Any, Any], items: Sequence[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, Scalar):
                key = self.number(key)
            if isinstance(key, str | int | float | None):
                target[key] = value

    def _call(self, target: Any, arguments: Any, start: int, end: int) -> Any:
        name = target.name if isinstance(target, _Other) else ""
        if name in _NUMPY:
            return Scalar(start, end, None, numpy=True)
        if name not in _DICTS or not isinstance(arguments, tuple):
            return _OTHER
        first = arguments[0] if arguments else {}
        return dict(first) if isinstance(first, dict) else {} if isinstance(first, _Other) else _OTHER

    def number(self, scalar: Scalar) -> Value:
        """Return what a scalar's opcode says."""
        op = self.data[scalar.start]
        raw = self.data[scalar.start + 1 : scalar.end]
        if op in (0x4B, 0x4D):
            return int.from_bytes(raw, "little")
        if op == 0x4A:
            return int.from_bytes(raw, "little", signed=True)
        if op == 0x47:
            return Struct(">d").unpack(raw)[0]
        if op in (0x8A, 0x8B):
            return int.from_bytes(raw[1 if op == 0x8A else 4 :], "little", signed=True)
        if op in (0x49, 0x4C):
            text = raw.strip().removesuffix(b"L")
            return {b"00": False, b"01": True}.get(text, int(text))
        return float(raw) if op == 0x46 else scalar.value


def _is_place(node: Any, key: Value) -> bool:
    return isinstance(node, list | tuple) and isinstance(key, int) and 0 <= key < len(node)


def opcodes(value: float | int, old: bytes) -> bytes:
    """Return the opcodes of a number; of the length of ``old`` wherever the number fits it."""
    if isinstance(value, float):
        return b"G" + pack(">d", value)
    if old[0] in _INT_RANGE:
        least, most, width = _INT_RANGE[old[0]]
        if least <= value <= most:
            return old[:1] + value.to_bytes(width, "little", signed=least < 0)
    for op, (least, most, width) in _INT_RANGE.items():
        if least <= value <= most:
            return bytes((op,)) + value.to_bytes(width, "little", signed=least < 0)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes((len(raw),)) + raw
