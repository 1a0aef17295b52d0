"""CK301 to CK305 and CK702: what an index says against what its shards hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FIXTURES
from tests.rules import damage
from tests.rules.damage import together
from tests.rules.damage_values import (
    BROKEN,
    READY,
    Case,
    check,
    in_json,
    lacking,
    tensors,
    values,
    without_tensors,
)
from tests.rules.judge import finding, judge

SHARDED, BIN, MODEL = "trainer5-sharded/checkpoint-4", "trainer4-bin-sharded/checkpoint-2", "hf-model/sharded"
INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
FIRST, SECOND = "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"
EMBEDDING = "model.embed_tokens.weight"


def mapped(edit: Callable[[dict[str, str]], object], name: str = INDEX) -> damage.Damage:
    return in_json(name, lambda value: edit(value["weight_map"]))


def total(number: Any) -> damage.Damage:
    return in_json(INDEX, lambda value: value["metadata"].update(total_size=number))


def without_file(file: str) -> Callable[[dict[str, str]], object]:
    return lambda names: [names.pop(name) for name, where in list(names.items()) if where == file]


def with_whole(directory: Path) -> None:
    source = FIXTURES / "trainer5-full/checkpoint-4/model.safetensors"
    (directory / "model.safetensors").write_bytes(source.read_bytes())


CASES = [
    Case("nothing", SHARDED, damage.nothing, set(), READY),
    Case("a wrong shard", SHARDED, mapped(values(**{EMBEDDING: SECOND})), {"CK301"}, ("ready", "degraded")),
    Case(
        "a wrong shard of a .bin",
        BIN,
        mapped(values(**{EMBEDDING: "pytorch_model-00002-of-00004.bin"}), BIN_INDEX),
        {"CK301"},
        ("ready", "degraded"),
    ),
    Case("a name less", SHARDED, mapped(lacking(EMBEDDING)), {"CK302"}, READY),
    Case("a shard less", SHARDED, mapped(without_file(FIRST)), {"CK302", "CK304"}, BROKEN),
    Case(
        "a left-over shard of another save",
        SHARDED,
        damage.with_copy(FIRST, "model-00005-of-00009.safetensors"),
        set(),
        READY,
    ),
    Case("a name that is nowhere", SHARDED, mapped(values(**{"model.x": FIRST})), {"CK303"}, BROKEN),
    Case(
        "a shard without its tensor",
        MODEL,
        tensors(without_tensors("embed_tokens"), FIRST),
        {"CK303"},
        BROKEN,
    ),
    Case("half of a total", SHARDED, total(6816 // 2), set(), READY, frozenset({"CK304"})),
    Case("another total", SHARDED, total(6815), {"CK304"}, READY),
    Case("a tied tensor counted twice", SHARDED, total(6816 + 32 * 8 * 4), set(), READY, frozenset({"CK304"})),
    Case("no total", SHARDED, total(None), set(), READY),
    Case("a total of 0", SHARDED, total(0), set(), READY),
    Case("a total that is true", SHARDED, total(True), set(), READY),
    Case("no map", SHARDED, in_json(INDEX, lacking("weight_map")), {"CK305"}, BROKEN),
    Case("an empty map", SHARDED, in_json(INDEX, values(weight_map={})), {"CK305"}, BROKEN),
    Case("a list for a map", SHARDED, in_json(INDEX, values(weight_map=[FIRST])), {"CK305"}, BROKEN),
    Case("a number for a file", SHARDED, mapped(values(**{EMBEDDING: 4})), {"CK305"}, BROKEN),
    Case("no metadata", SHARDED, in_json(INDEX, lacking("metadata")), {"CK305"}, ("ready", "broken")),
    Case("a parent's file", SHARDED, mapped(values(**{EMBEDDING: "../outside.safetensors"})), {"CK702"}, BROKEN),
    Case("an absolute file", SHARDED, mapped(values(**{EMBEDDING: "/etc/passwd"})), {"CK702"}, BROKEN),
    Case("a file of a drive", SHARDED, mapped(values(**{EMBEDDING: "C:\\x.safetensors"})), {"CK702"}, BROKEN),
    Case("a home's file", SHARDED, mapped(values(**{EMBEDDING: "~/x.safetensors"})), {"CK702"}, BROKEN),
    Case("back and forth", SHARDED, mapped(values(**{EMBEDDING: f"./x/../{FIRST}"})), set(), READY),
    Case(
        "everything, beside a whole file",
        SHARDED,
        together(with_whole, mapped(values(**{EMBEDDING: SECOND, "model.x": FIRST})), total(1)),
        set(),
        READY,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_index_and_shards(case: Case, copy_of: Callable[..., Path]) -> None:
    check(case, copy_of)


def test_a_missing_shard_leaves_the_rest_untold(copy_of: Callable[..., Path]) -> None:
    """What is in a shard that is not there is not known, so nothing is said of it."""
    run = copy_of("trainer5-sharded")
    (run / "checkpoint-4" / SECOND).unlink()
    assert not list(judge(run / "checkpoint-4", families=("CK30",)).all_findings())


def test_the_names_and_files_are_told(copy_of: Callable[..., Path]) -> None:
    run = copy_of("trainer5-sharded")
    mapped(values(**{EMBEDDING: SECOND}))(run / "checkpoint-4")
    told = finding(judge(run / "checkpoint-4", families=("CK3",)), "CK301")
    assert (told.at.tensor, told.path, set(told.related)) == (EMBEDDING, INDEX, {FIRST, SECOND})
    assert told.fix is not None
    assert told.fix.kind == "rebuild-index"
    assert told.detail[0] == f"{EMBEDDING} is said to be in {SECOND} and is in {FIRST}"


def test_nothing_outside_is_opened(copy_of: Callable[..., Path]) -> None:
    run = copy_of("trainer5-sharded")
    directory = run / "checkpoint-4"
    outside = run / "outside.safetensors"
    (directory / FIRST).rename(outside)
    mapped(
        lambda names: names.update({name: "../outside.safetensors" for name, file in names.items() if file == FIRST})
    )(directory)
    report = judge(directory, families=("CK3", "CK7"))
    assert {told.code for told in report.all_findings()} == {"CK702"}
    assert outside.exists()
