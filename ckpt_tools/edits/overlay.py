"""A file as it will be once some actions are carried out, read without carrying them out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ckpt_tools.core.errors import SourceChangedError
from ckpt_tools.core.source import Source
from ckpt_tools.model.plan import Action, AppendBytes, PatchBytes, WriteFile


class Edited(Source):
    """``source`` with patches, with one run of bytes appended, or written anew."""

    def __init__(self, source: Source, actions: Sequence[Action]) -> None:
        self._source = source
        self.name = source.name
        self._whole: bytes | None = None
        self._tail = b""
        for action in actions:
            if isinstance(action, WriteFile):
                self._whole = action.new
            elif isinstance(action, AppendBytes):
                self._tail += action.data
        patches = [action for action in actions if isinstance(action, PatchBytes)]
        self._patches = sorted(patches, key=lambda patch: patch.offset)
        self._ends = [patch.offset + len(patch.new) for patch in self._patches]
        self.size = len(self._whole) if self._whole is not None else source.size + len(self._tail)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        if end > self.size:
            raise SourceChangedError(self.name, f"read past the end of {self.size:,} bytes")
        if self._whole is not None:
            buffer[:] = self._whole[offset:end]
            return
        there = self._source.size
        if offset < there:
            self._source.read_into(offset, buffer[: min(end, there) - offset])
        if end > there:
            start = max(offset, there)
            buffer[start - offset :] = self._tail[start - there : end - there]
        for number in range(bisect_right(self._ends, offset), len(self._patches)):
            patch = self._patches[number]
            if patch.offset >= end:
                break
            first, last = max(offset, patch.offset), min(end, self._ends[number])
            buffer[first - offset : last - offset] = patch.new[first - patch.offset : last - patch.offset]
