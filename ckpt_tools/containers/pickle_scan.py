"""The one run of opcodes that torch writes once per tensor, recognised whole.

A short cut and nothing else: ``tensor_at`` does to the memo and the stack what the same opcodes do one by one,
four times as fast, or says that the bytes are something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import Struct
from typing import Any

from ckpt_tools.model.values import Opaque, Value

_GET = rb"(h.|j.{4})"
_PUT = rb"(q.|r.{4})"
_NUMBER = rb"(?:K.|M..|J.{4})"
_SIZES = rb"(?:\)()|((?:" + _NUMBER + rb"){1,3}[\x85-\x87])" + _PUT + rb")"

# ( ( 'storage' class key location numel TUPLE BINPERSID offset size stride requires_grad OrderedDict () REDUCE TUPLE
# REDUCE, with the memo's PUTs between; the first two MARKs may be the same bytes as of any other nested tuple.
_TENSOR = re.compile(
    rb"\(\(" + _GET + _GET + rb"X(.)\x00\x00\x00([0-9]{1,19})" + _PUT + _GET
    + rb"(" + _NUMBER + rb")t" + _PUT + rb"Q(" + _NUMBER + rb")" + _SIZES + _SIZES
    + rb"([\x88\x89])" + _GET + rb"\)R" + _PUT + rb"t" + _PUT + rb"R" + _PUT,
    re.DOTALL,
)  # fmt: skip
_NUMBERS = re.compile(_NUMBER, re.DOTALL)
_U4 = Struct("<I").unpack_from
_I4 = Struct("<i").unpack_from
MAX_CACHED = 4096


def _number(raw: bytes) -> int:
    if raw[0] == 0x4A:
        value: int = _I4(raw, 1)[0]
        return value
    return raw[1] if raw[0] == 0x4B else raw[1] | raw[2] << 8


class Tensors:
    """Recognises tensors in one pickle; ``sizes`` caches the few shapes that a file has."""

    def __init__(self, data: bytes, memo: dict[int, Any]) -> None:
        self._match = _TENSOR.match
        self._data = data
        self._memo = memo
        self._sizes: dict[bytes, tuple[int, ...]] = {}

    def at(
        self,
        position: int,
        target: Value,
        persistent: Callable[[Value], Value],
        rebuild: Callable[[Opaque], Value],
    ) -> tuple[int, Value] | None:
        """Return ``(position behind it, tensor)`` for the call of ``target`` whose arguments begin here."""
        match = self._match(self._data, position)
        if match is None or type(target) is not Opaque or target.called:
            return None
        memo = self._memo
        (
            word, kind, length, key, put_key, where, numel, put_id, offset, no_size, size, put_size,
            no_stride, stride, put_stride, grad, ordered, put_hooks, put_args, put_made,
        ) = match.groups()  # fmt: skip
        if length[0] != len(key):
            return None
        try:
            hooks = memo[ordered[1] if len(ordered) == 2 else _U4(ordered, 1)[0]]
            storage_id = (
                memo[word[1] if len(word) == 2 else _U4(word, 1)[0]],
                memo[kind[1] if len(kind) == 2 else _U4(kind, 1)[0]],
                key.decode(),
                memo[where[1] if len(where) == 2 else _U4(where, 1)[0]],
                numel[1] if len(numel) == 2 else _number(numel),
            )
        except KeyError:
            return None
        if type(hooks) is not Opaque or hooks.called or hooks.qualname != "collections.OrderedDict":
            return None
        sizes = strides = ()
        memo[put_key[1] if len(put_key) == 2 else _U4(put_key, 1)[0]] = storage_id[2]
        memo[put_id[1] if len(put_id) == 2 else _U4(put_id, 1)[0]] = storage_id
        storage = persistent(storage_id)
        if no_size is None:
            sizes = memo[put_size[1] if len(put_size) == 2 else _U4(put_size, 1)[0]] = self._tuple(size)
        if no_stride is None:
            strides = memo[put_stride[1] if len(put_stride) == 2 else _U4(put_stride, 1)[0]] = self._tuple(stride)
        none: dict[Any, Any] = {}
        memo[put_hooks[1] if len(put_hooks) == 2 else _U4(put_hooks, 1)[0]] = none
        start = offset[1] if len(offset) == 2 else _number(offset)
        args = (storage, start, sizes, strides, grad == b"\x88", none)
        memo[put_args[1] if len(put_args) == 2 else _U4(put_args, 1)[0]] = args
        made = rebuild(Opaque(target.qualname, args, None, [], True))
        memo[put_made[1] if len(put_made) == 2 else _U4(put_made, 1)[0]] = made
        return match.end(), made

    def _tuple(self, raw: bytes) -> tuple[int, ...]:
        known = self._sizes.get(raw)
        if known is None:
            known = tuple(_number(piece) for piece in _NUMBERS.findall(raw[:-1]))
            if len(self._sizes) < MAX_CACHED:
                self._sizes[raw] = known
        return known
