"""Metadata of torch.distributed.checkpoint: what it says, with the short cut and without; blocks against shapes."""

from __future__ import annotations

import pickle
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.containers import dcp, pickle_stream, reader
from ckpt_tools.containers.base import Content
from ckpt_tools.containers.pickle_dcp import Shortcut
from ckpt_tools.core.source import BytesSource, Extent
from ckpt_tools.model import tiling
from ckpt_tools.model.tensors import Box
from tests.conftest import FIXTURES
from tests.rules import dcp_metadata as meta

METADATA = sorted(
    path.relative_to(FIXTURES)
    for pattern in ("dcp/**/*metadata", "fsdp/**/.metadata", "megatron/**/.metadata", "lightning/**/.metadata")
    for path in FIXTURES.glob(pattern)
)
PLAIN = (FIXTURES / "dcp/plain/.metadata").read_bytes()


def read(data: bytes, name: str = ".metadata") -> Content:
    return reader.read(BytesSource(data, name), ("dcp",))


def read_slowly(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Content:
    with monkeypatch.context() as patch:
        patch.setattr(Shortcut, "__call__", lambda *arguments: False)
        return read(data)


def said(content: Content) -> tuple[Any, ...]:
    """Return everything but the decoded objects, which are equal to none but themselves."""
    return content.readable, content.tensors, content.globals, content.facts, content.problems


@pytest.mark.parametrize("path", METADATA, ids=str)
def test_the_short_cut_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (FIXTURES / path).read_bytes()
    assert said(read(data)) == said(read_slowly(data, monkeypatch))
    assert read(data).tensors


@pytest.mark.parametrize("seed", range(60))
def test_the_short_cut_changes_nothing_for_damaged_bytes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(f"metadata#{seed}")
    data = bytearray(PLAIN)
    for _ in range(draw.choice((1, 1, 2, 8))):
        data[draw.randrange(len(data))] = draw.choice((draw.randrange(256), *b"hjKMq\x94\x85R)(u"))
    assert said(read(bytes(data))) == said(read_slowly(bytes(data), monkeypatch))


def test_the_short_cut_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    take = Shortcut.__call__

    def counted(*arguments: Any) -> bool:
        taken.append(take(*arguments))
        return taken[-1]

    monkeypatch.setattr(Shortcut, "__call__", counted)
    read(PLAIN)
    assert sum(taken) > 20


def test_what_it_left_out_can_still_be_asked_for() -> None:
    value = meta.load(PLAIN)
    value.again = [meta.key_of(value, "model.first.weight", 4, 0).__dict__]
    data = meta.dump(value)
    found = read(data)
    assert found.tensors == read(PLAIN).tensors
    assert found.facts["extra"] == ("again",)


@pytest.mark.parametrize("protocol", [4, 5])
def test_protocols(protocol: int) -> None:
    assert read(meta.dump(meta.load(PLAIN), protocol)).tensors == read(PLAIN).tensors


def test_what_a_tensor_and_an_object_are() -> None:
    found = read(PLAIN)
    weight = found.tensors["model.first.weight"]
    assert (weight.dtype, weight.shape) == ("float32", (7, 5))
    assert [(chunk.offsets, chunk.sizes, chunk.extent.path) for chunk in weight.chunks] == [
        ((0, 0), (4, 5), "__0_0.distcp"),
        ((4, 0), (3, 5), "__1_0.distcp"),
    ]
    assert found.facts["items"]["optimizer.param_groups.0.lr"] == Extent("__1_0.distcp", 0, 1261)
    assert found.facts["planner"]["optimizer.param_groups.0.lr"] == ("optimizer", "param_groups", 0, "lr")
    assert (found.facts["version"], found.facts["rank"], found.facts["checkpoint_id"]) == ("1.0.0", None, "plain")


def test_the_paths_of_a_directory_below_are_relative_to_the_checkpoint() -> None:
    chunk = read(PLAIN, "optimizer_0/.metadata").tensors["model.scale"].chunks[0]
    assert chunk.extent.path == "optimizer_0/__0_0.distcp"
    assert read(PLAIN, "weights/__3.metadata").facts["rank"] == 3


def test_it_is_known_by_its_bytes_and_by_its_name() -> None:
    assert reader.identify(BytesSource(PLAIN, "x")) == "dcp"
    other = pickle.dumps({"a": 1}, protocol=4)
    assert reader.identify(BytesSource(other, "x")) == "pickle"
    found = read(other)
    assert (found.container, found.readable) == ("dcp", False)
    assert [problem.kind for problem in found.problems] == ["dcp-metadata-invalid"]


@pytest.mark.parametrize("length", [0, 1, 2, 40, 5000, len(PLAIN) - 1])
def test_cut_anywhere_it_is_a_problem(length: int) -> None:
    found = dcp.read(BytesSource(PLAIN[:length], ".metadata"))
    assert not found.readable
    assert found.problems


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "C:\\x", "~/x", "a\\..\\x", "\\\\host\\x"])
def test_paths_that_lead_outside_give_no_extent(path: str) -> None:
    value = meta.load(PLAIN)
    meta.stored(value, "model.scale").relative_path = path
    found = read(meta.dump(value))
    assert found.tensors["model.scale"].chunks == ()
    assert [problem.kind for problem in found.problems] == ["dcp-path-outside"]


@pytest.mark.parametrize("number", [-1, 1 << 70, 1.5, "1", None, True])
def test_odd_numbers_are_problems_and_never_errors(number: Any) -> None:
    for field in ("offset", "length"):
        value = meta.load(PLAIN)
        setattr(meta.stored(value, "model.scale"), field, number)
        assert "dcp-metadata-invalid" in {problem.kind for problem in read(meta.dump(value)).problems}


def test_a_pickle_that_asks_for_everything_again_and_again_ends() -> None:
    """Runs of objects that all but fit are read opcode by opcode, each once."""
    value = meta.load(PLAIN)
    place = meta.place("__0_0.distcp", 0, 1)
    value.storage_data = {meta.index("x", number): place for number in range(3000)}
    result = pickle_stream.read(meta.dump(value), shortcut=Shortcut())
    assert len(result.value.state["storage_data"].pairs) == 3000


# Blocks ----------------------------------------------------------------------------------------------------


def counted(shape: tuple[int, ...], blocks: list[Box]) -> set[int]:
    """Return how often elements are covered, by looking at each."""
    seen = dict.fromkeys(product(*map(range, shape)), 0)
    for offsets, sizes in blocks:
        for place in product(*(range(at, at + size) for at, size in zip(offsets, sizes, strict=True))):
            seen[place] += 1
    return set(seen.values())


@pytest.mark.parametrize("seed", range(300))
def test_blocks_are_compared_as_by_counting(seed: int) -> None:
    draw = random.Random(f"tiles#{seed}")
    shape = tuple(draw.randrange(1, 6) for _ in range(draw.randrange(1, 4)))
    blocks: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw.randrange(6)):
        offsets, sizes = blocks.pop(draw.randrange(len(blocks)))
        axis = draw.randrange(len(shape))
        at = draw.randrange(sizes[axis] + 1)
        rest = (*offsets[:axis], offsets[axis] + at, *offsets[axis + 1 :])
        blocks.append((offsets, (*sizes[:axis], at, *sizes[axis + 1 :])))
        blocks.append((rest, (*sizes[:axis], sizes[axis] - at, *sizes[axis + 1 :])))
    if draw.random() < 0.4:
        blocks.pop(draw.randrange(len(blocks)))
    if draw.random() < 0.4 and blocks:
        blocks.append(draw.choice(blocks))
    draw.shuffle(blocks)
    found, counts = tiling.fit(shape, blocks), counted(shape, blocks)
    assert (found.hole is not None) == (0 in counts)
    assert (found.overlap is not None) == any(count > 1 for count in counts)
    assert found.exact == (counts == {1})


@pytest.mark.parametrize(
    ("shape", "blocks", "exact"),
    [
        ((), [((), ())], True),
        ((), [], False),
        ((), [((), ()), ((), ())], False),
        ((0,), [((0,), (0,))], True),
        ((0, 2), [], True),
        ((1, 4), [((0, 0), (1, 4)), ((1, 0), (0, 4))], True),
        ((3,), [((0,), (2,)), ((2,), (2,))], False),
    ],
)
def test_small_and_empty_tensors(shape: tuple[int, ...], blocks: list[Box], exact: bool) -> None:
    assert tiling.fit(shape, blocks).exact == exact


def test_blocks_that_all_overlap_do_not_take_for_ever() -> None:
    blocks: list[Box] = [((number, 0), (20_000 - number, 10)) for number in range(10_000)]
    found = tiling.fit((20_000, 10), blocks)
    assert not found.exact
