"""Zero pages that a crash left, told apart from those that a training leaves."""

from __future__ import annotations

import random

import pytest

from ckpt_tools.core.source import BytesSource, Extent
from ckpt_tools.model.tensors import Chunk, TensorRef
from ckpt_tools.numerics.lost_pages import judge
from ckpt_tools.numerics.zeros import reach, whole_pages

HEAD = 1000
PAGE = 4096


def file_of(
    shapes: dict[str, tuple[int, ...]], zeros: list[tuple[int, int]], dtype: str = "float32"
) -> tuple[BytesSource, list[TensorRef], list[tuple[int, int]]]:
    """Return a file of float32 tensors, one behind the other, with zeros in it, and its zero pages."""
    refs, at = [], HEAD
    for name, shape in shapes.items():
        length = 4
        for size in shape:
            length *= size
        refs.append(TensorRef(name, dtype, shape, (Chunk((0,) * len(shape), shape, Extent("f", at, length)),)))
        at += length
    data = bytearray(random.Random(1).randbytes(at))
    for begin in range(HEAD, at):
        data[begin] |= 1
    for begin, end in zeros:
        data[begin : min(end, at)] = bytes(min(end, at) - begin)
    pages = [(p, min(p + PAGE, at)) for p in range(0, at, PAGE) if not any(data[p : p + PAGE])]
    return BytesSource(bytes(data), "f"), refs, whole_pages(pages, at)


WIDE = {"a": (50, 300), "b": (50, 300)}


def test_a_page_lost_inside_a_tensor() -> None:
    (found,) = judge(*reorder(file_of(WIDE, [(3 * PAGE, 5 * PAGE)])))
    assert (found.begin, found.end, found.exact, found.tail) == (3 * PAGE, 5 * PAGE, True, False)
    assert (found.inside, found.whole, found.partly) == ("a", (), ("a",))


def reorder(made: tuple[BytesSource, list[TensorRef], list[tuple[int, int]]]) -> tuple:
    source, refs, runs = made
    return source, runs, refs


def test_pages_lost_across_tensors() -> None:
    small = {"a": (50, 300), "s": (300,), "t": (17, 3), "b": (50, 300)}
    begin = (HEAD + 60_000) // PAGE * PAGE
    (found,) = judge(*reorder(file_of(small, [(begin, begin + 2 * PAGE)])))
    assert (found.inside, found.whole, found.partly) == ("a", ("s", "t"), ("a", "b"))


def test_zeros_that_are_not_cut_at_pages() -> None:
    assert not list(judge(*reorder(file_of(WIDE, [(3 * PAGE - 400, 5 * PAGE + 800)]))))


def test_rows_of_zeros() -> None:
    rows = (HEAD + 4 * 300 * 5, HEAD + 4 * 300 * 30)
    assert not list(judge(*reorder(file_of(WIDE, [rows]))))


def test_rows_that_are_pages() -> None:
    """Rows of one page in a file whose data begins at a page: never seen rows are cut at pages as well."""
    shapes = {"pad": ((PAGE - HEAD) // 4,), "embed": (50, PAGE // 4)}
    assert not list(judge(*reorder(file_of(shapes, [(4 * PAGE, 6 * PAGE)]))))


def test_a_tensor_that_is_rich_in_zeros_by_nature() -> None:
    natural = (20 * PAGE + 100, 22 * PAGE + 300)
    assert not list(judge(*reorder(file_of({"mask": (4000, 33)}, [(3 * PAGE, 4 * PAGE), natural]))))


def test_whole_tensors_of_zeros() -> None:
    shapes = {"a": (50, 300), "x.bias": (5000,), "b": (50, 300)}
    assert not list(judge(*reorder(file_of(shapes, [(HEAD + 60_000, HEAD + 80_000)]))))


@pytest.mark.parametrize("shift", [0, 1, 2, 777])
def test_zeros_to_the_end(shift: int) -> None:
    begin = 6 * PAGE + shift
    (found,) = judge(*reorder(file_of(WIDE, [(begin, 1 << 30)])))
    assert found.tail
    assert found.inside == "a"
    assert found.whole == ("b",)
    assert found.exact == (shift == 0)
    assert found.begin == begin


def test_a_last_tensor_that_is_zero() -> None:
    shapes = {"a": (50, 300), "q.lora_B.weight": (300, 40)}
    assert not list(judge(*reorder(file_of(shapes, [(HEAD + 60_000, 1 << 30)]))))


def test_several_last_weights_that_are_zero() -> None:
    shapes = {"a": (50, 300), "b.weight": (300, 40), "c.weight": (300, 40)}
    (found,) = judge(*reorder(file_of(shapes, [(HEAD + 60_000, 1 << 30)])))
    assert (found.inside, found.whole) == (None, ("b.weight", "c.weight"))


def test_integers_may_be_zero() -> None:
    assert not list(judge(*reorder(file_of(WIDE, [(3 * PAGE, 5 * PAGE)], "int32"))))


def test_a_run_reaches_as_far_as_its_zeros() -> None:
    data = b"\1" * 100 + bytes(3 * PAGE) + b"\1" * 50
    assert reach(BytesSource(data, "f"), (PAGE, 3 * PAGE)) == (100, 100 + 3 * PAGE)
    assert reach(BytesSource(bytes(3 * PAGE), "f"), (PAGE, 2 * PAGE)) == (0, 3 * PAGE)
