"""Digests of tensors and files: BLAKE3 over pieces of 32 MiB, so that every core can work on one large tensor.

The digest of a *tensor* is ``BLAKE3(head + BLAKE3(piece 1) + BLAKE3(piece 2) + ...)``.  ``head`` is the text
``ckpt-tools/tensor/1`` NUL dtype NUL shape NUL, the shape as decimal numbers with commas between; the pieces are the
tensor's row-major little-endian bytes cut every 32 MiB (2**25 bytes), none for an empty tensor.  So the same tensor
has the same digest in every container, strided or not.  A *run of bytes* that is no tensor has the head
``ckpt-tools/bytes/1`` NUL. The digest of a *file* is ``BLAKE3(head + for each segment: its length as 8 bytes
little-endian + its digest)``, its segments in order, with the head ``ckpt-tools/file/1`` NUL.  All are written
``blake3-32m:`` and 64 hexadecimal digits.
"""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

ALGORITHM = "blake3-32m"
PIECE = 1 << 25

BYTES = b"ckpt-tools/bytes/1\0"
_TENSOR = b"ckpt-tools/tensor/1\0"
_FILE = b"ckpt-tools/file/1\0"


def tensor_head(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return what a tensor's digest begins with; packed types count logical elements."""
    if dtype == "float4_e2m1fn_x2" and shape:
        dtype, shape = "float4_e2m1fn", (*shape[:-1], 2 * shape[-1])
    return _TENSOR + f"{dtype}\0{','.join(map(str, shape))}\0".encode()


def finish(head: bytes, pieces: Iterable[bytes]) -> str:
    """Return the digest of something whose pieces have the digests ``pieces``."""
    return f"{ALGORITHM}:{blake3(head + b''.join(pieces)).hexdigest()}"


def file_digest(segments: Iterable[tuple[int, str]]) -> str:
    """Return a file's digest from the ``(length, digest)`` of its segments in order."""
    body = b"".join(
        length.to_bytes(8, "little") + bytes.fromhex(digest.partition(":")[2]) for length, digest in segments
    )
    return f"{ALGORITHM}:{blake3(_FILE + body).hexdigest()}"


class PieceHasher:
    """Digests of the pieces of a stream that comes in blocks of any size."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._hash = blake3()
        self._room = PIECE

    def update(self, block: memoryview) -> None:
        while len(block):
            part = block[: self._room]
            self._hash.update(part)
            self._room -= len(part)
            block = block[len(part) :]
            if not self._room:
                self._next()

    def finish(self) -> list[bytes]:
        if self._room < PIECE:
            self._next()
        return self.pieces

    def _next(self) -> None:
        self.pieces.append(self._hash.digest())
        self._hash = blake3()
        self._room = PIECE
