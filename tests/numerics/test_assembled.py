"""Tensors of many chunks, read as their row-major bytes, against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import scan
from ckpt_tools.core.source import BytesSource, Extent, Source
from ckpt_tools.model.tensors import Chunk, TensorRef, boxes_of_range
from ckpt_tools.model.tiling import fit
from ckpt_tools.numerics import assembled
from ckpt_tools.numerics.assembled import Assembled, OpenFiles, problem

Pieces = list[tuple[tuple[int, ...], tuple[int, ...]]]


def cut(whole: np.ndarray, boxes: Pieces, form: str = "plain", dtype: str = "float32") -> tuple[TensorRef, dict]:
    """Return a tensor whose boxes lie in files of their own, with the files; some bytes come before each box."""
    chunks, files = [], {}
    for number, (offsets, sizes) in enumerate(boxes):
        piece = whole[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))]
        strides, order = None, "little"
        data = np.ascontiguousarray(piece)
        if form == "transposed" and number % 2 == 0 and piece.ndim > 1:
            strides = tuple(step // piece.itemsize for step in np.asfortranarray(piece).strides)
            data = np.ascontiguousarray(piece.T)
        if form == "big" and number % 2 == 0:
            order, data = "big", data.byteswap()
        files[f"{number}"] = BytesSource(b"\xee" * number + data.tobytes(), f"{number}")
        chunks.append(Chunk(offsets, sizes, Extent(f"{number}", number, data.nbytes), strides, order))
    return TensorRef("t", dtype, whole.shape, tuple(chunks)), files


def grid(shape: tuple[int, ...], cuts: list[list[int]]) -> Pieces:
    """Return the boxes that cuts through every dimension make, the last ones first."""
    edges = [[0, *sorted({c for c in each if 0 < c < size}), size] for size, each in zip(shape, cuts, strict=True)]
    spans = [list(itertools.pairwise(each)) for each in edges]
    return [
        (tuple(low for low, _ in box), tuple(high - low for low, high in box)) for box in itertools.product(*spans)
    ][::-1]


def flat(shape: tuple[int, ...], cuts: list[int]) -> Pieces:
    size = int(np.prod(shape))
    edges = [0, *sorted({c for c in cuts if 0 < c < size}), size]
    return [box for low, high in itertools.pairwise(edges) for box in boxes_of_range(shape, low, high)]


shapes = st.lists(st.integers(1, 9), min_size=0, max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(shape=shapes, data=st.data(), form=st.sampled_from(["plain", "transposed", "big"]))
def test_every_range_and_every_box_is_that_of_the_whole(shape: tuple[int, ...], data: st.DataObject, form: str) -> None:
    whole = np.arange(np.prod(shape, dtype=int), dtype="<f4").reshape(shape)
    if data.draw(st.booleans()):
        boxes = flat(shape, data.draw(st.lists(st.integers(0, whole.size), max_size=4)))
    else:
        boxes = grid(shape, [data.draw(st.lists(st.integers(0, size), max_size=2)) for size in shape])
    ref, files = cut(whole, boxes, form)
    tensor = Assembled(ref, files)
    assert tensor.size == whole.nbytes
    assert tensor.read(0, tensor.size) == whole.tobytes()
    low = data.draw(st.integers(0, whole.nbytes))
    high = data.draw(st.integers(low, whole.nbytes))
    assert tensor.read(low, high - low) == whole.tobytes()[low:high]
    origin = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(data.draw(st.integers(1, size - at)) for at, size in zip(origin, shape, strict=True))
    place = tuple(slice(at, at + size) for at, size in zip(origin, sizes, strict=True))
    assert (tensor.box(origin, sizes, whole.dtype) == whole[place]).all()


@settings(max_examples=150, deadline=None)
@given(shape=shapes, data=st.data())
def test_a_hole_is_found_where_it_is(shape: tuple[int, ...], data: st.DataObject) -> None:
    boxes = grid(shape, [data.draw(st.lists(st.integers(0, size), max_size=2)) for size in shape])
    boxes += data.draw(st.lists(st.sampled_from(boxes), max_size=2))
    lost = data.draw(st.sampled_from([None, *boxes]))
    kept = [box for box in boxes if box != lost]
    seen = np.zeros(shape, bool)
    for offsets, sizes in kept:
        seen[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] = True
    expected = None if seen.all() else tuple(int(at) for at in np.argwhere(~seen)[0])
    first = fit(shape, kept).hole
    assert (first[0] if first else None) == expected
    ref, _ = cut(np.zeros(shape, "<f4"), kept)
    assert bool(problem(ref)) == (expected is not None)
    if kept and expected is not None:
        assert str(list(expected)) in problem(ref)


def test_chunks_that_overlap_are_read_once() -> None:
    whole = np.arange(40, dtype="<f4").reshape(8, 5)
    ref, files = cut(whole, [((0, 0), (5, 5)), ((3, 0), (5, 5)), ((4, 0), (1, 5))])
    assert Assembled(ref, files).read(0, 160) == whole.tobytes()


class Counted(BytesSource):
    reads = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        super().read_into(offset, buffer)


def test_rows_are_read_straight_from_the_chunks_that_have_them() -> None:
    whole = np.arange(1000 * 4, dtype="<f4").reshape(1000, 4)
    ref, files = cut(whole, [((at, 0), (1, 4)) for at in range(1000)])
    counted: dict[str, Source] = {name: Counted(source.read(0, source.size), name) for name, source in files.items()}
    assert Assembled(ref, counted).read(16 * 500, 48) == whole[500:503].tobytes()
    assert sum(source.reads for source in counted.values()) == 3  # type: ignore[attr-defined]


def test_a_column_of_chunks_is_looked_up_and_not_searched() -> None:
    whole = np.arange(512 * 6, dtype="<f4").reshape(512, 6)
    boxes = [((row, column), (1, 3)) for row in range(512) for column in (0, 3)]
    ref, files = cut(whole, boxes)
    counted: dict[str, Source] = {name: Counted(source.read(0, source.size), name) for name, source in files.items()}
    assert Assembled(ref, counted).read(24 * 300, 48) == whole[300:302].tobytes()
    assert sum(source.reads for source in counted.values()) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(("cuts", "fine"), [([0, 4, 10], True), ([0, 3, 10], False)])
def test_elements_of_four_bits(cuts: list[int], fine: bool) -> None:
    data = bytes(range(5))
    chunks = tuple(
        Chunk((low,), (high - low,), Extent("f", low // 2, (high - low + 1) // 2))
        for low, high in itertools.pairwise(cuts)
    )
    ref = TensorRef("t", "float4_e2m1fn", (10,), chunks)
    if fine:
        assert Assembled(ref, {"f": BytesSource(data, "f")}).read(0, 5) == data
    else:
        assert problem(ref) == assembled.CUT


def test_what_cannot_be_read_says_why() -> None:
    assert problem(TensorRef("t", "float32", (3,), ())) == assembled.ABSENT
    assert "strange" in problem(TensorRef("t", "strange", (1,), (Chunk((0,), (1,), Extent("f", 0, 1)),)))
    assert problem(TensorRef("t", "float32", (0, 3), ())) == ""
    inside = Chunk((0,), (1,), Extent("f", 0, 400), inside="torch-zip")
    assert problem(TensorRef("t", "float32", (1,), (inside,))) == assembled.ABSENT
    with pytest.raises(SourceError, match="more were asked for"):
        Assembled(TensorRef("t", "float32", (0,), ()), {}).read_into(0, memoryview(bytearray(4)))


def test_more_files_than_may_be_open(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(assembled, "OPEN", 3)
    whole = np.arange(20, dtype="<f4")
    ref, files = cut(whole, [((at,), (1,)) for at in range(20)])
    for name, source in files.items():
        (tmp_path / name).write_bytes(source.read(0, source.size))
    with OpenFiles(scan(tmp_path)) as opened:
        assert Assembled(ref, opened).read(0, 80) == whole.tobytes()
        assert Assembled(ref, opened).read(8, 40) == whole[2:12].tobytes()
