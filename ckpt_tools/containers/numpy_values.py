"""numpy scalars and arrays inside pickles, described and read without numpy."""

from __future__ import annotations

import re
from math import prod
from struct import error as StructError  # noqa: N812
from struct import unpack

from ckpt_tools.model.tensors import TensorRef
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
_CODE = re.compile(r"[<>=|]?(?:[?bBhHiIlLqQefdgFDGSUVOmM]|[biufcSUVOmM]\d{1,9})(?:\[[^\]]*\])?")
_NUMPY_MODULES = ("numpy._core.multiarray.", "numpy.core.multiarray.")
_SCALAR = frozenset(f"{module}scalar" for module in _NUMPY_MODULES)


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
    if value.qualname not in _SCALAR:
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


def numpy_fault(value: Opaque) -> str | None:
    """Return what numpy would say of the parts of a described dtype or array, None where it would take them."""
    if value.qualname == "numpy.dtype":
        return _dtype_fault(value)
    module, _, name = value.qualname.rpartition(".")
    if name != "_reconstruct" or f"{module}." not in _NUMPY_MODULES:
        return None
    args, state = value.args, value.state
    if len(args) != 3 or type(args[0]) is not Opaque or args[0].called:
        return "numpy's _reconstruct is not given a class, a shape and a type"
    code = args[2].decode("latin-1") if isinstance(args[2], bytes) else args[2]
    if type(code) is not str or _CODE.fullmatch(code) is None:
        return "numpy's _reconstruct is given a type that it does not know"
    if args[0].qualname.startswith(("torch.", "collections.", "builtins.")):
        return f"numpy's _reconstruct is given {args[0].qualname}, which is no array"
    if type(state) is not tuple or len(state) not in (4, 5):
        return "a numpy array gets a state of another form"
    shape, dtype, order, data = state[-4:]
    if not isinstance(order, int) or (len(state) == 5 and state[0] != 1):
        return "a numpy array gets a state of another form"
    if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        return "a numpy array gets a shape that is none"
    width = _CODES.get(str(dtype.args[0])) if isinstance(dtype, Opaque) and dtype.args else None
    if width is None or not isinstance(data, bytes):
        return None if isinstance(dtype, Opaque) and isinstance(data, bytes | list) else "a numpy array gets no data"
    needed = prod(shape) * int(str(dtype.args[0])[1:])
    return None if len(data) == needed else f"a numpy array of {needed:,} bytes is given {len(data):,}"


def numpy_call_fault(made: Opaque) -> str | None:
    """Return what numpy would say of a call of one of its own functions, None where it would make it."""
    if made.qualname == "numpy.dtype":
        first = made.args[0] if made.args else None
        if not 1 <= len(made.args) <= 4 or type(first) in (int, float, bool, TensorRef):
            return "numpy.dtype is called with what makes no type"
    elif made.qualname in _SCALAR and (len(made.args) not in (1, 2) or not isinstance(made.args[0], Opaque)):
        return "numpy's scalar is called with what makes no number"
    return None


def _dtype_fault(value: Opaque) -> str | None:
    code, state = value.args[0] if value.args else None, value.state
    if type(code) is not str or _CODE.fullmatch(code) is None:
        return "numpy.dtype is asked for a type that there is not"
    if type(state) is not tuple or not 5 <= len(state) <= 9 or type(state[0]) is not int:
        return "a numpy dtype gets a state of another form"
    if state[2] is not None and (type(state[2]) is not tuple or len(state[2]) != 2):
        return "a numpy dtype is part of another in a form that there is not"
    if (state[3] is None) != (state[4] is None) and state[0] == 3:
        return "a numpy dtype gets fields without names, or names without fields"
    if state[1] not in ("<", ">", "|", "="):
        return "a numpy dtype gets an order of bytes that there is not"
    return None
