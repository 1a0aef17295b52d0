"""What one pass over every byte of a checkpoint found out: facts, without an opinion on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckpt_tools.core.errors import SourceError
from ckpt_tools.model.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One tensor, looked at element by element.

    ``nan`` and ``inf`` count elements (a complex one counts once for each of its two numbers), ``first_bad`` is the
    row-major index of the first of them.  ``largest`` is the largest finite magnitude, None where that has no
    meaning.  ``zero`` says that every element is a zero.  ``negative`` counts elements below zero where they were
    asked for, ``odd`` those of a bool tensor that are neither 0 nor 1.  ``checked`` is false where ``reason`` says
    why nobody looked.
    """

    ref: TensorRef
    nan: int = 0
    inf: int = 0
    first_bad: int | None = None
    largest: float | None = None
    zero: bool | None = None
    negative: int = 0
    odd: int = 0
    digest: str | None = None
    checked: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """A record with the checksum that is stored and the one that its bytes have; None where it was not read."""

    name: str
    offset: int
    length: int
    stored: int
    computed: int | None
    tensors: tuple[str, ...] = ()
    zero_pages: int = 0

    @property
    def fits(self) -> bool:
        return self.computed is None or self.computed == self.stored


@dataclass(frozen=True, slots=True)
class ZeroRun:
    """Zero bytes ``[begin, end)`` of a file that look like pages that were never written.

    ``exact`` says that it begins at a page boundary and ends at one or with the file; ``tail`` that it reaches the end
    of the file; ``inside`` names the tensor that it begins in the middle of.  ``whole`` are the tensors that lie in
    it entirely, ``partly`` those that reach out of it.
    """

    begin: int
    end: int
    exact: bool
    tail: bool
    inside: str | None
    whole: tuple[str, ...]
    partly: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of bytes with a digest of its own: a stored tensor, or what lies between two of them (``tensor`` None)."""

    offset: int
    length: int
    tensor: str | None
    digest: str


@dataclass(frozen=True, slots=True)
class FileSummary:
    """One file.

    ``protection`` is ``"crc32"`` where stored checksums were compared, ``"none"`` where the format has none,
    ``"off"`` where the writer was told to store none.  ``unchecked`` are records that could not be compared, with
    the reason.  ``left_out`` counts bytes that a sample did not take in; ``unread`` those that the system refused
    (``errors``).  ``digest`` and ``segments`` are there where they were asked for.
    """

    path: str
    size: int
    container: str
    protection: str
    tensors: Mapping[str, TensorSummary] = field(default_factory=dict)
    records: tuple[RecordSummary, ...] = ()
    zeros: tuple[ZeroRun, ...] = ()
    unchecked: tuple[tuple[str, str], ...] = ()
    errors: tuple[SourceError, ...] = ()
    left_out: int = 0
    unread: int = 0
    holes: bool = False
    digest: str | None = None
    segments: tuple[Segment, ...] = ()


@dataclass(frozen=True, slots=True)
class DataSummary:
    """All files of a checkpoint; ``sample`` is what was asked for, ``""`` for every byte."""

    files: Mapping[str, FileSummary]
    sample: str = ""

    @property
    def left_out(self) -> int:
        return sum(file.left_out for file in self.files.values())


_SECOND_MOMENTS = frozenset(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta"))
_REAL = frozenset(("float64", "float32", "float16", "bfloat16"))


def never_negative(name: str, ref: TensorRef) -> bool:
    """Whether ``name`` is a mean of squares that an optimizer keeps as it is, neither quantised nor factored."""
    last = name.rpartition(".")[2].partition("#")[0]
    return last in _SECOND_MOMENTS and ref.dtype in _REAL and ref.kind in ("", "torch.nn.parameter.Parameter")
