"""CK106-CK108 and CK121: shards, their index, and several forms of the weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.model.findings import Severity
from tests.conftest import FIXTURES
from tests.rules import damage
from tests.rules.damage import NOW_S, Damage
from tests.rules.judge import codes, finding, judge, verdicts

Copy = Callable[..., Path]

READY, BROKEN = ("ready", "ready"), ("broken", "broken")
SHARDED, BIN, MODEL = "trainer5-sharded", "trainer4-bin-sharded", "hf-model/sharded"
INDEX = "model.safetensors.index.json"
WHOLE = Path("trainer5-full") / "checkpoint-4" / "model.safetensors"
LAST = {SHARDED: "checkpoint-4", BIN: "checkpoint-2", MODEL: ".", "trainer5-full": "checkpoint-4"}


def with_whole(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes((FIXTURES / WHOLE).read_bytes())


def with_whole_bin(directory: Path) -> None:
    (directory / "pytorch_model.bin").write_bytes(
        (FIXTURES / "trainer4-bin/checkpoint-4/pytorch_model.bin").read_bytes()
    )


def numbered_again(total: int, start: int = 1) -> Damage:
    """Give the shards other numbers: ``start`` .. in ``-of-total``."""

    def done(directory: Path) -> None:
        for number, path in enumerate(sorted(directory.glob("model-*.safetensors")), start):
            path.rename(directory / f"new-{number:05}-of-{total:05}.safetensors")
        for path in directory.glob("new-*"):
            path.rename(directory / path.name.replace("new", "model"))

    return done


CASES: list[tuple[str, str, Damage, set[str], tuple[str, str]]] = [
    ("a shard", SHARDED, damage.without("model-00002-of-*"), {"CK106"}, BROKEN),
    ("a shard of a .bin", BIN, damage.without("pytorch_model-00002-of-*"), {"CK106"}, BROKEN),
    ("a shard of a model", MODEL, damage.without("model-00002-of-*"), {"CK106"}, ("broken", "broken")),
    ("all shards", SHARDED, damage.without("model-0*"), {"CK106"}, BROKEN),
    ("the index", SHARDED, damage.without(INDEX), {"CK107"}, BROKEN),
    ("the index of a .bin", BIN, damage.without("pytorch_model.bin.index.json"), {"CK107"}, BROKEN),
    ("the index and a shard", SHARDED, damage.without(INDEX, "model-00003-of-*"), {"CK106", "CK107"}, BROKEN),
    (
        "an unreadable index and a shard",
        SHARDED,
        damage.together(damage.without("model-00003-of-*"), damage.with_file(INDEX, b"{")),
        {"CK106"},
        BROKEN,
    ),
    ("a left-over index", SHARDED, damage.together(damage.without("model-0*"), with_whole), {"CK108"}, READY),
    ("an index of other shards", SHARDED, numbered_again(4, 5), {"CK106"}, BROKEN),
    (
        "an index of a larger set",
        SHARDED,
        damage.together(
            numbered_again(4),
            damage.with_json(INDEX, weight_map={f"t{n}": f"model-{n:05}-of-00030.safetensors" for n in range(1, 31)}),
        ),
        {"CK108"},
        BROKEN,
    ),
    ("whole and shards", SHARDED, with_whole, {"CK121"}, READY),
    (
        "whole and shards without an index",
        SHARDED,
        damage.together(damage.without(INDEX), with_whole),
        {"CK121"},
        READY,
    ),
    ("safetensors and .bin", "trainer5-full", with_whole_bin, {"CK121"}, READY),
    ("shards and a whole .bin", SHARDED, with_whole_bin, {"CK121"}, READY),
    (
        "a stale index of the other kind",
        BIN,
        damage.together(damage.without("pytorch_model-0*"), with_whole),
        {"CK108"},
        READY,
    ),
    ("a published model in both formats", "hf-model/tiny-llama", with_whole_bin, set(), ("broken", "ready")),
    (
        "a variant in shards",
        MODEL,
        damage.with_copy("model-00001-of-00004.safetensors", "model.fp16-00001-of-00002.safetensors"),
        set(),
        ("broken", "ready"),
    ),
]


@pytest.mark.parametrize(
    ("fixture", "done", "expected", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_damage_gives_these_codes_and_verdicts(
    fixture: str, done: Damage, expected: set[str], verdict: tuple[str, str], copy_of: Copy
) -> None:
    run = copy_of(fixture)
    last = LAST.get(fixture, ".")
    done(run / last)
    report = judge(run)
    assert codes(report) == expected
    assert verdicts(report, last) == verdict


def test_the_missing_shard_is_named_with_what_is_lost(copy_of: Copy) -> None:
    run = copy_of(MODEL)
    index = json.loads((run / INDEX).read_text())["weight_map"]
    lost = sum(shard.startswith("model-00002") for shard in index.values())
    (run / "model-00002-of-00004.safetensors").unlink()
    found = finding(judge(run), "CK106")
    assert found.path == "model-00002-of-00004.safetensors"
    assert found.message == f"the shard is missing: {lost} of {len(index)} tensors lost"


def test_many_missing_shards_are_one_finding_with_ten_names(copy_of: Copy) -> None:
    run = copy_of(MODEL)
    names = {f"t{number}": f"model-{number:05}-of-00012.safetensors" for number in range(1, 13)}
    damage.with_json(INDEX, weight_map={**names, "kept": "model-00001-of-00004.safetensors"})(run)
    found = finding(judge(run), "CK106")
    assert found.message == "12 shards are missing: 12 of 13 tensors lost"
    assert (found.path, len(found.detail), found.detail[-1]) == (INDEX, 11, "... and 2 more")


@pytest.mark.parametrize(
    ("numbers", "total", "expected"),
    [
        ((1, 2, 3), 3, None),
        ((1, 3), 3, "model-00002-of-00003.safetensors"),
        ((0, 1, 2), 3, None),
        ((0, 1, 2, 3), 3, None),
        ((0, 2), 3, "model-00001-of-00003.safetensors"),
    ],
)
def test_numbers_may_begin_at_zero(numbers: tuple[int, ...], total: int, expected: str | None, tmp_path: Path) -> None:
    shard = (FIXTURES / MODEL / "model-00001-of-00004.safetensors").read_bytes()
    for number in numbers:
        (tmp_path / f"model-{number:05}-of-{total:05}.safetensors").write_bytes(shard)
    found = [finding for finding in judge(tmp_path).all_findings() if finding.code == "CK106"]
    assert [finding.path for finding in found] == ([expected] if expected else [])


def test_a_complete_set_can_have_its_index_made_again(copy_of: Copy) -> None:
    run = copy_of(SHARDED)
    (run / "checkpoint-4" / INDEX).unlink()
    fix = finding(judge(run), "CK107").fix
    assert fix is not None
    assert (fix.kind, fix.safe, fix.params["index"]) == ("rebuild-index", True, INDEX)
    assert len(fix.params["shards"]) == 4
    (run / "checkpoint-4" / "model-00001-of-00004.safetensors").unlink()
    assert finding(judge(run), "CK107").fix is None


def test_a_stale_index_beside_other_shards_is_an_error(copy_of: Copy) -> None:
    run = copy_of(MODEL)
    names = {f"t{number}": f"model-{number:05}-of-00030.safetensors" for number in range(1, 31)}
    damage.with_json(INDEX, weight_map=names)(run)
    found = finding(judge(run), "CK108")
    assert found.severity is Severity.ERROR
    assert found.detail == ("names 30 files, 30 of them are not there", "4 other shards are here and complete")
    assert found.fix is not None


def test_names_in_an_index_that_lead_elsewhere_are_not_followed(copy_of: Copy) -> None:
    run = copy_of(MODEL)
    (run.parent / "other.safetensors").write_bytes(b"")
    damage.with_json(INDEX, weight_map={"a": "../other.safetensors", "b": "/etc/hosts", "c": 7, "d": ".."})(run)
    assert codes(judge(run)) == set()


def test_which_form_a_loader_takes_is_said(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    home = run / "checkpoint-4"
    with_whole_bin(home)
    os.utime(home / "model.safetensors", (NOW_S - 5 * 3600, NOW_S - 5 * 3600))
    os.utime(home / "pytorch_model.bin", (NOW_S, NOW_S))
    found = finding(judge(run), "CK121")
    assert found.path == "checkpoint-4/model.safetensors"
    assert found.detail == (
        "a loader takes model.safetensors, not pytorch_model.bin",
        "pytorch_model.bin is newer by 5 hours",
    )


def test_a_resume_and_from_pretrained_may_differ(copy_of: Copy) -> None:
    run = copy_of(SHARDED)
    with_whole_bin(run / "checkpoint-4")
    found = finding(judge(run), "CK121")
    assert found.detail[0] == f"a loader takes pytorch_model.bin, not {INDEX}"
    assert found.detail[-1] == f"that is a resume; from_pretrained takes {INDEX}"


def test_a_published_model_whose_other_format_is_much_newer_is_a_warning(copy_of: Copy) -> None:
    run = copy_of("hf-model/tiny-llama")
    with_whole_bin(run)
    os.utime(run / "model.safetensors", (NOW_S - damage.LAST_WEEK, NOW_S - damage.LAST_WEEK))
    os.utime(run / "pytorch_model.bin", (NOW_S, NOW_S))
    assert finding(judge(run), "CK121").severity is Severity.WARNING


def test_a_full_model_beside_an_adapter_is_a_note(copy_of: Copy) -> None:
    run = copy_of("trainer5-lora")
    with_whole(run / "checkpoint-4")
    report = judge(run)
    assert codes(report) == set()
    assert finding(report, "CK121").severity is Severity.NOTE
