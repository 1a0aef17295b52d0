"""The run of opcodes that torch writes once per tensor, recognised whole.

A short cut and nothing else: the stack, and every value that can be fetched from the memo later, are the same as
after the same opcodes one by one.  What the run stores in the memo is made when it is fetched, which is all but
never.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from struct import Struct
from typing import Any

from ckpt_tools.model.values import Opaque, Value

View = Callable[[Opaque, str, str, int, int, tuple[int, ...], tuple[int, ...]], Value]
"""``(storage class, key, location, elements, offset, shape, strides)`` to a tensor, None where it is none."""

_GET = rb"(h.|j.{4})"
_PUT = rb"(q.|r.{4})"
_NUMBER = rb"(?:K.|M..|J.{4})"
_SIZES = rb"(?:\)|((?:" + _NUMBER + rb"){1,3}[\x85-\x87]|\((?:" + _NUMBER + rb"){4,8}t)" + _PUT + rb")"

# MARK MARK 'storage' class key location numel TUPLE BINPERSID offset shape strides requires_grad OrderedDict () REDUCE
# TUPLE REDUCE, with the memo's PUTs between them.
TENSOR = re.compile(
    rb"\(\(" + _GET + _GET + rb"X(.)\x00\x00\x00([0-9]{1,19})" + _PUT + _GET
    + rb"(" + _NUMBER + rb")t" + _PUT + rb"Q(" + _NUMBER + rb")" + _SIZES + _SIZES
    + rb"(\x89)" + _GET + rb"\)R" + _PUT + rb"t" + _PUT + rb"R" + _PUT,
    re.DOTALL,
)  # fmt: skip
_NUMBERS = re.compile(_NUMBER, re.DOTALL)
_U4 = Struct("<I").unpack_from
_I4 = Struct("<i").unpack_from
_PUTS = {5 * count: Struct("<" + "xI" * count).unpack for count in (4, 5, 6)}
_TARGET = "torch._utils._rebuild_tensor_v2"
MAX_CACHED = 4096


def _number(raw: bytes) -> int:
    if raw[0] == 0x4A:
        value: int = _I4(raw, 1)[0]
        return value
    return raw[1] if raw[0] == 0x4B else raw[1] | raw[2] << 8


class Memo(dict[int, Any]):
    """The memo of one pickle, which knows the tensors that were recognised whole."""

    def __init__(self, data: bytes, persistent: Callable[[Value], Value] | None, view: View | None) -> None:
        super().__init__()
        self.active = view is not None and persistent is not None
        self.left_out = 0  # numbers that a short cut passed over, and nobody asks for
        self._match = TENSOR.match
        self._data = data
        self._persistent = persistent
        self._view = view
        self._sizes: dict[bytes | None, tuple[int, ...]] = {None: ()}
        self._firsts: list[int] = []
        self._runs: list[tuple[int, int, Value, Value, Value]] = []
        self._free = 0

    def tensor(self, position: int, target: Value) -> tuple[int, Value] | None:
        """Return ``(position behind it, tensor)`` for the call of ``target`` whose arguments begin here, None where
        they have to be read one by one."""
        match = self._match(self._data, position)
        if match is None or type(target) is not Opaque or target.qualname != _TARGET or target.called:
            return None
        (
            get_word, get_kind, length, key, put_key, get_where, numel, put_id, offset, size, put_size,
            stride, put_stride, _, get_hooks, put_hooks, put_args, put_made,
        ) = match.groups()  # fmt: skip
        if length[0] != len(key) or len(put_key) != 5:
            return None
        first = _U4(put_key, 1)[0]
        puts = b"".join((put_id, put_size or b"", put_stride or b"", put_hooks, put_args, put_made))
        last = first + len(puts) // 5
        unpack = _PUTS.get(len(puts))
        if unpack is None or unpack(puts) != tuple(range(first + 1, last + 1)):
            return None
        if first < self._free or not self.keys().isdisjoint(range(first, last)):
            return None
        try:
            kind = self[get_kind[1] if len(get_kind) == 2 else _U4(get_kind, 1)[0]]
            where = self[get_where[1] if len(get_where) == 2 else _U4(get_where, 1)[0]]
            word = self[get_word[1] if len(get_word) == 2 else _U4(get_word, 1)[0]]
            hooks = self[get_hooks[1] if len(get_hooks) == 2 else _U4(get_hooks, 1)[0]]
        except KeyError:
            return None
        if word != "storage" or type(kind) is not Opaque or type(where) is not str:
            return None
        if type(hooks) is not Opaque or hooks.qualname != "collections.OrderedDict" or hooks.called:
            return None
        shape = self._sizes.get(size) or self._tuple(size)
        strides = self._sizes.get(stride) or self._tuple(stride)
        elements = numel[1] if len(numel) == 2 else _number(numel)
        start = offset[1] if len(offset) == 2 else _number(offset)
        assert self._view is not None
        made = self._view(kind, key.decode(), where, elements, start, shape, strides)
        if made is None:
            return None
        self._firsts.append(first)
        self._runs.append((last, position, word, kind, where))
        self._free = last + 1
        self[last] = made
        return match.end(), made

    def _tuple(self, raw: bytes | None) -> tuple[int, ...]:
        if raw is None:
            return ()
        numbers = tuple(_number(piece) for piece in _NUMBERS.findall(raw[:-1]))
        if len(self._sizes) < MAX_CACHED:
            self._sizes[raw] = numbers
        return numbers

    def __missing__(self, index: int) -> Value:
        at = bisect_right(self._firsts, index) - 1
        if at < 0 or index >= self._runs[at][0]:
            raise KeyError(index)
        self._recall(at)
        return dict.__getitem__(self, index)

    def complete(self) -> None:
        """Make everything that was left out."""
        for at in range(len(self._runs)):
            self._recall(at)
        self._firsts.clear()
        self._runs.clear()

    def _recall(self, at: int) -> None:
        """Store what the opcodes of one tensor store, but for what was stored over it since."""
        _, position, word, kind, where = self._runs[at]
        match = self._match(self._data, position)
        assert match is not None
        assert self._persistent is not None
        _, _, _, key, _, _, numel, _, offset, size, _, stride, _, grad, *_ = match.groups()
        text = key.decode()
        storage_id = (word, kind, text, where, _number(numel))
        shape, strides = self._tuple(size), self._tuple(stride)
        hooks: dict[Any, Any] = {}
        args = (self._persistent(storage_id), _number(offset), shape, strides, grad == b"\x88", hooks)
        stored: list[Value] = [text, storage_id]
        stored += [numbers for raw, numbers in ((size, shape), (stride, strides)) if raw is not None]
        for number, value in enumerate((*stored, hooks, args), self._firsts[at]):
            self.setdefault(number, value)
