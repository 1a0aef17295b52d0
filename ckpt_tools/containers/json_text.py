"""JSON and JSON lines, as Python's own decoder reads them, with what it lets through told.

Bounds: files above ``LIMIT`` bytes are not read; above ``DENSE_FROM`` bytes a file must not have more than one
bracket per ``DENSE`` bytes; values nested more than ``DEPTH`` levels deep are refused, so that what walks over
them later needs no care.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ckpt_tools.containers.base import Content, too_deep
from ckpt_tools.containers.kinds import printable
from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.values import Value, children, step

LIMIT = 512 << 20
DENSE_FROM = 32 << 20
DENSE = 6
DEPTH = 200
_LISTED = 10

_BOM = b"\xef\xbb\xbf"
_STUMP = re.compile(
    r"""(?:t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?|N(?:a)?|-|-?I(?:n(?:f(?:i(?:n(?:i(?:t)?)?)?)?)?)?|\.|\.?\d*[eE][+-]?"""
    r"""|\\?(?:u[0-9a-fA-F]{0,3})?)?\Z"""
)
"""What may be left of a value of which the end is missing, from where the decoder gave up."""


class _Decoder:
    """Python's JSON decoder, with the constants and repeated keys that it met."""

    def __init__(self) -> None:
        self.constants = 0
        self.repeated: list[tuple[dict[str, Any], list[str]]] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode(self, text: str) -> Value:
        return self._decoder.decode(text)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.repeated.append((found, [key for key, count in counts.items() if count > 1]))
        return found

    def _constant(self, token: str) -> float:
        self.constants += 1
        return float(token.replace("Infinity", "inf"))


def read(source: Source) -> Content:
    """Return the decoded JSON as ``value``.

    ``NaN`` and ``Infinity`` are accepted as Python writes them and told as ``json-nan``; of repeated keys the last
    counts, told as ``json-duplicate-key``.  ``facts``: ``bom``, and ``constants``, the number of bare constants.

    Raises:
        SourceError: the file could not be read, or changed while it was.
    """
    raw, problem = _bytes(source)
    if problem:
        return Content("json", source.size, readable=False, problems=(problem,))
    bom = raw.startswith(_BOM)
    shift = source.base + 3 * bom
    facts: dict[str, Any] = {"bom": bom}
    raw = raw[3:] if bom else raw
    decoder = _Decoder()
    try:
        value = decoder.decode(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return Content("json", source.size, False, facts=facts, problems=(_damage(raw, error, shift),))
    if too_deep(raw, value, DEPTH):
        return Content("json", source.size, False, facts=facts, problems=(_damage(raw, RecursionError(), shift),))
    facts["constants"] = decoder.constants
    marked = (_marked(source.base),) if bom else ()
    return Content("json", source.size, value=value, facts=facts, problems=(*marked, *_oddities(decoder, value)))


def read_lines(source: Source) -> Content:
    """Return the decoded lines as a list in ``value``; lines that cannot be read are told and left out.

    A damaged last line is ``last-line-cut``: what a writer that was stopped leaves behind.  Empty lines are
    skipped.  ``facts["lines"]`` counts the others.

    Raises:
        SourceError: the file could not be read, or changed while it was.
    """
    raw, problem = _bytes(source)
    if problem:
        return Content("jsonl", source.size, readable=False, problems=(problem,))
    bom = raw.startswith(_BOM)
    decoder = _Decoder()
    values: list[Value] = []
    places: list[int] = []
    damaged: list[tuple[int, int, Problem]] = []
    offset = 3 * bom
    for number, line in enumerate(raw[offset:].split(b"\n"), 1):
        if line.strip():
            places.append(number)
            try:
                value = decoder.decode(line.decode("utf-8"))
                if too_deep(line, value, DEPTH):
                    raise RecursionError
                values.append(value)
            except (ValueError, RecursionError) as error:
                damaged.append((number, offset, _damage(line, error, source.base + offset)))
        offset += len(line) + 1
    facts = {"bom": bom, "lines": len(places), "constants": decoder.constants}
    problems = (*_oddities(decoder, values), *_damaged_lines(damaged, places[-1] if places else 0, source.base))
    return Content("jsonl", source.size, value=values, facts=facts, problems=problems)


def _damaged_lines(damaged: list[tuple[int, int, Problem]], last: int, base: int) -> Iterator[Problem]:
    inner = [entry for entry in damaged if entry[0] != last]
    if inner:
        number, offset, problem = inner[0]
        detail = [f"line {line:,}: {fault.message}" for line, _, fault in inner[:_LISTED]]
        if len(inner) > _LISTED:
            detail.append(f"... and {len(inner) - _LISTED:,} more")
        message = f"line {number:,} is damaged" if len(inner) == 1 else f"{len(inner):,} lines are damaged"
        yield Problem("json-damaged", message, tuple(detail), problem.at)
    if len(inner) != len(damaged):
        number, offset, problem = damaged[-1]
        detail = [f"line {number:,}: {problem.message}", "the lines before it can be read"]
        yield Problem(
            "last-line-cut", "the last line is cut short or damaged", tuple(detail), Spot(offset=base + offset)
        )


def _bytes(source: Source) -> tuple[bytes, Problem | None]:
    if source.size == 0:
        return b"", Problem("empty-file", "the file is empty (0 bytes)")
    if source.size > LIMIT:
        detail = (f"has {source.size:,} bytes; more than {LIMIT:,} are not read",)
        return b"", Problem("resource-bomb", "the JSON file is too large to be read", detail)
    raw = source.read(0, source.size)
    brackets = raw.count(b"{") + raw.count(b"[") if len(raw) > DENSE_FROM else 0
    if brackets * DENSE > len(raw):
        detail = (f"{brackets:,} brackets in {len(raw):,} bytes; it was not decoded, to save memory",)
        return b"", Problem("resource-bomb", "the JSON file is made of brackets", detail)
    return raw, None


def _damage(raw: bytes, error: Exception, shift: int) -> Problem:
    """Say where JSON stops being JSON; ``shift`` is where ``raw`` begins in the file."""
    if isinstance(error, RecursionError):
        why = f"it is nested more than {DEPTH} levels deep"
        return Problem("json-damaged", "the JSON is nested too deeply to be read", (why,), Spot(offset=shift))
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(raw, error, shift)
    if not isinstance(error, json.JSONDecodeError):
        why = "it holds an integer of thousands of digits"
        return Problem("json-damaged", "the JSON holds a number too long to be read", (why,), Spot(offset=shift))
    detail: tuple[str, ...]
    text, at = error.doc, error.pos
    rest = text[at:]
    place = f"line {error.lineno:,} column {error.colno:,}"
    spot = Spot(offset=shift + len(text[:at].encode()))
    lines = text.count("\n", 0, len(text.rstrip())) + 1
    unfinished = error.msg.startswith("Unterminated string")
    if not text.strip():
        return Problem("json-damaged", "the JSON file holds only white space", (), spot)
    if not rest.strip("\0 \r\n\t") and "\0" in rest:
        zeros = rest.count("\0")
        detail = (f"{zeros:,} zero bytes from {place} to the end", "a crash before the data reached the disk?")
        return Problem("json-damaged", "the end of the JSON file is zeros", detail, spot)
    if unfinished or (error.msg != "Extra data" and _STUMP.match(rest.rstrip())):
        what = "inside a text" if unfinished else "before the value is complete"
        detail = (f"the file ends {what}, at {place}", f"looks cut after line {lines:,}")
        return Problem("json-damaged", "the JSON file is cut short", detail, spot)
    if error.msg == "Extra data":
        detail = (f"the JSON ends at {place}; then comes: {printable(rest, 40)}",)
        return Problem("json-damaged", "something follows the end of the JSON", detail, spot)
    said = error.msg[:1].lower() + error.msg[1:]
    detail = (f"{said} at {place}", f"there stands: {printable(rest, 40)}")
    return Problem("json-damaged", f"the JSON is not valid at {place}", detail, spot)


def _marked(base: int) -> Problem:
    detail = ('json.loads stops with "Unexpected UTF-8 BOM"', "some editors write it; the JSON behind it is whole")
    help_ = "save it as UTF-8 without a byte order mark"
    return Problem("json-damaged", "the JSON begins with a byte order mark", detail, Spot(offset=base), help_)


def _not_utf8(raw: bytes, error: UnicodeDecodeError, shift: int) -> Problem:
    detail: tuple[str, ...]
    at = error.start
    line = raw.count(b"\n", 0, at) + 1
    column = at - raw.rfind(b"\n", 0, at)
    spot = Spot(offset=shift + at)
    if error.reason == "unexpected end of data":
        detail = (f"the file ends inside a character, at line {line:,}", f"looks cut after line {line:,}")
        return Problem("json-damaged", "the JSON file is cut short", detail, spot)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Problem("json-damaged", "the JSON is UTF-16, not UTF-8", ("loaders read it as UTF-8",), spot)
    detail = (f"byte {shift + at:,} is 0x{raw[at]:02x}, at line {line:,} column {column:,}",)
    return Problem("json-damaged", "the JSON is not UTF-8", detail, spot)


def _oddities(decoder: _Decoder, value: Value) -> Iterator[Problem]:
    """Yield what Python's decoder accepted and JSON does not have."""
    if decoder.constants:
        paths = [path for path, child in _walk(value) if isinstance(child, float) and not math.isfinite(child)]
        count = decoder.constants
        message = "1 value is NaN or Infinity" if count == 1 else f"{count:,} values are NaN or Infinity"
        yield Problem("json-nan", message, _listing(paths), Spot(key=paths[0] if paths else None))
    if decoder.repeated:
        places = {id(found): path for path, found in _walk(value) if isinstance(found, dict)}
        paths = []
        for found, names in decoder.repeated:
            at = places.get(id(found))
            if at is not None:
                paths += [(at + step(name)).removeprefix(".") for name in names]
        if paths:
            message = "a key occurs twice" if len(paths) == 1 else f"{len(paths):,} keys occur twice"
            detail = (*_listing(paths), "the last value of each counts")
            yield Problem("json-duplicate-key", message, detail, Spot(key=paths[0]))


def _listing(paths: list[str]) -> tuple[str, ...]:
    shown = [printable(path) for path in paths[:_LISTED]]
    return (*shown, f"... and {len(paths) - _LISTED:,} more") if len(paths) > _LISTED else tuple(shown)


def _walk(value: Value) -> Iterator[tuple[str, Value]]:
    """Yield every value with its key path, in order, without recursion."""
    waiting = [("", value)]
    while waiting:
        path, found = waiting.pop()
        yield path.removeprefix("."), found
        if isinstance(found, dict | list):
            waiting.extend(reversed([(path + key, child) for key, child in children(found)]))
