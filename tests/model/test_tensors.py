"""Flat runs of a tensor's elements as boxes."""

from __future__ import annotations

from itertools import product
from math import prod

from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.model.tensors import Box, boxes_of_range


def _elements(shape: tuple[int, ...], box: Box) -> list[int]:
    offsets, sizes = box
    places = product(*(range(start, start + size) for start, size in zip(offsets, sizes, strict=True)))
    steps = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return [sum(at * step for at, step in zip(place, steps, strict=True)) for place in places]


@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_the_boxes_of_a_range_are_its_elements_in_order(sizes: list[int], data: st.DataObject) -> None:
    shape = tuple(sizes)
    total = prod(shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    found = [element for box in boxes_of_range(shape, start, stop) for element in _elements(shape, box)]
    assert found == list(range(start, stop))


def test_whole_rows_are_one_box() -> None:
    assert boxes_of_range((6, 4, 2), 8, 40) == [((1, 0, 0), (4, 4, 2))]
    assert boxes_of_range((4, 5), 3, 17) == [((0, 3), (1, 2)), ((1, 0), (2, 5)), ((3, 0), (1, 2))]
