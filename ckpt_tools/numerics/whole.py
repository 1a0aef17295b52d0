"""The digest of a whole file, as other tools know it: what ``b3sum`` and ``sha256sum`` print."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from blake3 import blake3

from ckpt_tools.core.source import Source

BUFFER = 1 << 22
"""Large enough for BLAKE3 to give every core a share of it."""


def whole(source: Source, algorithm: str, advance: Callable[[int], None], *, threads: int = 1) -> str:
    """Return the digest of all bytes as hexadecimal digits; ``advance`` is told of progress, and may raise to end it.

    Raises:
        SourceError: the file could not be read.
    """
    state: Any = hashlib.sha256() if algorithm == "sha256" else blake3(max_threads=threads)
    for piece in source.chunks(BUFFER if threads > 1 else BUFFER >> 4):
        state.update(piece)
        advance(len(piece))
    digits: str = state.hexdigest()
    return digits
