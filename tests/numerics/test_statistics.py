"""Facts from bits, against numpy and ml_dtypes that convert."""

from __future__ import annotations

from itertools import product

import ml_dtypes
import numpy as np
import pytest

from ckpt_tools.numerics.statistics import FORMATS, Facts, number_type

SMALL = [name for name, form in FORMATS.items() if form.width == 1]
PLAIN = [name for name, form in FORMATS.items() if form.parts == 1]


def facts_of(raw: np.ndarray, dtype: str, order: str = "little", negative: bool = True, block: int = 0) -> Facts:
    form = FORMATS[dtype]
    facts = Facts(dtype, order, negative)
    data = np.frombuffer(raw.tobytes(), np.uint8)
    step = block * form.width or max(1, len(data))
    for begin in range(0, len(data), step):
        facts.feed(data[begin : begin + step], begin // form.width)
    return facts


def expected(values: np.ndarray) -> dict[str, object]:
    with np.errstate(all="ignore"):
        wide = values.astype(np.float64)
    nan, inf = np.isnan(wide), np.isinf(wide)
    bad = np.flatnonzero(nan | inf)
    finite = np.abs(wide[~(nan | inf)])
    return {
        "nan": int(nan.sum()),
        "inf": int(inf.sum()),
        "first": int(bad[0]) if len(bad) else None,
        "largest": float(finite.max()) if len(finite) else None,
        "zero": bool((wide == 0).all()),
        "negative": int((wide < 0).sum()),
    }


def seen(facts: Facts) -> dict[str, object]:
    return {
        "nan": facts.nan,
        "inf": facts.inf,
        "first": facts.first_bad,
        "largest": facts.magnitude,
        "zero": facts.zero,
        "negative": facts.negative,
    }


@pytest.mark.parametrize("dtype", SMALL)
def test_every_byte_of_an_eight_bit_type(dtype: str) -> None:
    for bits in range(256):
        for company in ((), (0,), (0, 0x33)):
            raw = np.array([*company, bits], np.uint8)
            want = expected(raw.view(number_type(FORMATS[dtype].number)))
            assert seen(facts_of(raw, dtype)) == want, (dtype, bits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_pattern_of_a_sixteen_bit_type(dtype: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for row in every.reshape(256, 256):
        assert seen(facts_of(row, dtype)) == expected(row.view(number_type(FORMATS[dtype].number)))
    assert seen(facts_of(every, dtype)) == expected(every.view(number_type(FORMATS[dtype].number)))


@pytest.mark.parametrize(("dtype", "order", "block"), list(product(PLAIN, ("little", "big"), (0, 1, 7))))
def test_random_values_in_blocks_of_either_order(dtype: str, order: str, block: int) -> None:
    form = FORMATS[dtype]
    if order == "big" and form.width == 1:
        pytest.skip("bytes have no order")
    random = np.random.default_rng(7)
    for trial in range(60):
        values = random.standard_normal(random.integers(1, 90)) * 10.0 ** random.integers(-3, 3)
        if trial % 3 == 0:
            values = np.abs(values)
        if trial % 4 == 0:
            values[random.integers(0, len(values))] = [np.nan, np.inf, -np.inf, -0.0][trial // 4 % 4]
        with np.errstate(all="ignore"):
            typed = values.astype(number_type(form.number))
        raw = typed.view(f"u{form.width}")
        stored = raw.byteswap() if order == "big" else raw
        assert seen(facts_of(stored, dtype, order, block=block)) == expected(typed)


def test_negative_nan_and_minus_zero_are_not_negative() -> None:
    raw = np.array([0xFFC00000, 0x80000000, 0x7FC00000], np.uint32)
    facts = facts_of(raw, "float32")
    assert (facts.nan, facts.negative) == (2, 0)


def test_a_complex_number_is_two() -> None:
    values = np.array([1 + 2j, complex(3, np.inf), complex(np.nan, np.nan)], np.complex64)
    facts = facts_of(values.view(np.uint32), "complex64")
    assert (facts.nan, facts.inf, facts.first_bad) == (2, 1, 1)


def test_bool_bytes_other_than_0_and_1_are_counted() -> None:
    facts = Facts("bool")
    facts.feed(np.array([0, 1, 1], np.uint8), 0)
    assert facts.odd == 0
    facts.feed(np.array([0, 2, 255], np.uint8), 3)
    assert (facts.odd, facts.first_bad) == (2, 4)


def test_blocks_merge_in_any_order() -> None:
    values = np.random.default_rng(3).standard_normal(1000).astype(np.float32)
    values[[200, 700]] = np.nan, np.inf
    whole = facts_of(values.view(np.uint32), "float32")
    parts = []
    for begin in (500, 0, 750, 250):
        part = Facts("float32", "little", True)
        part.feed(np.frombuffer(values[begin : begin + 250].tobytes(), np.uint8), begin)
        parts.append(part)
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    assert seen(merged) == seen(whole) | {"largest": whole.magnitude}


def test_types_are_those_of_the_library() -> None:
    assert ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max == 448
    assert facts_of(np.array([0x7E], np.uint8), "float8_e4m3fn").magnitude == 448
