"""The ranges of a safetensors file: whether the tensors cover the data from end to end, each fault told once."""

from __future__ import annotations

from ckpt_tools.containers.kinds import printable
from ckpt_tools.containers.safetensors_header import Faults, Row, shown


class Ranges:
    """Goes over the ranges in order of position and tells each fault once.

    After a fault several places are right for the next tensor: where this one's range ends, and where it would
    end if its begin, or its end, were the wrong number.  ``spare`` counts entries that named no range, each of
    which accounts for one gap.
    """

    def __init__(self, rows: list[Row], room: int, spare: int, faults: Faults) -> None:
        self.rows = rows
        self.room = room
        self.spare = spare
        self.faults = faults
        self.unreadable: set[str] = set()
        self.clean_end = 0
        self.end = 0
        self.first_absent: Row | None = None
        self.absent = 0
        self._cursor = 0
        self._others: frozenset[int] = frozenset()
        self._owner = ""
        self._faulty: list[tuple[str, Row, str]] = []
        self._gaps: list[tuple[Row, int, int]] = []

    def run(self) -> int:
        """Record the faults and return the number of data bytes that the header accounts for."""
        cursor = 0
        room = self.room
        for row in self.rows:
            begin, end, name, _, _, need = row
            if begin == cursor and end - begin == need and not self._others:
                cursor = end
                if end <= room:
                    self.clean_end = max(self.clean_end, end)
                else:
                    self._note_absent(row)
            else:
                self._cursor = cursor
                self._examine(row)
                if self._cursor == cursor and end < cursor:
                    name = self._owner
                cursor = self._cursor
            self._owner = name
            self.end = max(self.end, end)
        self._cursor = cursor
        self._settle()
        return self.end

    def _note_absent(self, row: Row) -> None:
        self.clean_end = max(self.clean_end, row[1])
        if row[1] > self.room:
            self.first_absent = self.first_absent or row
            self.absent += 1

    def _examine(self, row: Row) -> None:
        begin, end, name, _, shape, need = row
        before = self._cursor
        if end < begin:
            why = f"ends at {end:,}, before it begins at {begin:,}"
            self.faults.add("tensor-entry-invalid", name, why, begin)
            self.unreadable.add(name)
            self.spare += 1
            self._others = frozenset({before, before + (need or 0), begin, begin + (need or 0)})
            return
        span = end - begin
        fits = need is None or span == need
        placed = begin == before or begin in self._others
        self._others = frozenset()
        if fits and placed:
            self._cursor = end
            self._note_absent(row)
            return
        misfit = "" if fits else f"has {span:,} bytes, its shape {shown(shape)} needs {need:,}"
        if placed:
            self._faulty.append(("tensor-size-mismatch", row, misfit))
        elif begin > before:
            self._gaps.append((row, before, begin - before))
        else:
            other = f"`{printable(self._owner)}`" if self._owner else "the tensor before it"
            why = f"begins at {begin:,}, inside {other}, which ends at {before:,}"
            self._faulty.append(("tensor-overlap", row, "; ".join(filter(None, (why, misfit)))))
        self._others = frozenset({end, begin + (need or span), before + (need or span)})
        self._cursor = max(before, end)

    def _settle(self) -> None:
        """Decide, with all ranges known, which faults are the causes."""
        limit = max(self.room, self.clean_end)
        moved = [row[5] or row[1] - row[0] for kind, row, _ in self._faulty if kind == "tensor-overlap"]
        gaps = []
        for row, start, length in self._gaps:
            if row[1] > limit:
                self._faulty.append(("tensor-out-of-range", row, ""))
                moved.append(row[5] or row[1] - row[0])
            else:
                gaps.append((row, start, length))
        for row, start, length in gaps:
            if length in moved:
                moved.remove(length)
            elif self.spare:
                self.spare -= 1
            else:
                before = "before it" if start else "before the first tensor"
                why = f"begins at {row[0]:,}; the {length:,} bytes {before} belong to no tensor"
                self.faults.add("tensor-gap", row[2], why, start)
        for kind, row, why in sorted(self._faulty, key=lambda fault: fault[1][:2]):
            begin, end, name, _, _, need = row
            if end > limit:
                kind = "tensor-out-of-range"
                past = f"ends at {end:,}, past the {self.room:,} bytes of data"
                misfit = need is not None and need != end - begin
                why = f"{past}; its shape needs {need:,} bytes, its range has {end - begin:,}" if misfit else past
            self.faults.add(kind, name, why, begin)
            if kind == "tensor-size-mismatch" or end - begin != need:
                self.unreadable.add(name)
        self.accounted = self.room in self._others or any(end > limit for _, end, *_ in self.rows)
