"""Small text files: pointers, trackers, notes."""

from __future__ import annotations

from ckpt_tools.containers.base import Content
from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot

LIMIT = 16 << 20
"""No more than this is read of a text; ``facts["whole"]`` says whether that was all."""


def read(source: Source) -> Content:
    """Return the text as ``value``, without its byte order mark and with its line ends as they are.

    Raises:
        SourceError: the file could not be read, or changed while it was.
    """
    raw = source.read(0, LIMIT)
    whole = source.size <= LIMIT
    facts = {"whole": whole, "bom": raw.startswith(b"\xef\xbb\xbf")}
    problem = None
    text = None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + 3 * facts["bom"]
        if not whole and start >= len(raw) - 3:
            text = raw[:start].decode("utf-8-sig")
        else:
            problem = _not_text(raw, start, source.base)
    if text is not None and "\0" in text:
        zeros = text.count("\0")
        place = source.base + raw.index(b"\0")
        tail = "its end is zeros: a crash before the data reached the disk?" if text.endswith("\0") else ""
        detail = (f"{zeros:,} zero bytes, the first at byte {place:,}", *filter(None, (tail,)))
        problem = Problem("text-damaged", "the text holds zero bytes", detail, Spot(offset=place))
    return Content(
        "text", source.size, readable=text is not None, value=text, facts=facts, problems=(problem,) if problem else ()
    )


def _not_text(raw: bytes, start: int, base: int) -> Problem:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Problem(
            "text-damaged", "the text is UTF-16, not UTF-8", ("loaders read it as UTF-8",), Spot(offset=base)
        )
    line = raw.count(b"\n", 0, start) + 1
    detail = (f"byte {base + start:,} (line {line:,}) is 0x{raw[start]:02x}",)
    return Problem("text-damaged", "the text is not UTF-8", detail, Spot(offset=base + start))
