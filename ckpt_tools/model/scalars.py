"""The bytes of one number, by the name of its dtype."""

from __future__ import annotations

import struct

CODES = {
    "float32": "f", "float64": "d", "float16": "e", "int8": "b", "uint8": "B", "int16": "h", "uint16": "H",
    "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q", "bool": "?",
}  # fmt: skip


def known(dtype: str) -> bool:
    """Return whether ``decoded`` understands ``dtype``."""
    return dtype in CODES or dtype == "bfloat16"


def decoded(data: bytes, dtype: str, byteorder: str) -> float | int | bool | None:
    """Return the number that ``data``, the bytes of one element, is; None where it has not the size of one."""
    order = "<" if byteorder == "little" else ">"
    if dtype == "bfloat16":  # the upper half of a float32
        data = b"\0\0" + data if order == "<" else data + b"\0\0"
    form = f"{order}{CODES.get(dtype, 'f')}"
    if len(data) != struct.calcsize(form):
        return None
    number: float | int | bool = struct.unpack(form, data)[0]
    return number


def encoded(value: float | int, dtype: str, byteorder: str) -> bytes:
    """Return the bytes of ``value``, rounded to the nearest that ``dtype`` has.

    Raises:
        KeyError: ``dtype`` is not known.
        struct.error, OverflowError: the number does not fit.
    """
    order = "<" if byteorder == "little" else ">"
    if dtype == "bfloat16":
        bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
        raw = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF).to_bytes(2, "little")
        return raw if order == "<" else raw[::-1]
    code = CODES[dtype]
    return struct.pack(order + code, value if code in "fde" else int(value))
