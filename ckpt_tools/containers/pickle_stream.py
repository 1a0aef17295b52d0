"""Symbolic pickle: what a pickle *says*, as plain values, with nothing imported, called or built.

One reader for torch zips, torch's legacy files, DCP metadata and bare pickles.  Objects come out as ``Opaque``;
what is known to be harmless comes out plain: ``OrderedDict``, ``defaultdict`` and ``Counter`` as a dictionary,
``torch.Size`` as a tuple, ``bytearray`` as bytes, bytes that protocol 2 hides in ``_codecs.encode`` as bytes,
complex numbers as themselves.  Sets are an ``Opaque`` named ``builtins.set`` with their elements in ``items``.

The value that is returned can be walked by anyone: it has no cycles (a reference back to a container around it
is the ``Opaque`` ``CYCLE``), is at most ``MAX_DEPTH`` containers deep, and walking every path through it visits
at most ``MAX_VISITS`` plus one value per byte, however often values are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_tools.containers.base import FormatError, no_collection
from ckpt_tools.containers.pickle_machine import Broken, Refused, Shortcut
from ckpt_tools.containers.pickle_plain import PLAIN
from ckpt_tools.containers.pickle_scan import View
from ckpt_tools.containers.pickle_walk import Walk
from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.values import Opaque, Pairs, Value

MAX_BYTES = 1 << 30
FIRST_READ = 1 << 18
MAX_DEPTH = 200
MAX_VISITS = 1_000_000
CYCLE = "pickle.reference_to_itself"
SHARED = "pickle.reference_to_another_place"


class CutError(FormatError):
    """The bytes end before the pickle does: more of them may help."""


@dataclass(frozen=True, slots=True)
class PickleResult:
    """``end`` is the offset behind STOP; ``globals`` counts every mention of a ``module.name``.

    ``foreign`` are the opcodes that ``torch.load(weights_only=True)`` refuses: "Unsupported operand N".
    ``problems`` are calls and changes of values that no loader makes, though they could be followed here.
    """

    value: Value
    globals: Mapping[str, int]
    end: int
    protocol: int
    problems: tuple[Problem, ...] = ()
    foreign: tuple[int, ...] = ()


def too_large(size: int) -> Problem | None:
    """Return the problem of a pickle of ``size`` bytes, None where that many are read."""
    if size <= MAX_BYTES:
        return None
    detail = (f"has {size:,} bytes; pickles of more than {MAX_BYTES:,} are not read",)
    return Problem("resource-bomb", "the pickle is too large", detail)


def read(
    data: bytes | bytearray | memoryview,
    *,
    start: int = 0,
    persistent: Callable[[Value], Value] | None = None,
    rebuild: Callable[[Opaque], Value] | None = None,
    view: View | None = None,
    shortcut: Shortcut | None = None,
) -> PickleResult:
    """Decode the pickle that begins at ``start`` of ``data``.

    ``persistent`` turns a persistent id into a value, ``rebuild`` an object that was just called (``args`` are
    set, ``state`` and ``items`` are not yet) into another value.  ``view`` is for speed: it gives for plain tensors
    what the other two would give.  ``shortcut`` may take the opcodes behind a NEWOBJ.  All must return at once and
    raise nothing.

    Raises:
        FormatError: kind ``pickle-damaged`` (a ``CutError`` where the bytes end too early), or kind
            ``resource-bomb`` where decoding would cost far more than the bytes can be worth.
    """
    raw = data if isinstance(data, bytes) else bytes(data)
    walk = Walk(raw, start, persistent, rebuild, view, PLAIN)
    walk.shortcut = shortcut
    try:
        with no_collection():
            value = settle(walk.run(), walk.odd, len(raw))
    except Broken as error:
        where = f"at byte {walk.position:,} of {len(raw):,}: {error.reason}"
        problem = Problem("pickle-damaged", "the pickle cannot be read", (where,), Spot(offset=walk.position))
        raise (CutError if error.cut else FormatError)(problem) from None
    except Refused as error:
        where = f"at byte {walk.position:,} of {len(raw):,}: {error}"
        detail = (where, "reading it would cost far more memory or time than its size is worth")
        raise FormatError(
            Problem("resource-bomb", "a pickle made to exhaust memory", detail, Spot(offset=walk.position))
        ) from None
    problems: tuple[Problem, ...] = ()
    if walk.faults:
        lines = tuple(f"at byte {at:,}: {what}" for what, at in walk.faults.items())
        first = Spot(offset=next(iter(walk.faults.values())))
        problems = (Problem("pickle-damaged", "the pickle does what no loader can follow", lines, first),)
    return PickleResult(value, walk.globals, walk.position, walk.protocol, problems, tuple(sorted(walk.foreign)))


def read_growing(
    source: Source,
    start: int,
    persistent: Callable[[Value], Value] | None = None,
    rebuild: Callable[[Opaque], Value] | None = None,
    view: View | None = None,
) -> tuple[int, PickleResult]:
    """Decode the pickle at ``start`` of ``source``, whose end is not known: ``(bytes it takes, result)``.

    Raises:
        FormatError: as ``read``; a ``CutError`` where the source ends before the pickle does.
    """
    length = FIRST_READ
    while True:
        data = source.read(start, length)
        try:
            result = read(data, persistent=persistent, rebuild=rebuild, view=view)
        except CutError:
            if start + length >= source.size:
                raise
            if length >= MAX_BYTES:
                detail = (f"it does not end within {length:,} bytes",)
                raise FormatError(Problem("resource-bomb", "the pickle is too large", detail)) from None
            length = min(8 * length, MAX_BYTES)
        else:
            return result.end, result


# Making the value safe to walk -----------------------------------------------------------------------------

_CONTAINERS = frozenset((list, tuple, dict, Pairs, Opaque))


@dataclass(slots=True, eq=False)
class _Node:
    """A container that was seen: what stands for it, how deep and how large it is when every path is walked."""

    value: Value
    new: Value
    kids: list[Value]
    depth: int = 0
    visits: int = 0


def settle(value: Value, odd: Mapping[int, tuple[dict[Any, Any], Pairs]], size: int) -> Value:
    """Return ``value`` without cycles and with ``Pairs`` for the ``odd`` dictionaries; sharing is kept.

    Raises:
        Refused: too deep, or walking every path through it would never end.
    """
    limit = MAX_VISITS + size
    top, opaque = _settle(value, odd, cut=False)
    if top.visits > limit and opaque:  # an object graph: real, and endless only because everything refers to everything
        top, _ = _settle(top.new, {}, cut=True)
    if top.visits > limit:
        raise Refused(f"references to shared values unfold to more than {limit:,} values")
    if top.depth > MAX_DEPTH:
        raise Refused(f"containers are nested {top.depth:,} deep, more than {MAX_DEPTH}")
    return top.new


def _settle(value: Value, odd: Mapping[int, tuple[dict[Any, Any], Pairs]], *, cut: bool) -> tuple[_Node, bool]:
    if type(value) not in _CONTAINERS:
        return _Node(value, value, []), False
    nodes: dict[int, _Node] = {}
    claimed: set[int] = set()
    opaque = False
    level = 0
    work: list[Value | _Node] = [value]
    while work:
        item = work.pop()
        if type(item) is not _Node:
            if id(item) in nodes:
                continue
            new: Value = item
            if type(item) is dict and odd and id(item) in odd:
                new = odd[id(item)][1]
            parts = _parts(new)
            opaque = opaque or (type(new) is Opaque and new.called)
            node = nodes[id(item)] = _Node(item, new, [part for part in parts if type(part) in _CONTAINERS])
            node.visits = 1 + len(parts)
            if node.kids:
                level += 1
                if level > MAX_DEPTH:
                    raise Refused(f"containers are nested more than {MAX_DEPTH} deep")
                work.append(node)
                work.extend(node.kids)
            else:
                node.depth = 1
            continue
        changed: dict[int, Value] = {}
        depth = 0
        for kid in item.kids:
            below = nodes[id(kid)]
            if below.depth == 0:
                changed[id(kid)] = Opaque(CYCLE)
            elif cut and below.visits > 8 and id(kid) in claimed:
                changed[id(kid)] = Opaque(SHARED)
            else:
                claimed.add(id(kid))
                depth = max(depth, below.depth)
                item.visits += below.visits
                if below.new is not kid:
                    changed[id(kid)] = below.new
        item.depth = depth + 1
        level -= 1
        if changed:
            item.new = _replaced(item.new, changed)
    return nodes[id(value)], opaque


def _parts(value: Value) -> list[Value] | tuple[Value, ...]:
    if type(value) is dict:
        return list(value.values())
    if type(value) is Pairs:
        return [part for pair in value.pairs for part in pair]
    if type(value) is Opaque:
        return [value.args, value.state, value.items]
    result: list[Value] | tuple[Value, ...] = value
    return result


def _replaced(value: Value, changed: Mapping[int, Value]) -> Value:
    if type(value) is tuple:
        return tuple(changed.get(id(part), part) for part in value)
    if type(value) is list:
        value[:] = [changed.get(id(part), part) for part in value]
    elif type(value) is dict:
        for key, part in value.items():
            value[key] = changed.get(id(part), part)
    elif type(value) is Pairs:
        value.pairs[:] = [(changed.get(id(key), key), changed.get(id(part), part)) for key, part in value.pairs]
    else:
        value.args = _whole(changed.get(id(value.args), value.args), value.args)
        value.state = changed.get(id(value.state), value.state)
        value.items = _whole(changed.get(id(value.items), value.items), value.items)
    return value


def _whole(new: Value, old: Value) -> Value:
    """Keep ``args`` a tuple and ``items`` a list where a marker took their place."""
    return new if type(new) is type(old) else type(old)((new,))
