"""Room on the disk that a path lies on."""

from __future__ import annotations

import os


def free_bytes(path: str) -> int | None:
    """Return the bytes that an ordinary user can still write beside ``path``, None when the system does not say."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize
