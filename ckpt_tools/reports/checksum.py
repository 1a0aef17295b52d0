"""What ``ckpt checksum`` found."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_tools.reports.base import Block, Text

SCHEMA = "ckpt-tools/checksum/1"


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor of a file, or a file (``tensor`` None); ``path`` is relative to what was named.

    A tensor that lies in several files has the path of their directory.
    """

    path: str
    digest: str | None
    size: int = 0
    tensor: str | None = None
    dtype: str = ""
    shape: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ChecksumReport:
    """Digests in the order of files and of tensors in them; ``single`` says that one file was named."""

    tool: str
    root: str
    by: str
    algorithm: str
    rows: tuple[Row, ...]
    errors: tuple[str, ...] = ()
    single: bool = False
    bytes_read: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        return 3 if self.errors else 0

    def lines(self) -> Iterator[str]:
        """Yield the text: for files what ``sha256sum -c`` and ``b3sum -c`` read, paths as they were typed."""
        if self.by == "file":
            for row in self.rows:
                yield _summed(row.digest or "", self._typed(row.path))
            return
        for row in self.rows:
            if row.digest is not None:
                name = row.tensor if self.single or row.path == "." else f"{row.path}: {row.tensor}"
                yield f"{row.digest}  {row.dtype} [{', '.join(map(str, row.shape))}]  {name}"

    def remarks(self) -> Iterator[str]:
        """Yield what belongs on standard error."""
        yield from (f"could not be read: {error}" for error in self.errors)
        for row in self.rows:
            if row.digest is None:
                yield f"no digest: {row.path}: {row.tensor}: {row.reason or 'its bytes could not be read'}"

    def _typed(self, path: str) -> str:
        return self.root if self.single else posixpath.normpath(posixpath.join(self.root, path))

    def blocks(self) -> Sequence[Block]:
        return [Text(tuple(self.lines()))]

    def document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "tool": self.tool,
            "root": self.root,
            "by": self.by,
            "algorithm": self.algorithm,
            "files": self._whole_files() if self.by == "file" else self._by_file(),
            "errors": list(self.errors),
            "summary": {"bytes_read": self.bytes_read, "seconds": round(self.seconds, 3)},
        }

    def _whole_files(self) -> list[dict[str, Any]]:
        return [{"path": row.path, "size": row.size, "digest": f"{self.algorithm}:{row.digest}"} for row in self.rows]

    def _by_file(self) -> list[dict[str, Any]]:
        files: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            file = files.setdefault(row.path, {"path": row.path, "size": row.size, "tensors": []})
            entry: dict[str, Any] = {
                "name": row.tensor,
                "dtype": row.dtype,
                "shape": list(row.shape),
                "digest": row.digest,
            }
            if row.digest is None:
                entry["reason"] = row.reason
            file["tensors"].append(entry)
        return list(files.values())


def _summed(digest: str, path: str) -> str:
    r"""Return a line of ``sha256sum``: a name with a backslash or a line break is escaped, and the line says so."""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == path else chr(92)}{digest}  {escaped}"
