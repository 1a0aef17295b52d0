"""What the opcodes of a pickle work on: a stack, a memo, and a budget that keeps their cost in proportion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckpt_tools.containers.pickle_scan import Memo, View
from ckpt_tools.model.values import Opaque, Pairs, Value

MAX_LINE = 1 << 16
MAX_KEY = 4096
MAX_CONTAINERS = 20_000_000
SAFE_INT = 1 << 60

_PLAIN_KEYS = frozenset((bool, float, type(None)))
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Broken(Exception):
    """The opcodes make no sense; ``cut`` where the bytes end too early."""

    def __init__(self, reason: str, *, cut: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cut = cut


class Refused(Exception):
    """The opcodes make sense and would cost far more than their size allows."""


class Machine:
    """One pickle, from ``start`` to its STOP opcode.

    ``position`` is where the walk stands; ``foreign`` are the opcodes met that torch's ``weights_only`` unpickler does not
    know; ``odd`` holds, by ``id``, the dictionaries that got a key which cannot
    be hashed cheaply, each with the pairs that stand for it.
    """

    def __init__(
        self,
        data: bytes,
        start: int,
        persistent: Callable[[Value], Value] | None,
        rebuild: Callable[[Opaque], Value] | None,
        view: View | None,
        plain: Mapping[str, Callable[[Machine, Opaque], Value]],
    ) -> None:
        self.data = data
        self.position = start
        self.protocol = 0
        self.globals: dict[str, int] = {}
        self.foreign: set[int] = set()
        self.odd: dict[int, tuple[dict[Any, Any], Pairs]] = {}
        self.allowed = self.budget = min(250_000 + len(data) // 4, MAX_CONTAINERS)
        self.copies = 1_000_000 + 2 * len(data)
        self._persistent = persistent
        self._rebuild = rebuild
        self._plain = plain
        self._stack: list[Any] = []
        self._under: list[list[Any]] = []
        self._memo = Memo(data, persistent, view)
        self._tuple_keys = 4096

    def copied(self, count: int) -> None:
        """Account for ``count`` elements that one opcode copies out of a value it did not write itself."""
        self.copies -= count
        if self.copies < 0:
            raise Refused("values are copied over and over")

    def make_dict(self, pairs: list[tuple[Value, Value]]) -> Value:
        """Return a dictionary of ``pairs``."""
        result: dict[Any, Any] = {}
        self._set(result, [value for pair in pairs for value in pair])
        return result

    def _cut(self) -> Broken:
        return Broken("the bytes end inside an opcode", cut=True)

    def _take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self.data):
            raise self._cut()
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def _line(self) -> bytes:
        end = self.data.find(b"\n", self.position, self.position + MAX_LINE)
        if end < 0:
            if self.position + MAX_LINE < len(self.data):
                raise Refused(f"a text of more than {MAX_LINE:,} bytes where a short line belongs")
            raise self._cut()
        line = self.data[self.position : end]
        self.position = end + 1
        return line

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            pass
        try:
            return raw.decode("utf-8", "surrogatepass").encode("utf-8", "backslashreplace").decode()
        except UnicodeDecodeError:
            raise Broken("a text is not valid UTF-8") from None

    def _lookup(self, key: Value) -> Value:
        if self._persistent is None:
            return Opaque("pickle.persistent_id", (key,), called=True)
        return self._persistent(key)

    def _call(self, target: Value, arguments: Value) -> Value:
        if not isinstance(target, Opaque):
            raise Broken(f"it calls a value of type {type(target).__name__}")
        if type(arguments) is not tuple:
            raise Broken(f"it calls {target.qualname} with a {type(arguments).__name__} for its arguments")
        name = target.qualname
        if target.called and not name.endswith("()"):
            name += "()"
        made = Opaque(name, arguments, called=True)
        plain = self._plain.get(made.qualname)
        if plain is not None:
            return plain(self, made)
        return made if self._rebuild is None else self._rebuild(made)

    def _set(self, target: Value, items: list[Value]) -> None:
        if len(items) % 2:
            raise Broken("a dictionary is given a key without a value")
        if type(target) is dict:
            pairs = self.odd.get(id(target)) if self.odd else None
            if pairs is None:
                keys = items[::2]
                if all((type(key) is str and len(key) <= MAX_KEY) or self._hashable(key) for key in keys):
                    target.update(zip(keys, items[1::2], strict=True))
                    return
                pairs = self.odd[id(target)] = (target, Pairs(list(target.items())))
            pairs[1].pairs.extend(zip(items[::2], items[1::2], strict=True))
        elif isinstance(target, Opaque):
            target.items.extend(zip(items[::2], items[1::2], strict=True))
        else:
            raise Broken(f"it sets keys of a value of type {type(target).__name__}")

    def _hashable(self, key: Value) -> bool:
        kind = type(key)
        if kind is int:
            return bool(-SAFE_INT < key < SAFE_INT)
        if kind in _PLAIN_KEYS:
            return True
        if kind is str or kind is bytes:
            return bool(len(key) <= MAX_KEY)
        if kind is tuple and len(key) <= 16 and self._tuple_keys > 0:
            self._tuple_keys -= 1
            return all(type(part) is not tuple and self._hashable(part) for part in key)
        return False

    def _extend(self, target: Value, items: list[Value]) -> None:
        if type(target) is list:
            target.extend(items)
        elif isinstance(target, Opaque):
            target.items.extend(items)
        else:
            raise Broken(f"it appends to a value of type {type(target).__name__}")

    def _refer(self, module: str, name: str) -> None:
        self.budget -= 4
        qualname = f"{_RENAMED.get(module, module)}.{name}"
        self.globals[qualname] = self.globals.get(qualname, 0) + 1
        self._stack.append(Opaque(qualname))
