"""What ``ckpt merge`` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_tools.reports.base import Block, Fields, Text
from ckpt_tools.reports.units import count, first_names, human_bytes

SCHEMA = "ckpt-tools/merge/1"
SHOWN = 4


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of weights."""

    name: str
    size: int
    tensors: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that the checkpoint holds and the new directory does not."""

    what: str
    detail: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class MergeReport:
    """A directory of weights that was made, and proven to hold what the checkpoint holds.

    ``tied`` are names that share their bytes with another one, under which they were written; ``digests`` are those
    of the source and, which was compared, of the new files.
    """

    tool: str
    source: str
    out: str
    taken: str
    tensors: int
    parameters: int
    files: tuple[WrittenFile, ...]
    copied: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        return 0

    def blocks(self) -> Sequence[Block]:
        held = f"{count(self.tensors, 'tensor')}, {self.parameters:,} parameters, {human_bytes(self.bytes_written)}"
        head = [f"took {self.source}, {self.taken}"] if self.taken else []
        blocks: list[Block] = [Text((*head, f"merged into {self.out}: {held}"), "good")]
        blocks.append(Fields(tuple(self._rows())))
        blocks.append(Text((f"{human_bytes(self.bytes_read)} read in {self.seconds:.2f} s",), "faint"))
        return blocks

    def _rows(self) -> Iterator[tuple[str, str]]:
        names = [file.name for file in self.files]
        shown = names if len(names) <= SHOWN else [*names[:2], "...", names[-1]]
        yield "written", ", ".join(shown)
        if self.copied:
            yield "copied", first_names(self.copied)
        yield "verified", "every tensor was read back, and its digest is that of the source"
        for name, owner in self.tied.items():
            yield "tied", f"{name} is {owner}, which is written once"
        for each in self.left_out:
            yield "left out", f"{each.what}: {each.detail}" + (f" ({human_bytes(each.size)})" if each.size else "")
        for note in self.notes:
            yield "note", note

    def document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "tool": self.tool,
            "source": self.source,
            "output": self.out,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "files": [{"path": file.name, "bytes": file.size, "tensors": file.tensors} for file in self.files],
            "copied": list(self.copied),
            "verified": True,
            "tied": dict(self.tied),
            "digests": dict(self.digests),
            "left_out": [{"what": each.what, "detail": each.detail, "bytes": each.size} for each in self.left_out],
            "notes": [*([self.taken] if self.taken else []), *self.notes],
            "summary": {
                "bytes_read": self.bytes_read,
                "bytes_written": self.bytes_written,
                "seconds": round(self.seconds, 3),
            },
        }
