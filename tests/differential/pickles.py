"""Changes to single opcodes of the pickle inside a torch file, with everything around it put right again."""

from __future__ import annotations

import io
import pickletools
import random
import struct
from dataclasses import dataclass
from functools import lru_cache

from tests.differential import records


@dataclass(frozen=True, slots=True)
class Op:
    name: str
    argument: object
    start: int
    end: int


@lru_cache(maxsize=32)
def ops_of(pickle: bytes) -> tuple[Op, ...]:
    found = [(code.name, argument, position) for code, argument, position in pickletools.genops(pickle)]
    ends = [position for _, _, position in found[1:]] + [found[-1][2] + 1]
    return tuple(
        Op(name, argument, position or 0, end or 0) for (name, argument, position), end in zip(found, ends, strict=True)
    )


def in_zip(draw: random.Random, data: bytes) -> tuple[str, bytes] | None:
    root, members = records.unpack(data)
    what, members["data.pkl"] = change(draw, members["data.pkl"])
    return what, records.pack(root, list(members.items()))


def in_legacy(draw: random.Random, data: bytes) -> tuple[str, bytes]:
    stream = io.BytesIO(data)
    ends = [0]
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    which = draw.choices((0, 1, 2, 3, 4), (1, 1, 2, 10, 3))[0]
    what, pickle = change(draw, data[ends[which] : ends[which + 1]])
    return f"pickle {which}: {what}", data[: ends[which]] + pickle + data[ends[which + 1] :]


def change(draw: random.Random, pickle: bytes) -> tuple[str, bytes]:
    """Change one opcode, or two, of a pickle."""
    ops = ops_of(pickle)
    action = draw.choice(tuple(_ACTIONS))
    fitting = [op for op in ops if op.name in _FITTING[action]] if action in _FITTING else list(ops)
    if not fitting:
        action, fitting = "drop", list(ops)
    op = draw.choice(fitting)
    new = _ACTIONS[action](draw, pickle, op, ops)
    said = f"{action} {op.name} {str(op.argument)[:40]!r} at {op.start} -> {new[:40]!r}"
    return said, pickle[: op.start] + new + pickle[op.end :]


_INTS = ("BININT", "BININT1", "BININT2", "LONG1")
_FITTING = {
    "integer": _INTS,
    "float": ("BINFLOAT",),
    "text": ("BINUNICODE", "SHORT_BINUNICODE"),
    "global": ("GLOBAL",),
    "memo-get": ("BINGET", "LONG_BINGET"),
    "memo-put": ("BINPUT", "LONG_BINPUT"),
    "protocol": ("PROTO",),
    "constant": ("NEWTRUE", "NEWFALSE", "NONE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"),
}
_GLOBALS = (
    *("torch FloatStorage", "torch DoubleStorage", "torch HalfStorage", "torch BFloat16Storage", "torch LongStorage"),
    *("torch ByteStorage", "torch BoolStorage", "torch.storage UntypedStorage", "torch ComplexFloatStorage"),
    *("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"),
    *("torch._utils _rebuild_parameter", "torch._utils _rebuild_sparse_tensor", "torch Size", "torch float32"),
    *("torch Tensor", "torch device", "torch bfloat16", "torch.nn.parameter Parameter", "torch qint8"),
    *("torch.cuda FloatStorage", "torch QInt8Storage", "torch._tensor _rebuild_from_type_v2"),
    *("collections OrderedDict", "collections defaultdict", "collections Counter", "builtins set", "builtins complex"),
    *(
        "builtins eval",
        "builtins getattr",
        "os system",
        "posix system",
        "numpy dtype",
        "numpy ndarray",
        "numpy float64",
    ),
    *("numpy._core.multiarray _reconstruct", "numpy.core.multiarray _reconstruct", "numpy._core.multiarray scalar"),
    *("_codecs encode", "__builtin__ set", "pathlib PosixPath", "torch.nn.modules.linear Linear", "torch nonsense"),
    *("made.up thing", "torch.optim.adamw AdamW", "functools partial", "copyreg _reconstructor"),
)
_FOREIGN = (
    *(b"N", b"\x88", b"\x89", b"}", b"]", b")", b"(", b"0", b"1", b".", b"2", b"\x8f", b"\x94", b"R", b"b", b"\x81"),
    *(b"\x85", b"\x86", b"\x87", b"u", b"s", b"a", b"e", b"t", b"l", b"d", b"o", b"\x92", b"Q", b"\x93", b"\x90"),
    *(b"K\x05", b"M\x05\x00", b"J\x05\x00\x00\x00", b"\x8a\x01\x05", b"\x8a\x00", b"I5\n", b"L5L\n", b"F1.5\n"),
    *(b"X\x01\x00\x00\x00a", b"\x8c\x01a", b"U\x01a", b"T\x01\x00\x00\x00a", b"C\x01a", b"B\x01\x00\x00\x00a"),
    *(b"\x8d\x01\x00\x00\x00\x00\x00\x00\x00a", b"\x8e\x01\x00\x00\x00\x00\x00\x00\x00a", b"Va\n", b"S'a'\n"),
    *(b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"Pabc\n", b"g0\n", b"p7\n", b"h\x00", b"q\xfe"),
    *(b"j\x00\x00\x00\x00", b"r\xff\xff\xff\x7f", b"\x95\x10\x00\x00\x00\x00\x00\x00\x00", b"ios\nsystem\n"),
    *(
        b"\x80\x02",
        b"\x80\x04",
        b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a",
        b"\x97",
        b"\x98",
        b"cos\nsystem\n",
        b"\xff",
        b"\x00",
    ),
)


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _change_integer(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    now = op.argument
    assert isinstance(now, int)
    return _integer(
        draw.choice((0, 1, 2, -1, now + 1, now - 1, now * 2, now // 2, 255, 10**6, 2**31, 2**40, 2**63, -(2**63)))
    )


def _change_float(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    return b"G" + struct.pack(">d", draw.choice((0.0, -1.0, 1e308, float("nan"), float("inf"), draw.random())))


def _change_text(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    others = [other.argument for other in ops if other.name in _FITTING["text"]]
    text = draw.choice(
        (
            "",
            "x",
            "cpu",
            "cuda:0",
            "storage",
            "meta",
            "0",
            "999",
            "state",
            "../x",
            "é\0",
            str(op.argument) + "x",
            draw.choice(others),
        )
    )
    raw = str(text).encode()
    raw = draw.choices((raw, b"\xff\xfe"), (12, 1))[0]
    return b"X" + struct.pack("<I", len(raw)) + raw


def _change_global(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    module, name = draw.choice(_GLOBALS).split(" ")
    return f"c{module}\n{name}\n".encode()


def _change_get(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    index = draw.choice((0, 1, int(str(op.argument)) + 1, draw.randrange(200), 2**31 - 1))
    return b"j" + struct.pack("<I", index)


def _change_put(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    index = draw.choice((0, 1, int(str(op.argument)) + 1, draw.randrange(200), 2**31 - 1))
    return draw.choice((b"", b"r" + struct.pack("<I", index)))


def _change_protocol(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    return draw.choice((b"", b"\x80\x00", b"\x80\x01", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x80\x06", b"\x80\xff"))


def _change_constant(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    return draw.choice((b"N", b"\x88", b"\x89", b"}", b"]", b")", b"\x8f", b"K\x00"))


def _drop(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    return b""


def _double(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    return pickle[op.start : op.end] * 2


def _replace(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    return draw.choice(_FOREIGN)


def _before(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    return draw.choice(_FOREIGN) + pickle[op.start : op.end]


def _elsewhere(draw: random.Random, pickle: bytes, op: Op, ops: tuple[Op, ...]) -> bytes:
    other = draw.choice(ops)
    return pickle[other.start : other.end]


_ACTIONS = {
    "integer": _change_integer,
    "float": _change_float,
    "text": _change_text,
    "global": _change_global,
    "memo-get": _change_get,
    "memo-put": _change_put,
    "protocol": _change_protocol,
    "constant": _change_constant,
    "drop": _drop,
    "double": _double,
    "replace": _replace,
    "insert": _before,
    "other": _elsewhere,
}
