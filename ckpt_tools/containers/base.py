"""What every container gives back."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

from ckpt_tools.core.source import Extent
from ckpt_tools.model.findings import Problem
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value

_pauses = 0
_pausing = Lock()


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the collector of reference cycles still while many objects are made, none of which is garbage.

    It would look through all of them again and again, which takes as long as the reading itself.
    """
    global _pauses  # noqa: PLW0603 - the collector is the process's, and so is the count
    with _pausing:
        enabled = gc.isenabled()
        if enabled or _pauses:
            _pauses += 1
            gc.disable()
    try:
        yield
    finally:
        with _pausing:
            if _pauses:
                _pauses -= 1
                if not _pauses:
                    gc.enable()


class FormatError(Exception):
    """Bytes that do not hold what they should; carries the problem that a rule will report."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Record(NamedTuple):
    """A named run of bytes inside a file: a member of a zip, a storage of a legacy file.

    ``crc32`` is the stored checksum of the payload, None where the format has none.
    """

    name: str
    extent: Extent
    crc32: int | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """A file, understood as far as its bytes allow.

    ``container`` names what the bytes *are* (see ``containers.reader.KINDS``), whatever the file is called.
    ``value`` is the decoded tree of a pickle, JSON or text file, None where there is none or it was not
    readable (``readable`` tells the two apart).  ``tensors`` are by FQN, in file order; one in a pickle is named by its
    key path (``state.0.exp_avg``).  ``globals`` are the ``module.name`` that a pickle refers to, with the number
    of references.  ``facts`` holds what a format says about itself (``root``, ``version``, ``byteorder``, ``protocol``,
    ``metadata``).  ``problems`` are in order of position.
    """

    container: str
    size: int
    readable: bool = True
    value: Value = None
    tensors: Mapping[str, TensorRef] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    globals: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def too_deep(raw: bytes, value: Value, limit: int) -> bool:
    """Say whether ``value``, read from the JSON ``raw``, is nested more than ``limit`` levels deep; mostly cheap.

    The brackets alone are folded from the inside out, which ends early for what is flat; brackets inside of texts
    can make that fail, and then the value itself is measured.
    """
    brackets = raw.translate(None, _BRACKETS)
    for _ in range(12):
        if not brackets:
            return False
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
    if len(brackets) <= limit:
        return False
    level = [value]
    for _ in range(limit):
        below: list[Value] = []
        for found in level:
            if isinstance(found, dict):
                below.extend(child for child in found.values() if isinstance(child, dict | list))
            elif isinstance(found, list):
                below.extend(child for child in found if isinstance(child, dict | list))
        if not below:
            return False
        level = below
    return True
