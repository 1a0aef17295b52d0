"""Strided tensors in row-major order, against torch's own ``as_strided``."""

from __future__ import annotations

import pytest

from ckpt_tools.core.source import BytesSource, Extent
from ckpt_tools.model.tensors import Chunk, TensorRef
from ckpt_tools.numerics import gather
from ckpt_tools.numerics.gather import blocks, fills_its_extent, row_major_index, row_strides

torch = pytest.importorskip("torch")

CASES = [
    ((), ()),
    ((1,), (1,)),
    ((5, 7), (7, 1)),
    ((5, 7), (1, 5)),
    ((3, 4, 5), (5, 15, 1)),
    ((3, 4, 5), (1, 3, 12)),
    ((4, 3), (10, 2)),
    ((6,), (3,)),
    ((2, 3, 4), (0, 4, 1)),
    ((4, 4), (1, 1)),
    ((1, 5, 1), (99, 2, 77)),
    ((0, 3), (3, 1)),
    ((3, 2, 2, 3), (1, 36, 3, 6)),
]


def made(shape: tuple[int, ...], strides: tuple[int, ...], dtype: str = "float32", begin: int = 3):
    """Return a reference into a buffer that begins ``begin`` elements in, and the same tensor of torch."""
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
    storage = torch.arange(begin + span + 5, dtype=torch.float64).to(getattr(torch, dtype))
    data = storage.view(torch.uint8).numpy().tobytes()
    width = storage.element_size()
    dense = strides == row_strides(shape)
    extent = Extent("f", begin * width, span * width)
    chunk = Chunk((0,) * len(shape), shape, extent, None if dense else strides)
    tensor = torch.as_strided(storage, shape, strides, begin)
    return TensorRef("t", dtype, shape, (chunk,), "0"), BytesSource(data, "f"), tensor


def gathered(source: BytesSource, ref: TensorRef) -> bytes:
    return b"".join(block.tobytes() for block in blocks(source, ref))


@pytest.mark.parametrize("block", [4, 24, 64, 1 << 23])
@pytest.mark.parametrize(("shape", "strides"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "int64", "bfloat16"])
def test_the_bytes_are_those_of_a_contiguous_copy(shape, strides, dtype, block, monkeypatch) -> None:
    monkeypatch.setattr(gather, "BLOCK", block)
    ref, source, tensor = made(shape, strides, dtype)
    assert gathered(source, ref) == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_big_endian_bytes_are_turned() -> None:
    ref, source, _ = made((4,), (1,))
    turned = bytes(source.read(0, source.size))
    swapped = b"".join(turned[at : at + 4][::-1] for at in range(0, len(turned), 4))
    (chunk,) = ref.chunks
    big = TensorRef("t", "float32", (4,), (Chunk((0,), (4,), chunk.extent, None, "big"),), "0")
    assert gathered(BytesSource(swapped, "f"), big) == gathered(source, ref)


def test_random_permutations(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(60):
        rank = int(torch.randint(1, 5, (1,), generator=generator))
        shape = torch.randint(1, 6, (rank,), generator=generator).tolist()
        order = torch.randperm(rank, generator=generator).tolist()
        strides = [0] * rank
        step = 1
        for axis in order:
            strides[axis] = step
            step *= shape[axis]
        monkeypatch.setattr(gather, "BLOCK", int(torch.randint(1, 200, (1,), generator=generator)))
        ref, source, tensor = made(tuple(shape), tuple(strides))
        assert gathered(source, ref) == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        assert fills_its_extent(tuple(shape), tuple(strides))
        flat = tensor.contiguous().view(-1).tolist()
        memory = source.read(12, 4 * tensor.numel())
        first = torch.frombuffer(bytearray(memory), dtype=torch.float32).tolist()
        place = int(torch.randint(0, tensor.numel(), (1,), generator=generator))
        index = row_major_index(place, tuple(shape), tuple(strides))
        assert flat[index] == first[place]


def test_gaps_and_overlaps_do_not_fill() -> None:
    assert not fills_its_extent((4, 3), (10, 2))
    assert not fills_its_extent((4, 4), (1, 1))
    assert not fills_its_extent((2, 3), (0, 1))
