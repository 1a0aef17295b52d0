"""Pickles made to hurt: each function returns the bytes of one.  No torch and no third-party package is needed.

``BOMBS`` have to be refused or to come out small; ``DAMAGED`` cannot be read at all; ``INERT`` look like attacks, and
are described without anything happening.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

PROTO2 = b"\x80\x02"
PROTO4 = b"\x80\x04"
STOP = b"."


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def _get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


# Bombs -----------------------------------------------------------------------------------------------------


def memo_index() -> bytes:
    """Nine bytes for which CPython's unpickler allocates 3 GB."""
    return PROTO2 + b"N" + _put(0x0FFFFFFF) + STOP


def memo_index_text() -> bytes:
    return b"Np99999999999999999999\n."


def deep_tuple_key() -> bytes:
    """A megabyte of tuples in tuples as a dictionary's key: hashing it overruns the C stack."""
    return PROTO2 + b"})" + b"\x85" * 1_000_000 + b"Ns" + STOP


def deep_tuple_value() -> bytes:
    return PROTO2 + b")" + b"\x85" * 1_000_000 + STOP


def shared_tuple_key() -> bytes:
    """A few hundred bytes that unfold to a key of 2**60 elements."""
    body = b"".join(_put(level) + _get(level) + b"\x86" for level in range(60))
    return PROTO2 + b"})" + body + b"Ns" + STOP


def shared_tuple_value() -> bytes:
    body = b"".join(_put(level) + _get(level) + b"\x86" for level in range(60))
    return PROTO2 + b")" + body + STOP


def shared_lists() -> bytes:
    """The billion laughs: every list holds the one before ten times."""
    body = b"]" + _put(0)
    for level in range(1, 30):
        body += b"](" + _get(level - 1) * 10 + b"e" + _put(level)
    return PROTO2 + body + STOP


def shared_objects() -> bytes:
    """The same with objects, as a graph in which everything refers to everything."""
    body = b"cm\nC\n" + _put(100) + b")R" + _put(0)
    for level in range(1, 40):
        body += _get(100) + b"(" + _get(level - 1) * 10 + b"tR" + _put(level)
    return PROTO2 + body + STOP


def set_flood() -> bytes:
    return PROTO4 + b"(" + b"\x8f" * 5_000_000 + b"t" + STOP


def list_flood() -> bytes:
    return PROTO2 + b"(" + b"]" * 5_000_000 + b"t" + STOP


def dict_flood() -> bytes:
    return PROTO2 + b"(" + b"}" * 5_000_000 + b"t" + STOP


def mark_flood() -> bytes:
    return PROTO2 + b"(" * 5_000_000 + STOP


def global_flood() -> bytes:
    return PROTO2 + b"(" + b"ca\nb\n" * 2_000_000 + b"t" + STOP


def deep_lists() -> bytes:
    return PROTO2 + b"]" * 100_000 + b"a" * 99_999 + STOP


def deep_reduce() -> bytes:
    body = PROTO2 + b"cm\nf\n" + _put(0)
    return body + _get(0) * 100_000 + b")" + b"R" + b"\x85R" * 99_999 + STOP


def call_of_calls() -> bytes:
    """The result of a call is called, and so on: a name that grew with it would be copied each time."""
    return PROTO2 + b"cm\nf\n" + b")R" * 200_000 + STOP


def copied_dictionary() -> bytes:
    """One dictionary, copied by a call of six bytes again and again."""
    pairs = b"".join(_text(f"k{n}") + b"N" for n in range(20_000))
    call = _get(1) + _get(0) + b"\x85R"
    return (
        PROTO2
        + b"}("
        + pairs
        + b"u"
        + _put(0)
        + b"ccollections\nOrderedDict\n"
        + _put(1)
        + b"("
        + call * 50_000
        + b"t."
    )


def copied_bytes() -> bytes:
    """One text of a megabyte, encoded by a call of eleven bytes again and again."""
    call = _get(1) + _get(2) + b"R"
    arguments = _text("x" * 1_000_000) + _text("latin1") + b"\x86" + _put(2)
    return PROTO2 + arguments + b"c_codecs\nencode\n" + _put(1) + b"(" + call * 100_000 + b"t" + STOP


def colliding_keys() -> bytes:
    """Integers that all have the same hash."""
    modulus = (1 << 61) - 1
    pairs = b"".join(
        b"\x8a\x0c" + (number * modulus).to_bytes(12, "little", signed=True) + b"N" for number in range(1, 40_000)
    )
    return PROTO2 + b"}(" + pairs + b"u" + STOP


def long_equal_keys() -> bytes:
    """Two equal keys of a megabyte, compared for every one of many assignments."""
    text = _text("k" * 1_000_000)
    return (
        PROTO2
        + b"}"
        + text
        + _put(0)
        + b"0"
        + text
        + _put(1)
        + b"0("
        + (_get(0) + b"N" + _get(1) + b"N") * 100_000
        + b"u."
    )


def long_integer() -> bytes:
    return PROTO2 + b"\x8b" + struct.pack("<i", 3_000_000) + b"\x01" * 3_000_000 + STOP


def integer_digits() -> bytes:
    return b"I" + b"9" * 50_000 + b"\n."


def long_digits() -> bytes:
    return b"L" + b"9" * 3_000_000 + b"L\n."


def stacked_flood() -> bytes:
    return b"N." * 200_000


def wide_tensor() -> bytes:
    """A tensor of 200,000 dimensions, rebuilt a thousand times."""
    sizes = b"(" + b"K\x01" * 200_000 + b"t"
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x01tQ"
    arguments = b"(" + storage + b"K\x00" + sizes + _put(0) + _get(0) + b"\x89}t" + _put(1)
    call = _get(2) + _get(1) + b"R"
    return PROTO2 + arguments + b"ctorch._utils\n_rebuild_tensor_v2\n" + _put(2) + b"(" + call * 10_000 + b"t."


def _small_tensor() -> bytes:
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x01tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x01\x85K\x01\x85\x89}tR"


def nested_types() -> bytes:
    """A subclass whose base is rebuilt as a subclass, whose base is ...: nested as deep as the file is long."""
    opening = PROTO2 + b"ctorch._tensor\n_rebuild_from_type_v2\n" + _put(0) + b"0cm\nC\n" + _put(1) + b"0"
    level = _get(0) + _get(1)
    return opening + _get(0) + level * 5000 + b")" + b"\x87" * 5000 + b"R" + b"\x30N" + STOP


def long_names() -> bytes:
    """Long keys around many tensors: every name would repeat all of them."""
    outside = b"".join(b"}" + _text(f"{level:04}" * 1000) for level in range(100))
    inside = b"](" + _small_tensor() + _put(0) + _get(0) * 50_000 + b"e"
    return PROTO2 + outside + inside + b"s" * 100 + STOP


def many_names() -> bytes:
    """Tensors whose key paths are all the same: keys that cannot be written are all called alike."""
    pairs = b"".join(b"]" + _get(0) for _ in range(20_000))
    return PROTO2 + _small_tensor() + _put(0) + b"0}(" + pairs + b"u" + STOP


BOMBS: tuple[Callable[[], bytes], ...] = (
    memo_index,
    memo_index_text,
    deep_tuple_key,
    deep_tuple_value,
    shared_tuple_key,
    shared_tuple_value,
    shared_lists,
    shared_objects,
    set_flood,
    list_flood,
    dict_flood,
    mark_flood,
    global_flood,
    deep_lists,
    deep_reduce,
    call_of_calls,
    copied_dictionary,
    copied_bytes,
    colliding_keys,
    long_equal_keys,
    long_integer,
    integer_digits,
    long_digits,
    stacked_flood,
    wide_tensor,
    nested_types,
    long_names,
    many_names,
)


# Damaged ---------------------------------------------------------------------------------------------------


def empty() -> bytes:
    return b""


def cut() -> bytes:
    return PROTO2 + b"}"


def bytes_length() -> bytes:
    return PROTO4 + b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc" + STOP


def text_length() -> bytes:
    return PROTO4 + b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"abc" + STOP


def bytearray_length() -> bytes:
    return b"\x80\x05\x96" + struct.pack("<Q", 1 << 50) + STOP


def integer_length() -> bytes:
    return PROTO2 + b"\x8b" + struct.pack("<i", -5) + STOP


def string_length() -> bytes:
    return b"T" + struct.pack("<i", -1) + STOP


def frame_length() -> bytes:
    return PROTO4 + b"\x95" + struct.pack("<Q", 1 << 60) + b"N" + STOP


def invalid_opcode() -> bytes:
    return PROTO2 + b"\xff" + STOP


def protocol_9() -> bytes:
    return b"\x80\x09N."


def mark_missing() -> bytes:
    return PROTO2 + b"]e" + STOP


def tuple_without_mark() -> bytes:
    return PROTO2 + b"t" + STOP


def mark_left() -> bytes:
    return PROTO2 + b"(" + STOP


def take_below_mark() -> bytes:
    return PROTO2 + b"]N(a" + STOP


def underflow() -> bytes:
    return PROTO2 + b"a" + STOP


def nothing_to_return() -> bytes:
    return STOP


def memo_unknown() -> bytes:
    return PROTO2 + b"h\x07" + STOP


def append_to_number() -> bytes:
    return PROTO2 + b"K\x01Na" + STOP


def set_on_list() -> bytes:
    return PROTO2 + b"]NNs" + STOP


def odd_items() -> bytes:
    return PROTO2 + b"}(Nu" + STOP


def call_of_number() -> bytes:
    return PROTO2 + b"K\x01)R" + STOP


def call_without_tuple() -> bytes:
    return PROTO2 + b"cm\nf\nK\x01R" + STOP


def build_on_list() -> bytes:
    return PROTO2 + b"]}b" + STOP


def text_not_utf8() -> bytes:
    return PROTO2 + b"X\x02\x00\x00\x00\xff\xff" + STOP


def global_by_number() -> bytes:
    return PROTO4 + b"K\x01K\x02\x93" + STOP


def buffer_outside() -> bytes:
    return b"\x80\x05\x97" + STOP


def number_that_is_none() -> bytes:
    return b"Fabc\n."


def integer_that_is_none() -> bytes:
    return b"Iabc\n."


def text_without_quotes() -> bytes:
    return b"Sabc\n."


DAMAGED: tuple[Callable[[], bytes], ...] = (
    empty,
    cut,
    bytes_length,
    text_length,
    bytearray_length,
    integer_length,
    string_length,
    frame_length,
    invalid_opcode,
    mark_missing,
    tuple_without_mark,
    mark_left,
    take_below_mark,
    underflow,
    nothing_to_return,
    memo_unknown,
    append_to_number,
    set_on_list,
    odd_items,
    call_of_number,
    call_without_tuple,
    build_on_list,
    text_not_utf8,
    global_by_number,
    buffer_outside,
    number_that_is_none,
    integer_that_is_none,
    text_without_quotes,
)


# Inert -----------------------------------------------------------------------------------------------------


def system_call() -> bytes:
    return b"cos\nsystem\n(Vtouch pwned\ntR."


def system_call_inst() -> bytes:
    return b"(Vtouch pwned\nios\nsystem\n."


def system_call_obj() -> bytes:
    return b"(cos\nsystem\nVtouch pwned\no."


def system_call_stack_global() -> bytes:
    return PROTO4 + b"\x8c\x02os\x8c\x06system\x93\x8c\x0btouch pwned\x85R" + STOP


def getattr_chain() -> bytes:
    return b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVsystem\ntR(Vtouch pwned\ntR."


def new_object() -> bytes:
    return PROTO2 + b"csubprocess\nPopen\n" + _text("touch pwned") + b"\x85\x81" + STOP


def new_object_keywords() -> bytes:
    return PROTO4 + b"csubprocess\nPopen\n)}" + _text("args") + _text("touch pwned") + b"s\x92" + STOP


def extension() -> bytes:
    return PROTO2 + b"\x82\x01)R" + STOP


def slot_state() -> bytes:
    """BUILD with slot state on a reference to a class: an unpickler would write attributes of the class."""
    return PROTO2 + b"cbuiltins\nobject\nN}" + _text("__init__") + b"Ns\x86b" + STOP


def slot_state_on_object() -> bytes:
    return PROTO2 + b"cm\nC\n)\x81N}" + _text("__class__") + b"Ns\x86b" + STOP


def list_in_itself() -> bytes:
    return PROTO2 + b"]q\x00h\x00a" + STOP


def dictionary_in_itself() -> bytes:
    return PROTO2 + b"}q\x00K\x01h\x00s" + STOP


def tuple_in_itself() -> bytes:
    return PROTO2 + b"]q\x00h\x00\x85q\x01a0h\x01" + STOP


def object_in_itself() -> bytes:
    return PROTO2 + b"cm\nC\n)\x81q\x00}" + _text("me") + b"h\x00sb" + STOP


def key_is_itself() -> bytes:
    return PROTO2 + b"}q\x00h\x00Ns" + STOP


def keys_that_cannot_be_hashed() -> bytes:
    return PROTO2 + b"}(]K\x01}K\x02cm\nC\n)\x81K\x03u" + STOP


def persistent_ids() -> bytes:
    return b"(Pabc\nVdef\nQt."


def stacked() -> bytes:
    return b"N." + b"cos\nsystem\n." + b"K\x01."


INERT: tuple[Callable[[], bytes], ...] = (
    system_call,
    system_call_inst,
    system_call_obj,
    system_call_stack_global,
    getattr_chain,
    new_object,
    new_object_keywords,
    extension,
    slot_state,
    slot_state_on_object,
    list_in_itself,
    dictionary_in_itself,
    tuple_in_itself,
    object_in_itself,
    key_is_itself,
    keys_that_cannot_be_hashed,
    persistent_ids,
    stacked,
)
