"""Objects of a pickle that are harmless and come out plain, and what Python says of calls that make none."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_tools.containers.pickle_machine import Machine
from ckpt_tools.model.values import Opaque, Pairs, Value

_NUMBERS = (int, float, bool, complex)


def _as_dict(walk: Machine, made: Opaque) -> Value:
    ordered, counter = made.qualname.endswith("OrderedDict"), made.qualname.endswith("Counter")
    arguments = made.args[1:] if made.qualname.endswith("defaultdict") else made.args
    if len(arguments) > 1 and (ordered or counter):
        walk.fault(f"{made.qualname} is called with {len(arguments)} values")
    content = _elements(walk, arguments[0]) if arguments else None
    result: Value = made
    if not arguments or (content is None and counter):
        result = {}
    elif type(content) is dict and id(content) not in walk.odd:
        walk.copied(len(content))
        result = dict(content)
    elif type(content) is list and counter and content:
        pass
    elif type(content) is list:
        walk.copied(2 * len(content))
        if all(type(pair) in (list, tuple) and len(pair) == 2 for pair in content):
            result = walk.make_dict([(pair[0], pair[1]) for pair in content])
        elif ordered and any(_no_pair(pair) for pair in content):
            walk.fault(f"{made.qualname} is made of what are no pairs")
    elif content is None or isinstance(content, _NUMBERS):
        walk.fault(f"{made.qualname} is made of a value of type {type(content).__name__}")
    if (ordered or counter) and type(result) is dict:
        walk.ordered[id(result)] = result
    return result


def _elements(walk: Machine, value: Value) -> Value:
    """Return the elements of a list, a tuple, a text or a set as a list; anything else as it is."""
    if type(value) is Opaque and value.called and value.qualname == "builtins.set":
        value = value.items
    if isinstance(value, tuple | list | str):
        walk.copied(len(value))
        return list(value)
    return value


def _no_pair(value: Value) -> bool:
    if isinstance(value, str | list | tuple | dict):
        return len(value) != 2
    return value is None or isinstance(value, _NUMBERS) or (isinstance(value, Opaque) and not value.called)


def _as_set(walk: Machine, made: Opaque) -> Value:
    content = _elements(walk, made.args[0]) if made.args else []
    if len(made.args) > 1 or content is None or isinstance(content, _NUMBERS):
        walk.fault(f"{made.qualname} is made of what it cannot be made of")
        return made
    if type(content) is dict:
        content = list(content)
    if type(content) is not list:
        return made
    if any(type(part) in (list, dict, Pairs) for part in content):
        walk.fault(f"{made.qualname} gets an element that cannot be one")
    return Opaque(made.qualname, items=content, called=True)


def _as_bytes(walk: Machine, made: Opaque) -> Value:
    if not 1 <= len(made.args) <= 3 or not all(isinstance(part, str) for part in made.args):
        walk.fault("_codecs.encode is called with what is no text")
        return made
    if len(made.args) != 2 or made.args[1] not in ("latin1", "latin-1"):
        if len(made.args) > 1 and not _is_encoding(made.args[1]):
            walk.fault("_codecs.encode is asked for an encoding that there is not")
        return made
    walk.copied(len(made.args[0]) // 8)
    try:
        return made.args[0].encode("latin-1")
    except UnicodeEncodeError:
        walk.fault("_codecs.encode is called with a text that is no latin-1")
        return made


def _is_encoding(name: str) -> bool:
    plain = name.lower().replace("_", "-")
    return plain.startswith(("utf", "latin", "ascii", "iso", "cp", "us-ascii", "windows", "raw-unicode", "unicode"))


def _as_raw(walk: Machine, made: Opaque) -> Value:
    first = made.args[0] if made.args else b""
    if len(made.args) > 1 and isinstance(first, str):
        return made
    if len(made.args) > 1 or first is None or isinstance(first, str | float | complex):
        walk.fault(f"{made.qualname} is made of what it cannot be made of")
    return first if isinstance(first, bytes) else made


def _as_complex(walk: Machine, made: Opaque) -> Value:
    if len(made.args) == 2 and all(type(part) is float for part in made.args):
        return complex(*made.args)
    plain = all(isinstance(part, _NUMBERS) for part in made.args)
    if len(made.args) > 2 or not (plain or (len(made.args) == 1 and isinstance(made.args[0], str | Opaque))):
        walk.fault("builtins.complex is made of what are no numbers")
    return made


def _as_tuple(walk: Machine, made: Opaque) -> Value:
    content = _elements(walk, made.args[0]) if made.args else []
    if type(content) is dict:
        content = list(content)
    if type(content) is not list or len(made.args) > 1 or any(not isinstance(size, int) for size in content):
        if len(made.args) != 1 or type(content) is not Opaque:
            walk.fault("torch.Size is made of what are no sizes")
        return made
    return made.args[0] if made.args and type(made.args[0]) is tuple else tuple(content)


PLAIN: dict[str, Callable[[Machine, Opaque], Value]] = {
    "collections.OrderedDict": _as_dict,
    "collections.Counter": _as_dict,
    "collections.defaultdict": _as_dict,
    "builtins.dict": _as_dict,
    "builtins.set": _as_set,
    "builtins.frozenset": _as_set,
    "builtins.bytearray": _as_raw,
    "builtins.bytes": _as_raw,
    "_codecs.encode": _as_bytes,
    "builtins.complex": _as_complex,
    "torch.Size": _as_tuple,
}
