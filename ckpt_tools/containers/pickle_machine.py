"""What the opcodes of a pickle work on: a stack, a memo, and a budget that keeps their cost in proportion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckpt_tools.containers.numpy_values import numpy_call_fault, numpy_fault
from ckpt_tools.containers.pickle_scan import Memo, View
from ckpt_tools.model.values import Opaque, Pairs, Value

MAX_LINE = 1 << 16
MAX_KEY = 4096
MAX_CONTAINERS = 20_000_000
SAFE_INT = 1 << 60

MAX_FAULTS = 10

_PLAIN_KEYS = frozenset((bool, float, type(None)))
_NO_KEYS = frozenset((list, dict, Pairs))
_DICTS = ("collections.OrderedDict", "collections.Counter")
_FUNCTIONS = ("torch._utils._rebuild_", "torch._tensor._rebuild_", "_codecs.encode", "torch.serialization._get_layout")
_BUILTINS = frozenset(
    (
        *("builtins.set", "builtins.complex", "builtins.bytearray"),
        *("torch.Tensor", "torch.nn.parameter.Parameter", "torch.device", "torch.serialization._get_layout"),
    )
)
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}

Shortcut = Callable[["Machine", list[Value], Memo], bool]


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

    ``position`` is where the walk stands; ``foreign`` are the opcodes met that torch's ``weights_only`` unpickler
    does not know; ``odd`` holds, by ``id``, the dictionaries that got a key which cannot be hashed cheaply, each with
    the pairs that stand for it; ``ordered`` are those that are more than plain dictionaries.  ``faults`` are things
    that can be followed here and that no loader does, each with its first position.  ``shortcut`` may take the opcodes
    behind a NEWOBJ without arguments at once.
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
        self.shortcut: Shortcut | None = None
        self.globals: dict[str, int] = {}
        self.foreign: set[int] = set()
        self.odd: dict[int, tuple[dict[Any, Any], Pairs]] = {}
        self.ordered: dict[int, Value] = {}
        self.faults: dict[str, int] = {}
        self.allowed = self.budget = min(250_000 + len(data) // 4, MAX_CONTAINERS)
        self.copies = 1_000_000 + 2 * len(data)
        self._persistent = persistent
        self._rebuild = rebuild
        self._plain = plain
        self._stack: list[Any] = []
        self._under: list[list[Any]] = []
        self._memo = Memo(data, persistent, view)
        self._tuple_keys = 4096

    def fault(self, text: str) -> None:
        """Note that a loader stops here."""
        if len(self.faults) < MAX_FAULTS:
            self.faults.setdefault(text, self.position)

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

    def _call(self, target: Value, arguments: Value, *, new: bool = False) -> Value:
        if not isinstance(target, Opaque):
            raise Broken(f"it calls a value of type {type(target).__name__}")
        if type(arguments) is not tuple:
            arguments = self._unpacked(target, arguments)
        name = target.qualname
        if target.called and not name.endswith("()"):
            if name in _BUILTINS or type(target) is not Opaque:
                self.fault(f"it calls a value that {name} made")
            name += "()"
        if new and name.startswith(_FUNCTIONS):
            self.fault(f"it makes an object of the function {name}")
        made = Opaque(name, arguments, called=True)
        plain = self._plain.get(made.qualname)
        if plain is not None:
            return plain(self, made)
        if name.startswith("numpy"):
            self._doubt(numpy_call_fault(made))
        return made if self._rebuild is None else self._rebuild(made)

    def _doubt(self, why: str | None) -> None:
        if why is not None:
            self.fault(why)

    def _unpacked(self, target: Opaque, arguments: Value) -> tuple[Value, ...]:
        """Return what Python's ``*arguments`` gives, which torch uses where pickle itself wants a tuple."""
        if type(arguments) is Opaque and arguments.qualname == "builtins.set" and arguments.called:
            arguments = arguments.items
        if type(arguments) not in (list, dict, str) or id(arguments) in self.odd:
            raise Broken(f"it calls {target.qualname} with a {type(arguments).__name__} for its arguments")
        self.copied(len(arguments))
        return tuple(arguments)

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
                if any(_unhashable(key) for key in keys):
                    self.fault("a dictionary gets a key that cannot be one")
            pairs[1].pairs.extend(zip(items[::2], items[1::2], strict=True))
        elif isinstance(target, Opaque):
            if target.qualname not in _DICTS:
                self._plain_object(target, "keys")
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
            self._plain_object(target, "elements")
            target.items.extend(items)
        else:
            raise Broken(f"it appends to a value of type {type(target).__name__}")

    def _plain_object(self, target: Opaque, what: str) -> None:
        """Note a fault where ``target`` is known to be nothing that takes keys, elements or a state."""
        if not target.called:
            self.fault(f"{target.qualname} itself gets {what}")
        elif target.qualname in _BUILTINS or type(target) is not Opaque:
            self.fault(f"a value that {target.qualname} made gets {what}")

    def _give(self, target: Value, state: Value) -> None:
        """Give an object its state."""
        if type(target) is dict:
            if id(target) not in self.ordered or type(state) is not dict:
                self.fault(f"a dictionary gets a state of type {type(state).__name__}")
        elif isinstance(target, Opaque):
            if state or not target.called:
                self._plain_object(target, "a state")
            target.state = state
            if target.called and target.qualname.startswith("numpy"):
                self._doubt(numpy_fault(target))
        elif isinstance(target, list | str | bytes | tuple | int | float | complex | None):
            raise Broken(f"it gives a value of type {type(target).__name__} a state")
        elif type(state) is not tuple:  # a tensor: files of very old versions
            self.fault(f"a tensor gets a state of type {type(state).__name__}")

    def _refer(self, module: str, name: str) -> None:
        self.budget -= 4
        qualname = f"{_RENAMED.get(module, module)}.{name}"
        self.globals[qualname] = self.globals.get(qualname, 0) + 1
        self._stack.append(Opaque(qualname))


def _unhashable(key: Value) -> bool:
    if type(key) is tuple:
        return any(type(part) in _NO_KEYS for part in key)
    return type(key) in _NO_KEYS or (type(key) is Opaque and key.called and key.qualname == "builtins.set")
