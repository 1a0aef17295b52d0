"""CK14x, CK29x, CK36x, CK56x: damaged directories of torch.distributed.checkpoint, and FSDP's."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import ckpt_tools
from ckpt_tools.core.listing import FileStat, Kind
from ckpt_tools.layouts import assembly_dcp_blobs
from ckpt_tools.layouts import assembly_dcp_fit as fit
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role, Slot
from ckpt_tools.model.findings import Severity
from tests.conftest import ENTRIES, FIXTURES
from tests.rules import damage
from tests.rules import dcp_damage as dcp
from tests.rules.damage import Damage, nothing
from tests.rules.dcp_damage import MOMENT, RATE, WEIGHT
from tests.rules.judge import codes, finding, judge, verdicts

Copy = Callable[..., Path]

ALL = ("CK",)
READY, BROKEN, NO_RESUME = ("ready", "ready"), ("broken", "broken"), ("broken", "ready")
PLAIN, LOCAL = "dcp/plain", "dcp/rank-local"
BINS, BIN, MOMENTS = "fsdp/fsdp2-rank-bins", "pytorch_model_fsdp_0_rank", "optimizer_0_rank"
LEGACY, FLAT = "fsdp/fsdp1-local", "pytorch_model_fsdp_rank"

CASES: list[tuple[str, str, Damage, set[str], tuple[str, str]]] = [
    ("metadata lost", PLAIN, damage.without(".metadata"), {"CK101"}, BROKEN),
    ("killed at the end", PLAIN, damage.renamed(".metadata", ".metadata.tmp"), {"CK101"}, BROKEN),
    ("killed while saving again", PLAIN, damage.with_copy(".metadata", ".metadata.tmp"), {"CK144"}, READY),
    ("a data file lost", PLAIN, damage.without("__0_0.distcp"), {"CK141"}, BROKEN),
    ("cut at half", PLAIN, damage.cut("__1_0.distcp", 0.5), {"CK360"}, BROKEN),
    ("cut by a byte", PLAIN, dcp.cut_by("__1_0.distcp", 1), {"CK360"}, NO_RESUME),
    ("emptied", PLAIN, damage.emptied_file("__0_0.distcp"), {"CK360"}, BROKEN),
    ("zeroed", PLAIN, dcp.zeroed("__0_0.distcp"), {"CK202"}, BROKEN),
    ("a longer file", PLAIN, dcp.grown("__0_0.distcp"), {"CK560", "CK561"}, READY),
    ("newer data", PLAIN, dcp.newer("__0_0.distcp"), set(), READY),
    ("files of more ranks", PLAIN, damage.with_copy("__1_0.distcp", "__2_0.distcp"), {"CK142"}, READY),
    ("an empty file of another rank", PLAIN, damage.with_file("__2_0.distcp", b""), set(), READY),
    ("metadata cut", PLAIN, damage.cut(".metadata", 0.5), {"CK203"}, BROKEN),
    ("metadata emptied", PLAIN, damage.emptied_file(".metadata"), {"CK201"}, BROKEN),
    ("metadata of something else", PLAIN, damage.with_file(".metadata", b"\x80\x04]\x94."), {"CK290"}, BROKEN),
    ("metadata that is a web page", PLAIN, damage.with_file(".metadata", b"<html>login</html>"), {"CK205"}, BROKEN),
    ("half of the metadata", PLAIN, dcp.without_attribute("storage_data"), {"CK290", "CK291"}, BROKEN),
    ("hostile metadata", PLAIN, dcp.with_hostile_global, {"CK705"}, BROKEN),
    ("not stored", PLAIN, dcp.lost_entry(WEIGHT, 4, 0), {"CK291"}, BROKEN),
    ("not stored, an object", PLAIN, dcp.lost_entry(RATE), {"CK291"}, BROKEN),
    ("not described", PLAIN, dcp.lost_description(WEIGHT), {"CK291"}, BROKEN),
    ("a path outside", PLAIN, dcp.named(WEIGHT, "../other/__0_0.distcp"), {"CK292"}, BROKEN),
    ("an absolute path", PLAIN, dcp.named(WEIGHT, "/etc/passwd"), {"CK292"}, BROKEN),
    ("pieces on each other", PLAIN, dcp.moved(WEIGHT, 4, 0, by=8), {"CK293", "CK361"}, BROKEN),
    ("a place behind the end", PLAIN, dcp.moved(MOMENT, 4, 0, by=10**9), {"CK360"}, NO_RESUME),
    ("a chunk lost", PLAIN, dcp.dropped_chunk(WEIGHT, 1), {"CK362"}, BROKEN),
    ("a chunk of a moment lost", PLAIN, dcp.dropped_chunk(MOMENT, 0), {"CK362"}, NO_RESUME),
    ("chunks that overlap", PLAIN, dcp.resized_chunk(WEIGHT, 1, (3, 0), (4, 5)), {"CK363", "CK364"}, BROKEN),
    ("a chunk beyond the tensor", PLAIN, dcp.shaped(WEIGHT, 6, 5), {"CK363"}, BROKEN),
    ("a larger tensor", PLAIN, dcp.shaped(WEIGHT, 9, 5), {"CK362"}, BROKEN),
    ("another type", PLAIN, dcp.retyped(WEIGHT, "float16"), {"CK364"}, BROKEN),
    ("a damaged tensor", PLAIN, dcp.overwritten_blob(WEIGHT, 0, 0), {"CK293"}, BROKEN),
    ("a damaged moment", PLAIN, dcp.overwritten_blob(MOMENT, 4, 0), {"CK293"}, NO_RESUME),
    ("unknown attributes", PLAIN, dcp.with_attribute("all_local_plans", [1, {"a": None}]), set(), READY),
    ("no version", PLAIN, dcp.without_attribute("version"), set(), READY),
    ("no planner data", PLAIN, dcp.with_attribute("planner_data", None), set(), READY),
    ("of Python 3.13", PLAIN, dcp.of_python_3_13, set(), READY),
    ("copied without times", PLAIN, dcp.long_ago, set(), READY),
    ("a rank's metadata lost", LOCAL, damage.without("__0.metadata"), {"CK143", "CK142", "CK362"}, BROKEN),
    ("the last rank's metadata lost", LOCAL, damage.without("__1.metadata"), {"CK143", "CK142", "CK362"}, BROKEN),
    ("all of the last rank lost", LOCAL, damage.without("__1*"), {"CK362"}, BROKEN),
    ("metadata exchanged", LOCAL, dcp.exchanged("__0.metadata", "__1.metadata"), {"CK562"}, BROKEN),
    ("a rank's metadata twice", LOCAL, damage.with_copy("__0.metadata", "__1.metadata"),
     {"CK142", "CK361", "CK362", "CK562"}, BROKEN),
    ("a rank's data lost", LOCAL, damage.without("__1_0.distcp"), {"CK141"}, BROKEN),
    ("compressed, and cut", "dcp/zstd", damage.cut("__1_0.distcp", 0.5), {"CK360"}, BROKEN),
    ("compressed, and changed", "dcp/zstd", dcp.flipped("__1_0.distcp"), set(), READY),
    ("files of items, one lost", "dcp/files-per-item", damage.without("__1_0.distcp"), {"CK141"}, BROKEN),
    ("serialised as safetensors", "dcp/safetensors-serialization", nothing, {"CK294"}, BROKEN),
    ("saved over by half", "dcp/interrupted-overwrite", dcp.long_ago, {"CK293", "CK364", "CK560"}, BROKEN),
    ("the first shard lost", "dcp/hf-writer", damage.without("shard-00001*"), {"CK362"}, BROKEN),
    ("no metadata", "fsdp/fsdp2-sharded", damage.without("pytorch_model_fsdp_0/.metadata"), {"CK140"}, BROKEN),
    ("optimizer without it", "fsdp/fsdp2-sharded", damage.without("optimizer_0/.metadata"), {"CK140"}, NO_RESUME),
    ("optimizer cut", "fsdp/fsdp2-sharded", damage.cut("optimizer_0/__1_0.distcp", 0.5), {"CK360"}, NO_RESUME),
    ("optimizer's metadata cut", "fsdp/fsdp2-sharded", damage.cut("optimizer_0/.metadata", 0.5), {"CK203"}, NO_RESUME),
    ("no model", "fsdp/fsdp2-sharded", damage.without("pytorch_model_fsdp_0"), {"CK145"}, BROKEN),
    ("no optimizer", "fsdp/fsdp1-sharded", damage.without("optimizer_0"), {"CK145"}, NO_RESUME),
    ("no full model", "fsdp/fsdp2-full", damage.without("pytorch_model_fsdp.bin"), {"CK102"}, BROKEN),
    ("a rank's file lost", "fsdp/fsdp2-rank-bins", damage.without("optimizer_0_rank0.bin"), {"CK146"}, NO_RESUME),
    ("the last one lost", "fsdp/fsdp2-rank-bins", damage.without("pytorch_model_fsdp_0_rank1.bin"), {"CK146"}, BROKEN),
    ("ranks exchanged", BINS, dcp.exchanged(f"{BIN}0.bin", f"{BIN}1.bin"), {"CK146"}, BROKEN),
    ("a rank's moments twice", BINS, damage.with_copy(f"{MOMENTS}0.bin", f"{MOMENTS}1.bin"), {"CK146"}, NO_RESUME),
    ("flat ones exchanged", LEGACY, dcp.exchanged(f"{FLAT}0.bin", f"{FLAT}1.bin"), {"CK146", "CK701"}, BROKEN),
    ("a flat one twice", LEGACY, damage.with_copy(f"{FLAT}0.bin", f"{FLAT}1.bin"), {"CK146", "CK701"}, BROKEN),
    ("a rank's file cut", BINS, damage.cut(f"{BIN}1.bin", 0.5), {"CK203"}, BROKEN),
    ("another step", BINS, dcp.with_number(f"{MOMENTS}1.bin", "state.first.bias.step", 4.0), {"CK148"}, NO_RESUME),
    (
        "no schedule beside FSDP",
        "fsdp/trainer-sharded/checkpoint-2",
        damage.without("scheduler.pt"),
        {"CK104"},
        ("degraded", "ready"),
    ),
    ("no optimizer, Trainer", "fsdp/trainer-sharded/checkpoint-2", damage.without("optimizer_0"), {"CK145"},
     ("degraded", "ready")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fixture", "done", "expected", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_damage_gives_these_codes_and_verdicts(
    fixture: str, done: Damage, expected: set[str], verdict: tuple[str, str], copy_of: Copy
) -> None:
    place = copy_of(fixture)
    done(place)
    report = judge(place, families=ALL)
    assert codes(report) == expected
    assert verdicts(report) == verdict


HEALTHY = [
    (entry["path"], each)
    for entry in ENTRIES
    if entry["healthy"] and entry["path"].startswith(("dcp/", "fsdp/", "llama-recipes/", "torchtitan", "olmo-core"))
    for each in entry["checkpoints"]
    if "*" not in each
]


@pytest.mark.parametrize(("name", "checkpoint"), HEALTHY)
def test_healthy_ones_are_silent_to_the_last_byte(name: str, checkpoint: str) -> None:
    place = FIXTURES / name / checkpoint
    assert codes(judge(place, families=ALL)) == set()
    assert codes(judge(place, families=ALL, deep=True)) == set()


def test_what_runs_of_steps_hold() -> None:
    report = ckpt_tools.verify(str(FIXTURES / "dcp/run"), settle=0)
    assert [(each.path, each.step) for each in report.checkpoints] == [("step-2", 2), ("step-4", 4)]
    assert codes(report) == set()
    assert ckpt_tools.latest(str(FIXTURES / "dcp/run"), settle=0).path == str(FIXTURES / "dcp/run/step-4")


def test_latest_passes_one_without_metadata_over(copy_of: Copy) -> None:
    run = copy_of("dcp/run")
    (run / "step-4/.metadata").unlink()
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / "step-2")


def test_a_bit_flipped_in_a_tensor_that_is_not_the_last_of_its_file(copy_of: Copy) -> None:
    place = copy_of(PLAIN)
    dcp.flipped_bit(WEIGHT, 0, 0)(place)
    assert codes(judge(place, families=ALL)) == set()
    found = finding(judge(place, families=ALL, deep=True), "CK401")
    assert found.path == "__0_0.distcp"
    assert found.at.tensor == WEIGHT
    assert found.at.record == f"{WEIGHT}/archive/data/0"


def test_nan_in_a_chunk_of_a_weight(copy_of: Copy) -> None:
    place = copy_of("dcp/hf-writer")
    with (place / "shard-00002-model-00001-of-00001.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\xc0\x7f")
    report = judge(place, families=ALL, deep=True)
    assert codes(report) == {"CK402"}
    assert verdicts(report) == ("broken", "degraded")


@pytest.mark.parametrize("seed", range(80))
def test_no_damage_to_the_metadata_makes_a_rule_fail(seed: int, copy_of: Copy) -> None:
    draw = random.Random(f"any metadata#{seed}")
    place = copy_of(draw.choice((PLAIN, LOCAL, "dcp/flat-optimizer", "fsdp/fsdp2-sharded")))
    path = draw.choice(sorted(place.rglob("*metadata")))
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 2, 8, 40))):
        data[draw.randrange(len(data))] = draw.choice((draw.randrange(256), *b"hjKMN)}]\x94\x85R(u"))
    path.write_bytes(bytes(data))
    assert "CK001" not in codes(judge(place, families=ALL))


def test_the_number_of_a_rank_may_be_anything(copy_of: Copy) -> None:
    place = copy_of(LOCAL)
    (place / "__1.metadata").rename(place / "__9999999999999999.metadata")
    assert "CK143" in codes(judge(place, families=ALL))
    place = copy_of("fsdp/fsdp2-rank-bins")
    (place / "optimizer_0_rank1.bin").rename(place / "optimizer_0_rank9999999999999999.bin")
    assert codes(judge(place, families=ALL)) == {"CK120", "CK146"}
    (place / "random_states_1.pkl").rename(place / "random_states_99999999999999999999999.pkl")
    assert codes(judge(place, families=ALL)) == {"CK120", "CK146"}


def test_without_metadata_both_causes_are_named(copy_of: Copy) -> None:
    place = copy_of(PLAIN)
    (place / ".metadata").unlink()
    found = finding(judge(place, families=ALL), "CK101")
    assert "the save did not end" in found.message
    assert "`cp dir/*`" in found.detail[0]


def test_the_newest_without_metadata_may_be_in_progress(copy_of: Copy) -> None:
    place = copy_of(PLAIN)
    (place / ".metadata").unlink()
    now = max(path.stat().st_ctime_ns for path in place.iterdir())
    report = judge(place, families=ALL, settle=60, now_ns=now + 10**9)
    assert codes(report) == {"CK109"}
    assert verdicts(report) == ("in-progress", "in-progress")


def test_ranks_that_are_asked_for(copy_of: Copy) -> None:
    for fixture, expected in ((LOCAL, {"CK137"}), ("fsdp/fsdp2-rank-bins", {"CK123", "CK137"})):
        place = copy_of(fixture)
        assert codes(judge(place, families=ALL, world_size=2)) == set()
        assert codes(judge(place, families=ALL, world_size=4)) == expected
    assert codes(judge(FIXTURES / PLAIN, families=ALL, world_size=4)) == set()


def test_a_nan_in_a_rank_file_is_a_lost_weight(copy_of: Copy) -> None:
    place = copy_of(BINS)
    dcp.with_number(f"{BIN}1.bin", "scale", float("nan"))(place)
    report = judge(place, families=ALL, deep=True)
    assert codes(report) == {"CK402"}
    assert verdicts(report) == ("degraded", "degraded")


def test_a_sample_is_opened_and_the_rest_is_said(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly_dcp_blobs, "SAMPLED", 4)
    place = copy_of(PLAIN)
    dcp.overwritten_blob(MOMENT, 4, 0)(place)
    report = judge(place, families=ALL)
    assert codes(report) == set()
    (skipped,) = (each for each in report.checkpoints[0].skipped if "sample" in each.reason)
    assert skipped.reason == "41 of 45 pieces: only a sample was opened; --deep opens all"
    assert codes(judge(place, families=ALL, deep=True)) == {"CK293"}


def test_damaged_weights_count_however_many_others_come_before_them(copy_of: Copy) -> None:
    place = copy_of("dcp/run") / "step-4"
    (made,) = View(ckpt_tools.open_run(str(place)).checkpoints[0]).assemblies
    pieces = made.pieces["__1_0.distcp"]
    names = [piece.fqn for piece in sorted(pieces, key=lambda piece: piece.extent.offset)]
    assert names.index("first.weight") > 10
    with (place / "__1_0.distcp").open("r+b") as file:
        for piece in pieces:
            file.seek(piece.extent.offset)
            file.write(b"\xff" * 64)
    report = judge(place, families=ALL)
    assert codes(report) == {"CK293"}
    assert verdicts(report) == BROKEN
    assert len(finding(report, "CK293").detail) == 5


def test_what_was_transformed_is_said_to_be_unchecked() -> None:
    report = judge(FIXTURES / "dcp/zstd", families=ALL)
    reasons = [each.reason for each in report.checkpoints[0].skipped]
    assert any("pieces: written through stream.zstd/1" in reason for reason in reasons)


def test_orphans_of_a_larger_world_are_named(copy_of: Copy) -> None:
    place = copy_of(PLAIN)
    damage.with_copy("__1_0.distcp", "__2_0.distcp")(place)
    found = finding(judge(place, families=ALL), "CK142")
    assert (found.severity, found.path) == (Severity.WARNING, "__2_0.distcp")
    assert "more ranks" in found.detail[1]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_one_file_alone_is_not_blamed_for_the_others(name: str) -> None:
    report = judge(FIXTURES / PLAIN / name, families=ALL)
    assert codes(report) == set()
    assert report.checkpoints[0].step is None


def test_what_info_tells_of_it() -> None:
    described = ckpt_tools.info(str(FIXTURES / PLAIN)).described
    assert described is not None
    assert described.progress.step == 3
    assert described.model is not None
    assert described.model.parameters == 64


MIXED = [("__0_1.distcp",), ("__0_2.distcp",), ("__0_1.distcp", "__0_3.distcp")]


@pytest.mark.parametrize("files", MIXED, ids=",".join)
def test_data_files_of_two_steps(copy_of: Copy, files: tuple[str, ...]) -> None:
    run = copy_of("olmo-core")
    for file in files:
        shutil.copyfile(run / f"step4/model_and_optim/{file}", run / f"step2/model_and_optim/{file}")
    hit = finding(judge(run / "step2", families=ALL), "CK563")
    assert f"step 4 in model_and_optim/{files[0]}" in hit.detail[0]
    assert "CK563" not in codes(judge(run / "step4", families=ALL))


def test_a_data_file_that_is_ahead_of_the_training(copy_of: Copy) -> None:
    run = copy_of("dcp/run")
    shutil.copyfile(run / "step-4/__0_0.distcp", run / "step-2/__0_0.distcp")
    assert "CK563" in codes(judge(run / "step-2", families=ALL))
    assert "CK563" not in codes(judge(run / "step-4", families=ALL))


LLAMA = [f"layers.{layer}.{name}.weight" for layer in range(6) for name in ("wq", "wk", "wv", "wo", "norm")]
BEGUN_LATE: dict[str, Callable[[str], bool]] = {
    "all at once": lambda name: False,
    "layers": lambda name: int(name.split(".")[1]) < 3,
    "every other layer": lambda name: int(name.split(".")[1]) % 2 == 0,
    "one kind": lambda name: "norm" in name,
    "half of the kinds": lambda name: "wq" in name or "wv" in name,
    "one parameter": lambda name: name == LLAMA[0],
    "one kind of one layer": lambda name: name.startswith("layers.0.w"),
}


def _of_two_steps(file_of: Callable[[str], str], step_of: Callable[[str], float], training: float = 9) -> bool:
    """Return whether this is told of a model whose optimizer counts, and stores, each parameter so."""
    slots = tuple(
        Slot("optimizer-step", replace(PART, path=file_of(name)), name, step_of(name), editable=False) for name in LLAMA
    )
    keys = SimpleNamespace(state_of=lambda name: (name, "step"))
    view = SimpleNamespace(numbers=lambda quantity: [training] if quantity == "step" else [])
    return fit.of_two_steps(cast(Any, SimpleNamespace(slots=slots, keys=keys, view=view))) is not None


PART = Part("", Role.CHUNKS, "dcp", (), FileStat(Kind.FILE, 1, 0, 0, 0))


@pytest.mark.parametrize("late", BEGUN_LATE)
def test_parameters_that_began_later_are_no_mixture(late: str) -> None:
    def step_of(name: str) -> float:
        return 4.0 if BEGUN_LATE[late](name) else 9.0

    assert not _of_two_steps(lambda name: "one", step_of)
    assert not _of_two_steps(lambda name: f"{LLAMA.index(name) % 2}", step_of)
    assert not _of_two_steps(lambda name: f"{BEGUN_LATE[late](name)}", step_of)  # even where each has a file of its own


def test_parameters_ahead_of_the_training_are_a_mixture() -> None:
    def step_of(name: str) -> float:
        return 9.0 if name == LLAMA[0] else 4.0

    assert _of_two_steps(lambda name: f"{step_of(name)}", step_of, training=4)
    assert not _of_two_steps(lambda name: f"{step_of(name)}", step_of, training=9)
    assert not _of_two_steps(lambda name: f"{step_of(name)}", step_of, training=7)
    assert not _of_two_steps(lambda name: f"{LLAMA.index(name) % 2}", step_of, training=4)


def test_files_alone_that_tell_steps_apart_are_a_mixture() -> None:
    def file_of(name: str) -> str:
        return f"{LLAMA.index(name) % 2}"

    assert _of_two_steps(file_of, lambda name: 4.0 if file_of(name) == "0" else 9.0)
    assert not _of_two_steps(file_of, lambda name: 4.0 if name == LLAMA[0] else 5.0 if file_of(name) == "0" else 9.0)
