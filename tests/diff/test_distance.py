"""The streamed distance against the same thing done plainly with whole arrays in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.core.source import BytesSource, Extent
from ckpt_tools.model.tensors import DTYPE_BITS, Chunk, TensorRef
from ckpt_tools.numerics import distance
from ckpt_tools.numerics.distance import BLOCK, DTYPES, Distance
from ckpt_tools.ops import diff_tensors

FLOATS = [name for name in DTYPES if name.startswith(("float", "bfloat"))]
WHOLE = [name for name in DTYPES if "int" in name]
SIZES = (1, 7, BLOCK - 1, BLOCK + 13)


def reference(left: np.ndarray, right: np.ndarray) -> Distance:
    """What is to be found, done with one operation after another on whole arrays."""
    wide = np.complex128 if "c" in (left.dtype.kind, right.dtype.kind) else np.longdouble
    a, b = left.astype(wide), right.astype(wide)
    with np.errstate(all="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        delta = np.abs(a - b)
        finite = np.isfinite(a) & np.isfinite(b)
        numbers = delta[~np.isnan(delta)]
    return Distance(
        a.size,
        int((~same).sum()),
        float(numbers.max(initial=0)),
        float((delta[finite] ** 2).sum()),
        float((np.abs(a[finite]) ** 2).sum()),
        float((np.abs(b[finite]) ** 2).sum()),
        int(np.isnan(a).sum()),
        int(np.isnan(b).sum()),
    )


def found(left: np.ndarray, right: np.ndarray, dtypes: Sequence[str]) -> Distance:
    sides = [(BytesSource(each.tobytes(), "x"), 0, dtype) for each, dtype in zip((left, right), dtypes, strict=True)]
    return distance.dense(sides[0], sides[1], left.size)


def agree(one: Distance, other: Distance, precision: float = 3e-6) -> None:
    assert (one.count, one.changed, one.nan_left, one.nan_right) == (
        other.count, other.changed, other.nan_left, other.nan_right,
    )  # fmt: skip
    assert one.largest == pytest.approx(other.largest, rel=1e-6)
    for mine, theirs in zip(
        (one.delta2, one.left2, one.right2), (other.delta2, other.left2, other.right2), strict=True
    ):
        assert mine == pytest.approx(theirs, rel=precision)


def numbers(dtype: str, count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    kind = DTYPES[dtype]
    if dtype == "bool":
        return random.random(count) < 0.5
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return random.integers(limits.min, limits.max, count, kind, endpoint=True)
    if dtype == "complex32":
        return random.standard_normal(2 * count).astype(np.float16).view(kind)
    if kind.kind == "c":
        return (random.standard_normal(count) + 1j * random.standard_normal(count)).astype(kind)
    return (
        np.abs(random.standard_normal(count)).astype(kind)
        if "e8m0" in dtype
        else random.standard_normal(count).astype(kind)
    )


def wide(values: np.ndarray) -> np.ndarray:
    if values.dtype.fields:
        return values.view(np.float16).astype(np.float32).view(np.complex64)
    return values.astype(np.float64) if values.dtype.kind == "V" else values


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str, count: int) -> None:
    left, right = numbers(dtype, count, 1), numbers(dtype, count, 2)
    right[: count // 3] = left[: count // 3]
    agree(found(left, right, (dtype, dtype)), reference(wide(left), wide(right)))


@pytest.mark.parametrize("right", [*FLOATS, "int8", "bool", "complex64"])
@pytest.mark.parametrize("left", FLOATS)
def test_across_dtypes(left: str, right: str) -> None:
    one = numbers(left, 5000, 1)
    other = one.astype(np.float32).astype(DTYPES[right]) if "float" in right else numbers(right, 5000, 3)
    agree(found(one, other, (left, right)), reference(wide(one), wide(other)))


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_large_integers_are_told_apart(dtype: str) -> None:
    left = np.full(100, 2**62, DTYPES[dtype])
    right = left.copy()
    right[3] += 1
    result = found(left, right, (dtype, dtype))
    assert (result.changed, result.largest, result.delta2) == (1, 1.0, 1.0)
    limits = np.iinfo(left.dtype)
    far = found(np.array([limits.min], dtype), np.array([limits.max], dtype), (dtype, dtype))
    assert far.largest == float(2**64 - 1)


@pytest.mark.parametrize("dtype", [name for name in FLOATS if name not in ("float8_e8m0fnu", "float8_e4m3fn")])
def test_nan_and_infinity(dtype: str) -> None:
    left = numbers(dtype, BLOCK + 40, 5)
    right = left.copy()
    if "fnuz" not in dtype:
        left[0], right[0] = math.inf, math.inf
        left[1], right[1] = math.inf, 1.0
        left[2], right[2] = -math.inf, math.inf
    left[3], right[3] = math.nan, math.nan
    left[4], right[4] = math.nan, 2.0
    right[BLOCK + 7] = math.nan
    right[9] = 3.0
    result = found(left, right, (dtype, dtype))
    agree(result, reference(left.astype(np.float64), right.astype(np.float64)))
    assert (result.nan_left, result.nan_right) == (2, 2)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-20, 1e-12, 1e12, 1e19, 1e30, 3e38])
def test_tiny_and_huge_numbers_lose_nothing(scale: float) -> None:
    random = np.random.default_rng(0)
    left = (random.uniform(-1, 1, BLOCK + 5) * scale).astype(np.float32)
    right = (random.uniform(-1, 1, BLOCK + 5) * scale).astype(np.float32)
    result = found(left, right, ("float32", "float32"))
    agree(result, reference(left, right))
    assert result.relative == pytest.approx(math.sqrt(2), rel=0.02)
    assert result.cosine == pytest.approx(0, abs=0.02)


def test_second_moments_of_an_optimizer_are_not_lost_beside_zeros() -> None:
    left = np.zeros(3 * BLOCK, np.float32)
    right = left.copy()
    right[5] = 1e-25
    result = found(left, right, ("float32", "float32"))
    assert (result.changed, result.relative, result.cosine) == (1, math.inf, None)
    assert result.largest == pytest.approx(1e-25)
    assert result.delta2 == pytest.approx(1e-50)


def test_zeros_of_both_signs_are_one_number() -> None:
    left, right = np.zeros(10, np.float32), -np.zeros(10, np.float32)
    result = found(left, right, ("float32", "float32"))
    assert (result.changed, result.relative, result.largest) == (0, 0.0, 0.0)


def test_nearly_parallel_tensors_have_a_cosine_below_one() -> None:
    left = np.random.default_rng(0).standard_normal(BLOCK).astype(np.float32)
    right = left + np.float32(1e-4) * np.random.default_rng(1).standard_normal(BLOCK).astype(np.float32)
    a, b = left.astype(np.float64), right.astype(np.float64)
    exact = 1 - (a @ b) / math.sqrt((a @ a) * (b @ b))
    cosine = found(left, right, ("float32", "float32")).cosine
    assert cosine is not None
    assert 1 - cosine == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
def test_rounding_alone_is_recognised(narrow: str) -> None:
    left = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    left[7] = math.nan
    right = left.astype(DTYPES[narrow])
    assert found(left, right, ("float32", narrow)).unrounded == 0
    assert found(right, left, (narrow, "float32")).unrounded == 0
    right[3] = 9
    assert found(left, right, ("float32", narrow)).unrounded == 1
    assert found(left, left, ("float32", "float32")).unrounded is None


# Places ------------------------------------------------------------------------------------------------------


def ref(array: np.ndarray, dtype: str, chunks: tuple[Chunk, ...]) -> TensorRef:
    return TensorRef("t", dtype, array.shape, chunks)


def dense_chunk(array: np.ndarray, path: str = "a", at: int = 0) -> Chunk:
    return Chunk((0,) * array.ndim, array.shape, Extent(path, at, array.nbytes))


def strided_chunk(view: np.ndarray, base: np.ndarray, path: str = "b") -> Chunk:
    strides = tuple(step // view.itemsize for step in view.strides)
    at = view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    length = sum((n - 1) * s for n, s in zip(view.shape, strides, strict=True)) + 1
    return Chunk((0,) * view.ndim, view.shape, Extent(path, at, length * view.itemsize), strides)


VIEWS = {
    "transposed": lambda base: base.T,
    "columns": lambda base: base[:, 3:90:2],
    "row": lambda base: base[4],
    "column": lambda base: base[:, 4],
    "expanded": lambda base: np.broadcast_to(base[:1], (50, base.shape[1])),
    "element": lambda base: base[2, 3],
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "float8_e5m2", "complex64"])
@pytest.mark.parametrize("how", VIEWS)
def test_strided_views(how: str, dtype: str) -> None:
    base = numbers(dtype, 900 * 400, 1).reshape(900, 400)
    view = VIEWS[how](base)
    if how == "element":
        view = base[2:3, 3:4].reshape(())
    other = np.ascontiguousarray(view).reshape(view.shape).copy()
    other.reshape(-1)[: max(1, other.size // 2)] = numbers(dtype, max(1, other.size // 2), 2)
    sources = {"b": BytesSource(base.tobytes(), "b")}, {"a": BytesSource(other.tobytes(), "a")}
    result = distance.strided(
        ref(view, dtype, (strided_chunk(view, base),)), ref(other, dtype, (dense_chunk(other),)), sources
    )
    agree(result, reference(wide(np.ascontiguousarray(view).reshape(-1)), wide(other.reshape(-1))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "complex64", "complex32", "uint8"])
def test_big_endian_bytes(dtype: str) -> None:
    left, right = numbers(dtype, 3000, 1), numbers(dtype, 3000, 2)
    width = 2 if dtype == "complex32" else left.itemsize // (2 if dtype == "complex64" else 1)
    swapped = left.view(f"u{width}").byteswap().tobytes()
    chunk = Chunk((0,), (3000,), Extent("a", 0, len(swapped)), None, "big")
    sources = {"a": BytesSource(swapped, "a")}, {"a": BytesSource(right.tobytes(), "a")}
    result = distance.strided(ref(left, dtype, (chunk,)), ref(right, dtype, (dense_chunk(right),)), sources)
    agree(result, reference(wide(left), wide(right)))


def test_chunks_of_two_shardings() -> None:
    left, right = (numbers("float32", 70 * 90, seed).reshape(70, 90) for seed in (1, 2))
    rows = [left[:17], left[17:18], left[18:]]
    columns = [right[:, :1], right[:, 1:41], right[:, 41:]]
    sides = []
    for pieces, axis in ((rows, 0), (columns, 1)):
        sources, chunks, at = {}, [], 0
        for number, piece in enumerate(pieces):
            path = f"{number}"
            sources[path] = BytesSource(np.ascontiguousarray(piece).tobytes(), path)
            offsets = (at, 0) if axis == 0 else (0, at)
            chunks.append(Chunk(offsets, piece.shape, Extent(path, 0, piece.nbytes)))
            at += piece.shape[axis]
        sides.append((TensorRef("t", "float32", (70, 90), tuple(chunks)), sources))
    result = distance.strided(sides[0][0], sides[1][0], (sides[0][1], sides[1][1]))
    agree(result, reference(left.reshape(-1), right.reshape(-1)))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (5, 0, 3), (7, 11, 13), (100_000,), (3, 1, 1, 1, 50)])
def test_boxes_cover_a_tensor_once(shape: tuple[int, ...]) -> None:
    seen = np.zeros(shape, int)
    for origin, sizes in distance.boxes(shape, 64):
        assert math.prod(sizes) <= 64
        seen[tuple(slice(at, at + size) for at, size in zip(origin, sizes, strict=True))] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_values_are_asked_for_where_there_is_a_type_for_them_and_no_type_is_packed_below_a_byte(dtype: str) -> None:
    assert diff_tensors.decoded(TensorRef("t", dtype, (2,), ())) is (dtype in DTYPES)
    assert DTYPE_BITS[dtype] >= 8 or dtype not in DTYPES


def test_torch_says_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        a = torch.randn(300, 500, generator=generator).to(dtype)
        b = a + torch.randn(300, 500, generator=generator).to(dtype) / 50
        name = str(dtype).removeprefix("torch.")
        raw = [BytesSource(t.contiguous().view(torch.uint8).numpy().tobytes(), "x") for t in (a, b)]
        result = distance.dense((raw[0], 0, name), (raw[1], 0, name), a.numel())
        x, y = a.double(), b.double()
        assert result.largest == pytest.approx((x - y).abs().max().item(), rel=1e-6)
        assert result.relative == pytest.approx(((x - y).norm() / x.norm()).item(), rel=1e-6)
        cosine = torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()
        assert result.cosine == pytest.approx(cosine, rel=1e-6)
        assert result.share == pytest.approx((x != y).double().mean().item())
