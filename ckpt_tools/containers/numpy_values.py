"""numpy scalars and arrays inside pickles, described and read without numpy."""

from __future__ import annotations

from struct import error as StructError  # noqa: N812
from struct import unpack

from ckpt_tools.model.values import Opaque, Value

_CODES = {
    "f2": ("float16", "e"),
    "f4": ("float32", "f"),
    "f8": ("float64", "d"),
    "i1": ("int8", "b"),
    "i2": ("int16", "h"),
    "i4": ("int32", "i"),
    "i8": ("int64", "q"),
    "u1": ("uint8", "B"),
    "u2": ("uint16", "H"),
    "u4": ("uint32", "I"),
    "u8": ("uint64", "Q"),
    "b1": ("bool", "?"),
    "c8": ("complex64", ""),
    "c16": ("complex128", ""),
}
_NUMPY_MODULES = ("numpy._core.multiarray.", "numpy.core.multiarray.")


def numpy_dtype(value: Value) -> tuple[str, str, str] | None:
    """Return ``(name, struct code, "<" or ">")`` of a described ``numpy.dtype``; the name is numpy's own code
    where it is no plain number."""
    if type(value) is not Opaque or value.qualname != "numpy.dtype" or not value.args:
        return None
    code = value.args[0]
    if type(code) is not str or len(code) > 64:
        return None
    state = value.state
    order = state[1] if type(state) is tuple and len(state) > 1 else "<"
    name, letter = _CODES.get(code, (code, ""))
    return name, letter, ">" if order == ">" else "<"


def numpy_scalar_value(value: Value) -> float | int | bool | None:
    """Return the number that a described numpy scalar holds, None where it is no real number."""
    if type(value) is not Opaque or not value.called or len(value.args) != 2:
        return None
    if value.qualname not in (f"{module}scalar" for module in _NUMPY_MODULES):
        return None
    dtype = numpy_dtype(value.args[0])
    if dtype is None or not dtype[1] or type(value.args[1]) is not bytes:
        return None
    try:
        number: float | int | bool = unpack(dtype[2] + dtype[1], value.args[1])[0]
    except StructError:
        return None
    return number


def numpy_array(value: Value) -> tuple[str, tuple[int, ...]] | None:
    """Return ``(dtype, shape)`` of a described numpy array, None for anything else."""
    if type(value) is not Opaque or not value.called:
        return None
    module, _, name = value.qualname.rpartition(".")
    if name == "_reconstruct" and f"{module}." in _NUMPY_MODULES:
        state = value.state
        if type(state) is not tuple or len(state) < 5:
            return None
        shape, dtype = state[1], numpy_dtype(state[2])
    elif name == "_frombuffer" and module in ("numpy._core.numeric", "numpy.core.numeric") and len(value.args) >= 3:
        shape, dtype = value.args[2], numpy_dtype(value.args[1])
    else:
        return None
    if dtype is None or type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        return None
    return dtype[0], shape
