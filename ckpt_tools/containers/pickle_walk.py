"""The opcodes of a pickle, walked without importing, calling or building anything.

A ``Walk`` keeps the stack and the memo of an unpickler and puts descriptions (``Opaque``) where an unpickler
would put objects.  Every opcode costs at most what its own bytes, or a copy that is counted, can pay for.
"""

from __future__ import annotations

from codecs import escape_decode
from collections.abc import Callable
from struct import Struct
from typing import Any

from ckpt_tools.containers.pickle_machine import MAX_LINE, Broken, Machine, Refused
from ckpt_tools.model.values import Opaque, Value

MAX_INT_BYTES = 1024
MAX_INT_DIGITS = 2400
MAX_MARKS = 10_000

_ONE_BYTE_FOLLOWS = b"hqK\x8c"
_KNOWN_TO_TORCH = frozenset(b"\x80c\x81bU\x8a\x8f")  # PROTO GLOBAL NEWOBJ BUILD SHORT_BINSTRING LONG1 EMPTY_SET

_U2 = Struct("<H").unpack_from
_I4 = Struct("<i").unpack_from
_U4 = Struct("<I").unpack_from
_U8 = Struct("<Q").unpack_from
_F8 = Struct(">d").unpack_from


class Walk(Machine):
    """One pickle, from ``start`` to its STOP opcode."""

    def run(self) -> Value:
        """Walk to STOP and return the value on top of the stack.

        Raises:
            Broken: not a pickle, or a damaged one.
            Refused: a pickle made to exhaust memory or time.
        """
        try:
            return self._run()
        except IndexError:
            data, at = self.data, self.position
            if at >= len(data) or (at + 1 == len(data) and data[at] in _ONE_BYTE_FOLLOWS):
                raise Broken("the bytes end before the pickle does", cut=True) from None
            raise Broken("an opcode takes more values than there are on the stack") from None
        except KeyError as error:
            raise Broken(f"it refers to the value {error.args[0]}, which was not stored before") from None

    def _run(self) -> Value:  # one chain, the most frequent opcodes first
        data, position, memo = self.data, self.position, self._memo
        size = len(data)
        stack: list[Any] = []
        under = self._under
        budget = self.budget
        whole = memo.active
        while True:
            self.position = position
            op = data[position]
            position += 1
            if op == 0x72:  # LONG_BINPUT
                if position + 4 > size:
                    raise self._cut()
                memo[_U4(data, position)[0]] = stack[-1]
                position += 4
            elif op == 0x68:  # BINGET
                stack.append(memo[data[position]])
                position += 1
            elif op == 0x4B:  # BININT1
                stack.append(data[position])
                position += 1
            elif op == 0x74:  # TUPLE
                budget -= 1
                items, stack = stack, under.pop()
                stack.append(tuple(items))
            elif op == 0x52:  # REDUCE
                budget -= 1
                arguments = stack.pop()
                stack[-1] = self._call(stack[-1], arguments)
            elif op == 0x28:  # MARK
                if whole and stack and position < size and data[position] == 0x28:
                    tensor = memo.tensor(position - 1, stack[-1])
                    if tensor is not None:
                        position, stack[-1] = tensor
                        budget -= 7
                        continue
                under.append(stack)
                if len(under) > MAX_MARKS:
                    raise Refused(f"more than {MAX_MARKS:,} marks are open at once")
                stack = []
            elif op == 0x6A:  # LONG_BINGET
                if position + 4 > size:
                    raise self._cut()
                stack.append(memo[_U4(data, position)[0]])
                position += 4
            elif op == 0x85:  # TUPLE1
                budget -= 1
                stack[-1] = (stack[-1],)
            elif op == 0x58:  # BINUNICODE
                if position + 4 > size:
                    raise self._cut()
                end = position + 4 + _U4(data, position)[0]
                if end > size:
                    raise self._cut()
                stack.append(self._text(data[position + 4 : end]))
                position = end
            elif op == 0x51:  # BINPERSID
                stack[-1] = self._lookup(stack[-1])
            elif op == 0x89:  # NEWFALSE
                stack.append(False)
            elif op == 0x29:  # EMPTY_TUPLE
                stack.append(())
            elif op == 0x71:  # BINPUT
                memo[data[position]] = stack[-1]
                position += 1
            elif op == 0x94:  # MEMOIZE
                self.foreign.add(op)
                if whole:
                    memo.complete()
                memo[len(memo) + memo.left_out] = stack[-1]
            elif op == 0x8C:  # SHORT_BINUNICODE
                self.foreign.add(op)
                end = position + 1 + data[position]
                if end > size:
                    raise self._cut()
                stack.append(self._text(data[position + 1 : end]))
                position = end
            elif op == 0x4A:  # BININT
                if position + 4 > size:
                    raise self._cut()
                stack.append(_I4(data, position)[0])
                position += 4
            elif op == 0x4D:  # BININT2
                if position + 2 > size:
                    raise self._cut()
                stack.append(_U2(data, position)[0])
                position += 2
            elif op == 0x47:  # BINFLOAT
                if position + 8 > size:
                    raise self._cut()
                stack.append(_F8(data, position)[0])
                position += 8
            elif op == 0x86:  # TUPLE2
                budget -= 1
                last = stack.pop()
                stack[-1] = (stack[-1], last)
            elif op == 0x87:  # TUPLE3
                budget -= 1
                last = stack.pop()
                middle = stack.pop()
                stack[-1] = (stack[-1], middle, last)
            elif op == 0x7D:  # EMPTY_DICT
                budget -= 1
                stack.append({})
            elif op == 0x5D:  # EMPTY_LIST
                budget -= 1
                stack.append([])
            elif op == 0x75:  # SETITEMS
                items, stack = stack, under.pop()
                self._set(stack[-1], items)
            elif op == 0x73:  # SETITEM
                last = stack.pop()
                middle = stack.pop()
                self._set(stack[-1], [middle, last])
            elif op == 0x65:  # APPENDS
                items, stack = stack, under.pop()
                self._extend(stack[-1], items)
            elif op == 0x61:  # APPEND
                last = stack.pop()
                self._extend(stack[-1], [last])
            elif op == 0x4E:  # NONE
                stack.append(None)
            elif op == 0x88:  # NEWTRUE
                stack.append(True)
            elif op == 0x2E:  # STOP
                value = stack.pop()
                self.position = position
                return value
            else:
                if op not in _KNOWN_TO_TORCH:
                    self.foreign.add(op)
                rare = _RARE.get(op)
                if rare is None:
                    raise Broken(f"there is no opcode {op:#04x}" + (f" ({chr(op)!r})" if 32 < op < 127 else ""))
                self._stack, self.position, self.budget = stack, position, budget
                rare(self)
                stack, position, budget = self._stack, self.position, self.budget
            if budget < 0:
                raise Refused(f"more than {self.allowed:,} containers in {size:,} bytes")

    # Opcodes that are rare in what torch writes ------------------------------------------------------------

    def _proto(self) -> None:
        self.protocol = self.data[self.position]
        self.position += 1

    def _frame(self) -> None:
        length = _U8(self._take(8))[0]
        if self.position + length > len(self.data):
            raise Broken(f"a frame claims {length:,} bytes, and {len(self.data) - self.position:,} follow", cut=True)

    def _global(self) -> None:
        module = self._line()
        self._refer(self._text(module), self._text(self._line()))

    def _stack_global(self) -> None:
        name = self._stack.pop()
        module = self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str) and len(name) + len(module) < MAX_LINE):
            raise Broken("it imports by something that is no name")
        self.copied(len(name) + len(module))
        self._refer(module, name)

    def _extension(self, length: int) -> None:
        code = int.from_bytes(self._take(length), "little")
        self._refer("copyreg.extension", str(code))

    def _inst(self) -> None:
        module = self._text(self._line())
        name = self._text(self._line())
        arguments, self._stack = self._stack, self._under.pop()
        self._refer(module, name)
        self._stack[-1] = self._call(self._stack[-1], tuple(arguments))

    def _obj(self) -> None:
        arguments, self._stack = self._stack, self._under.pop()
        self.budget -= 1
        target = arguments.pop(0)
        self._stack.append(self._call(target, tuple(arguments)))

    def _newobj(self) -> None:
        self.budget -= 1
        arguments = self._stack.pop()
        if arguments == () and self.shortcut is not None and self.shortcut(self, self._stack, self._memo):
            return
        self._stack[-1] = self._call(self._stack[-1], arguments, new=True)

    def _newobj_ex(self) -> None:
        self.budget -= 1
        keywords = self._stack.pop()
        arguments = self._stack.pop()
        both = (arguments, keywords) if keywords else arguments
        self._stack[-1] = self._call(self._stack[-1], both)

    def _build(self) -> None:
        state = self._stack.pop()
        self._give(self._stack[-1], state)

    def _unicode(self) -> None:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise self._cut()
        raw = self._take(end - self.position)
        self.position += 1
        try:
            text = raw.decode("raw-unicode-escape")
        except UnicodeDecodeError:
            raise Broken("a text has a broken escape") from None
        self._stack.append(text.encode("utf-8", "backslashreplace").decode())

    def _string(self) -> None:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise self._cut()
        raw = self._take(end - self.position)
        self.position += 1
        if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in b"\"'":
            raise Broken("a text is not in quotes")
        try:
            self._old_text(escape_decode(raw[1:-1])[0])
        except ValueError:
            raise Broken("a text has a broken escape") from None

    def _old_text(self, raw: bytes) -> None:
        try:
            self._stack.append(raw.decode())
        except UnicodeDecodeError:
            self.fault("a text is not valid UTF-8")
            self._stack.append(raw)

    def _sized_text(self, unpack: Callable[..., tuple[Any, ...]], width: int) -> None:
        self._stack.append(self._text(self._take(unpack(self._take(width))[0])))

    def _sized_bytes(self, unpack: Callable[..., tuple[Any, ...]], width: int) -> None:
        self._stack.append(self._take(unpack(self._take(width))[0]))

    def _binstring(self, unpack: Callable[..., tuple[Any, ...]], width: int) -> None:
        length = unpack(self._take(width))[0]
        if length < 0:
            raise Broken(f"a text of {length} bytes")
        self._old_text(self._take(length))

    def _long(self, length: int) -> None:
        if length > MAX_INT_BYTES:
            raise Refused(f"an integer of {length:,} bytes")
        if length < 0:
            raise Broken(f"an integer of {length} bytes")
        self._stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def _digits(self, line: bytes) -> int:
        if len(line) > MAX_INT_DIGITS:
            raise Refused(f"an integer of {len(line):,} digits")
        try:
            return int(line)
        except ValueError:
            raise Broken("an integer that is no number") from None

    def _int(self) -> None:
        line = self._line()
        self._stack.append({b"00": False, b"01": True}[line] if line in (b"00", b"01") else self._digits(line))

    def _float(self) -> None:
        try:
            self._stack.append(float(self._line()))
        except ValueError:
            raise Broken("a number that is none") from None

    def _collect(self) -> None:
        items, self._stack = self._stack, self._under.pop()
        self.budget -= 1
        self._stack.append(items)

    def _collect_dict(self) -> None:
        items, self._stack = self._stack, self._under.pop()
        self.budget -= 1
        result: dict[Any, Any] = {}
        self._set(result, items)
        self._stack.append(result)

    def _make_set(self, qualname: str, *, filled: bool) -> None:
        items: list[Any] = []
        if filled:
            items, self._stack = self._stack, self._under.pop()
        self.budget -= 1
        self._stack.append(Opaque(qualname, items=items, called=True))

    def _add_items(self) -> None:
        items, self._stack = self._stack, self._under.pop()
        target = self._stack[-1]
        if not isinstance(target, Opaque):
            raise Broken(f"it adds to a value of type {type(target).__name__}")
        target.items.extend(items)

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._stack = self._under.pop()

    def _pop_mark(self) -> None:
        self._stack = self._under.pop()

    def _no_buffer(self) -> None:
        raise Broken("it refers to a buffer that is kept outside of it")


_RARE: dict[int, Callable[[Walk], None]] = {
    0x80: Walk._proto,
    0x95: Walk._frame,
    0x63: Walk._global,
    0x93: Walk._stack_global,
    0x82: lambda walk: walk._extension(1),
    0x83: lambda walk: walk._extension(2),
    0x84: lambda walk: walk._extension(4),
    0x69: Walk._inst,
    0x6F: Walk._obj,
    0x81: Walk._newobj,
    0x92: Walk._newobj_ex,
    0x62: Walk._build,
    0x56: Walk._unicode,
    0x53: Walk._string,
    0x8D: lambda walk: walk._sized_text(_U8, 8),
    0x42: lambda walk: walk._sized_bytes(_U4, 4),
    0x43: lambda walk: walk._stack.append(walk._take(walk._take(1)[0])),
    0x8E: lambda walk: walk._sized_bytes(_U8, 8),
    0x96: lambda walk: walk._sized_bytes(_U8, 8),
    0x54: lambda walk: walk._binstring(_I4, 4),
    0x55: lambda walk: walk._old_text(walk._take(walk._take(1)[0])),
    0x8A: lambda walk: walk._long(walk._take(1)[0]),
    0x8B: lambda walk: walk._long(_I4(walk._take(4))[0]),
    0x49: Walk._int,
    0x4C: lambda walk: walk._stack.append(walk._digits(walk._line().removesuffix(b"L"))),
    0x46: Walk._float,
    0x50: lambda walk: walk._stack.append(walk._lookup(walk._text(walk._line()))),
    0x67: lambda walk: walk._stack.append(walk._memo[walk._digits(walk._line())]),
    0x70: lambda walk: walk._memo.__setitem__(walk._digits(walk._line()), walk._stack[-1]),
    0x6C: Walk._collect,
    0x64: Walk._collect_dict,
    0x8F: lambda walk: walk._make_set("builtins.set", filled=False),
    0x91: lambda walk: walk._make_set("builtins.frozenset", filled=True),
    0x90: Walk._add_items,
    0x30: Walk._pop,
    0x31: Walk._pop_mark,
    0x32: lambda walk: walk._stack.append(walk._stack[-1]),
    0x97: Walk._no_buffer,
    0x98: lambda walk: None if walk._stack else walk._pop(),
}
