"""Whether blocks cover a tensor exactly: no element twice, none left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from ckpt_tools.model.tensors import Box

MAX_VISITS_EACH = 64
"""So often a block is looked at, on average, before the check gives up: blocks that overlap a lot cost much."""


@dataclass(slots=True)
class Fit:
    """What was found: the first place that no block covers, the first two blocks that share a place, blocks outside.

    ``covered`` counts elements; ``given_up`` says that there were too many overlaps to look at them all.
    """

    hole: Box | None = None
    overlap: tuple[int, int] | None = None
    outside: int | None = None
    covered: int = 0
    given_up: bool = False

    @property
    def exact(self) -> bool:
        return self.hole is None and self.overlap is None and self.outside is None and not self.given_up


def fit(shape: tuple[int, ...], blocks: Sequence[Box]) -> Fit:
    """Compare ``(offsets, sizes)`` of blocks with the shape that they should fill.

    Empty blocks count for nothing and may lie anywhere up to the tensor's end.
    """
    found = Fit()
    real: list[int] = []
    for number, (offsets, sizes) in enumerate(blocks):
        if len(offsets) != len(shape) or any(
            at + size > whole for at, size, whole in zip(offsets, sizes, shape, strict=False)
        ):
            found.outside = number
            return found
        if 0 not in sizes:
            real.append(number)
            found.covered += prod(sizes)
    if 0 in shape:
        return found
    if not shape:
        if len(real) > 1:
            found.overlap = (real[0], real[1])
        elif not real:
            found.hole = ((), ())
        return found
    _Sweep(shape, blocks, found, MAX_VISITS_EACH * len(real) + 100_000).run(real, 0, (), ())
    return found


class _Sweep:
    """Cuts the tensor at the edges of its blocks, dimension by dimension."""

    def __init__(self, shape: tuple[int, ...], blocks: Sequence[Box], found: Fit, visits: int) -> None:
        self.shape = shape
        self.blocks = blocks
        self.found = found
        self.visits = visits

    def run(self, numbers: list[int], axis: int, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        """Look at one slab, which ``offsets`` and ``sizes`` of the dimensions before ``axis`` describe."""
        found, blocks = self.found, self.blocks
        self.visits -= len(numbers)
        if self.visits < 0:
            found.given_up = True
            return
        rest = self.shape[axis:]
        if len(numbers) == 1 and blocks[numbers[0]][1][axis:] == rest:
            return
        if not numbers:
            if found.hole is None:
                found.hole = ((*offsets, *(0,) * len(rest)), (*sizes, *rest))
            return
        if axis == len(self.shape):
            if len(numbers) > 1 and found.overlap is None:
                found.overlap = (numbers[0], numbers[1])
            return
        starts: dict[int, list[int]] = {}
        edges = {0, self.shape[axis]}
        for number in numbers:
            begin, size = blocks[number][0][axis], blocks[number][1][axis]
            edges.update((begin, begin + size))
            starts.setdefault(begin, []).append(number)
        ordered = sorted(edges)
        active: list[int] = []
        for begin, end in pairwise(ordered):
            active = [number for number in active if blocks[number][0][axis] + blocks[number][1][axis] > begin]
            active += starts.get(begin, ())
            self.run(active, axis + 1, (*offsets, begin), (*sizes, end - begin))
            if found.given_up or (found.hole is not None and found.overlap is not None):
                return
