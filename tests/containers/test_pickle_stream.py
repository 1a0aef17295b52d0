"""Pickles as values: what comes out plain, what comes out described, and that nothing else can happen."""

from __future__ import annotations

import collections
import gc
import pickle
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.containers import pickle_stream
from ckpt_tools.containers.base import FormatError
from ckpt_tools.containers.pickle_stream import CYCLE, CutError
from ckpt_tools.containers.torch_values import TorchValues, flatten, numpy_array, numpy_scalar_value
from ckpt_tools.core.source import BytesSource, Extent
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Pairs

PROTOCOLS = range(6)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(-100, 100), inner, max_size=4)
    ),
    max_leaves=20,
)


def read(data: bytes) -> Any:
    return pickle_stream.read(data).value


@given(PLAIN, st.sampled_from(PROTOCOLS))
def test_plain_values_come_out_as_they_went_in(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    result = pickle_stream.read(data)
    assert result.value == value
    assert result.end == len(data)
    assert result.protocol == (protocol if protocol >= 2 else 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_harmless_objects_come_out_plain(protocol: int) -> None:
    value = {
        "ordered": collections.OrderedDict([("a", 1), ("b", 2)]),
        "counter": collections.Counter({3: 2}),
        "default": collections.defaultdict(list, {"x": [1]}),
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"abc"),
        "complex": 1 + 2j,
        "big": 2**70,
        "infinite": float("inf"),
    }
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_are_described_with_their_elements(protocol: int, kind: type) -> None:
    value = read(pickle.dumps(kind([1, 2]), protocol))
    assert isinstance(value, Opaque)
    assert value.qualname == f"builtins.{kind.__name__}"
    assert sorted(value.items) == [1, 2]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_objects_are_described_and_their_globals_counted(protocol: int) -> None:
    result = pickle_stream.read(pickle.dumps(struct.Struct("<f").__class__, protocol))
    assert result.value.qualname == "_struct.Struct"
    assert not result.value.called
    assert dict(result.globals) == {"_struct.Struct": 1}


def test_state_and_items_of_an_object() -> None:
    value = read(b"\x80\x02cm\nC\nK\x01\x85\x81}X\x01\x00\x00\x00aK\x02sbK\x03a.")
    assert (value.qualname, value.args, value.state, value.items) == ("m.C", (1,), {"a": 2}, [3])


def test_keys_that_cannot_be_hashed_become_pairs() -> None:
    value = read(b"\x80\x02}K\x01K\x02s]K\x03sK\x04K\x05s.")
    assert isinstance(value, Pairs)
    assert value.pairs == [(1, 2), ([], 3), (4, 5)]


def test_pairs_keep_their_place_in_what_is_around_them() -> None:
    value = read(b"\x80\x02}q\x00(cm\nC\n)\x81K\x02uh\x00\x86.")
    assert isinstance(value[0], Pairs)
    assert value[0] is value[1]


def test_sharing_is_kept() -> None:
    shared = [1, 2]
    value = read(pickle.dumps({"a": shared, "b": [shared]}))
    assert value["a"] is value["b"][0]


def test_cycles_are_cut_where_they_close() -> None:
    cycle: list[Any] = [1]
    cycle.append({"back": cycle})
    value = read(pickle.dumps(cycle))
    assert value[1]["back"].qualname == CYCLE
    assert value[0] == 1


def test_several_pickles_behind_each_other() -> None:
    data = pickle.dumps([1]) + pickle.dumps({"b": 2})
    first = pickle_stream.read(data)
    assert (first.value, pickle_stream.read(data, start=first.end).value) == ([1], {"b": 2})


def test_persistent_ids_are_handed_on() -> None:
    result = pickle_stream.read(b"\x80\x02K\x05Q.", persistent=lambda key: ("seen", key))
    assert result.value == ("seen", 5)
    assert read(b"\x80\x02K\x05Q.").args == (5,)


def test_other_kinds_of_buffers_are_taken() -> None:
    data = pickle.dumps({"a": 1})
    assert pickle_stream.read(memoryview(data)).value == pickle_stream.read(bytearray(data)).value == {"a": 1}


def test_a_cut_is_told_from_other_damage() -> None:
    data = pickle.dumps({"a": [1, 2, 3], "b": "text"}, 2)
    for end in range(len(data)):
        with pytest.raises(CutError):
            pickle_stream.read(data[:end])
    with pytest.raises(FormatError) as caught:
        pickle_stream.read(b"\x80\x02\xff.")
    assert not isinstance(caught.value, CutError)
    assert caught.value.problem.kind == "pickle-damaged"
    assert caught.value.problem.at.offset == 2


def test_a_pickle_of_unknown_length_is_read_in_growing_pieces() -> None:
    data = pickle.dumps(["x" * 1_000_000, 7])
    length, result = pickle_stream.read_growing(BytesSource(b"junk" + data + b"rest", "f"), 4)
    assert (length, result.value[1]) == (len(data), 7)


def test_the_collector_is_left_as_it_was() -> None:
    assert gc.isenabled()
    read(pickle.dumps([1]))
    assert gc.isenabled()
    gc.disable()
    try:
        read(pickle.dumps([1]))
        assert not gc.isenabled()
    finally:
        gc.enable()


@given(st.binary(max_size=200))
def test_random_bytes_raise_format_errors_only(data: bytes) -> None:
    _survives(data)
    _survives(b"\x80\x02" + data + b".")


SAMPLES = [
    pickle.dumps({"state": {0: {"step": 1.0}}, "groups": [{"lr": 0.1, "params": [0, 1]}]}, protocol)
    for protocol in PROTOCOLS
] + [pickle.dumps(collections.OrderedDict(a={1, 2}, b=b"abc", c=(1, (2, (3,)))), protocol) for protocol in PROTOCOLS]


@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutations_raise_format_errors_only(data: bytes, changes: list[tuple[int, int]]) -> None:
    mutable = bytearray(data)
    for place, byte in changes:
        mutable[place % len(mutable)] = byte
    _survives(bytes(mutable))


OPCODES = st.lists(
    st.sampled_from([bytes([code]) for code in b"(0125NQRabdelostu)}]\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94"])
    | st.sampled_from([b"K\x01", b"h\x00", b"q\x00", b"h\x01", b"q\x01", b"cm\nC\n", b"ccollections\nOrderedDict\n"])
    | st.sampled_from(
        [b"X\x01\x00\x00\x00a", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\nset\n", b"\x8c\x01m"]
    ),
    max_size=40,
)


@given(OPCODES)
def test_any_order_of_opcodes_raises_format_errors_only(codes: list[bytes]) -> None:
    _survives(b"\x80\x04" + b"".join(codes) + b".")


def _survives(data: bytes) -> None:
    values = TorchValues()
    try:
        result = pickle_stream.read(data, persistent=values.persistent, rebuild=values.rebuild, view=values.view)
    except FormatError:
        return
    values.flatten(result.value)


# Tensors ---------------------------------------------------------------------------------------------------


def _put(index: int) -> bytes:
    return b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)


def _get(index: int) -> bytes:
    return b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)


def _as_torch_writes(count: int, shape: bytes = b"K\x02K\x03\x86", strides: bytes = b"K\x03K\x01\x86") -> bytes:
    """Tensors with every PUT that torch's pickler writes: from index 256 on these are recognised whole."""
    words = [b"ctorch._utils\n_rebuild_tensor_v2\n", _word("storage"), b"ctorch\nFloatStorage\n", _word("cpu")]
    words.append(b"ccollections\nOrderedDict\n")
    out = b"\x80\x02](" + b"".join(word + _put(300 + number) + b"0" for number, word in enumerate(words))
    index = 400
    for number in range(count):
        out += _get(300) + b"((" + _get(301) + _get(302) + _word(str(number)) + _put(index) + _get(303)
        out += b"K\x06t" + _put(index + 1) + b"QK\x00" + shape + _put(index + 2) + strides + _put(index + 3)
        out += b"\x89" + _get(304) + b")R" + _put(index + 4) + b"t" + _put(index + 5) + b"R" + _put(index + 6)
        index += 7
    return out


def _word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _both(data: bytes) -> tuple[Any, Any]:
    """Read with and without the short cut for tensors."""
    results = []
    for short in (True, False):
        values = TorchValues(lambda key: Extent("f", 1000 + 24 * int(key), 24))
        view = values.view if short else None
        result = pickle_stream.read(data, persistent=values.persistent, rebuild=values.rebuild, view=view)
        results.append((result.value, dict(result.globals), result.end))
    return results[0], results[1]


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        (b"K\x02K\x03\x86", b"K\x03K\x01\x86"),
        (b"K\x06\x85", b"K\x01\x85"),
        (b"K\x01K\x02K\x03\x87", b"K\x06K\x03K\x01\x87"),
        (b"M\x02\x00K\x03\x86", b"J\x03\x00\x00\x00K\x01\x86"),
        (b"(K\x01K\x01K\x02K\x03t", b"(K\x06K\x06K\x03K\x01t"),
    ],
)
def test_the_short_cut_gives_what_the_opcodes_give(shape: bytes, strides: bytes) -> None:
    fast, slow = _both(_as_torch_writes(5, shape, strides) + b"e.")
    assert fast == slow
    assert len(fast[0]) == 5
    assert all(isinstance(value, TensorRef) for value in fast[0])


@pytest.mark.parametrize("index", range(400, 414))
def test_what_a_tensor_left_in_the_memo_can_be_fetched(index: int) -> None:
    fast, slow = _both(_as_torch_writes(2) + _get(index) + b"e.")
    assert repr(fast[0]) == repr(slow[0])


@pytest.mark.parametrize("index", [399, 414, 9])
def test_what_was_never_stored_cannot(index: int) -> None:
    data = _as_torch_writes(2) + _get(index) + b"e."
    with pytest.raises(FormatError):
        _both(data)


@pytest.mark.parametrize("index", range(400, 407))
def test_the_memo_is_overwritten_as_by_the_opcodes(index: int) -> None:
    every = b"".join(_get(number) for number in range(400, 407))
    fast, slow = _both(_as_torch_writes(1) + b"K\x63" + _put(index) + every + b"e.")
    assert repr(fast[0]) == repr(slow[0])
    earlier = b"\x80\x02](K\x63" + _put(index) + _as_torch_writes(1)[4:] + every + b"e."
    fast, slow = _both(earlier)
    assert repr(fast[0]) == repr(slow[0])


def test_counted_memo_entries_follow_the_tensors() -> None:
    fast, slow = _both(_as_torch_writes(2) + b"K\x07\x94" + _get(19) + b"e.")
    assert repr(fast[0]) == repr(slow[0])
    assert fast[0][-1] == 7


@given(st.lists(st.tuples(st.integers(100, 500), st.integers(0, 255)), min_size=1, max_size=3))
def test_the_short_cut_agrees_on_damaged_bytes_as_well(changes: list[tuple[int, int]]) -> None:
    data = bytearray(_as_torch_writes(4) + b"".join(_get(number) for number in range(400, 428)) + b"e.")
    for place, byte in changes:
        data[place % len(data)] = byte
    outcomes = []
    for short in (True, False):
        values = TorchValues()
        view = values.view if short else None
        try:
            result = pickle_stream.read(bytes(data), persistent=values.persistent, rebuild=values.rebuild, view=view)
            outcomes.append(repr((result.value, result.globals, sorted(values.storages))))
        except FormatError as error:
            outcomes.append(error.problem.kind)
    assert outcomes[0] == outcomes[1]


def test_names_are_key_paths() -> None:
    def ref() -> TensorRef:
        return TensorRef("", "float32", (1,), ())

    value = {"state": {0: {"exp_avg": ref()}}, "groups": [{"lr": ref()}], "model": {"a.b.weight": ref()}}
    assert list(flatten(value)) == ["state.0.exp_avg", "groups.0.lr", "model.a.b.weight"]
    assert list(flatten({"x.weight": ref(), "y": ref()})) == ["x.weight", "y"]
    assert list(flatten(ref())) == ["tensor"]
    assert list(flatten(Opaque("m.C", state={"w": ref()}, called=True))) == ["w"]
    assert [named.fqn for named in flatten(value).values()] == list(flatten(value))


def test_names_are_never_shared() -> None:
    one, two, three = (TensorRef("", "float32", (size,), ()) for size in (1, 2, 3))
    named = flatten({"a.b": one, "a": {"b": two}, 1: {}, "1": three})
    assert list(named) == ["a.b", "a.b#2", "1"]
    shared = {"w": one}
    assert list(flatten({"model": shared, "ema": shared})) == ["model.w", "ema.w"]


def test_numpy_scalars_and_arrays_are_described() -> None:
    numpy = pytest.importorskip("numpy")
    for number in (numpy.float64(0.25), numpy.float32(0.5), numpy.int64(-3), numpy.bool_(True), numpy.float16(2)):
        for protocol in PROTOCOLS:
            value = read(pickle.dumps(number, protocol))
            assert value.qualname.endswith("multiarray.scalar")
            assert numpy_scalar_value(value) == number.item()
    array = numpy.zeros((2, 3), dtype=">u4")
    for protocol in PROTOCOLS:
        assert numpy_array(read(pickle.dumps(array, protocol))) == ("uint32", (2, 3))
    assert numpy_scalar_value(read(pickle.dumps(numpy.str_("x")))) is None
    assert numpy_array(read(pickle.dumps([1]))) is None
