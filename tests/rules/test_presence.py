"""CK102-CK105, CK110, CK116-CK120, CK122-CK124: what is missing, and what is no file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Severity
from tests.conftest import ENTRIES, FIXTURES
from tests.rules import damage
from tests.rules.damage import Damage
from tests.rules.judge import codes, finding, judge, verdicts

Copy = Callable[..., Path]

READY = ("ready", "ready")
BROKEN = ("broken", "broken")
NO_RESUME = ("broken", "ready")
NO_INFERENCE = ("ready", "broken")
LESS = ("degraded", "ready")

FULL, LORA, SAVED = "trainer5-full", "trainer5-lora", "accelerate/auto"
CHECKPOINT = {FULL: "checkpoint-4", SAVED: "checkpoints/checkpoint_1"}

CASES: list[tuple[str, str, Damage, set[str], tuple[str, str]]] = [
    ("weights", FULL, damage.without("model.safetensors"), {"CK102"}, BROKEN),
    ("adapter weights", LORA, damage.without("adapter_model.safetensors"), {"CK102"}, BROKEN),
    ("weights of accelerate", SAVED, damage.without("model.safetensors"), {"CK102"}, BROKEN),
    (
        "weights under a foreign name",
        FULL,
        damage.renamed("model.safetensors", "model.msgpack"),
        {"CK102"},
        NO_RESUME,
    ),
    (
        "weights in a sub-directory",
        FULL,
        damage.together(
            damage.with_file("0_Transformer/model.safetensors"),
            damage.without("model.safetensors"),
        ),
        set(),
        READY,
    ),
    (
        "weights in FSDP's directory",
        FULL,
        damage.together(
            damage.without("model.safetensors", "optimizer.pt"),
            damage.with_file("pytorch_model_fsdp_0/__0_0.distcp"),
            damage.with_file("pytorch_model_fsdp_0/.metadata"),
            damage.with_file("optimizer_0/__0_0.distcp"),
            damage.with_file("optimizer_0/.metadata"),
        ),
        set(),
        READY,
    ),
    (
        "weights and optimizer in DeepSpeed's directory",
        FULL,
        damage.together(
            damage.without("model.safetensors", "optimizer.pt", "scheduler.pt"),
            damage.with_file("global_step4/mp_rank_00_model_states.pt"),
            damage.with_file("latest", b"global_step4"),
        ),
        set(),
        READY,
    ),
    ("only a named adapter left", "trainer5-lora-two", damage.without("adapter_model.safetensors"), set(), READY),
    ("optimizer", FULL, damage.without("optimizer.pt"), {"CK103"}, LESS),
    ("optimizer of accelerate", SAVED, damage.without("optimizer.bin"), {"CK103"}, NO_RESUME),
    ("optimizer under a foreign name", FULL, damage.renamed("optimizer.pt", "rank0-of-1-optimizer.pt"), set(), READY),
    ("scheduler", FULL, damage.without("scheduler.pt"), {"CK104"}, LESS),
    ("scheduler of accelerate", SAVED, damage.without("scheduler.bin"), {"CK104"}, NO_RESUME),
    ("optimizer and scheduler", FULL, damage.without("optimizer.pt", "scheduler.pt"), {"CK103", "CK104"}, LESS),
    ("rng", FULL, damage.without("rng_state.pth"), {"CK105"}, LESS),
    ("rng of every rank", "trainer5-2ranks", damage.without("rng_state_*.pth"), {"CK105"}, LESS),
    (
        "optimizer, scheduler and rng",
        FULL,
        damage.without("optimizer.pt", "scheduler.pt", "rng_state.pth"),
        set(),
        NO_RESUME,
    ),
    (
        "optimizer and scheduler of accelerate, everywhere",
        "accelerate/scaler",
        damage.without("optimizer.bin", "scheduler.bin"),
        set(),
        NO_RESUME,
    ),
    ("dangling optimizer", FULL, damage.dangling_in_place_of("optimizer.pt"), {"CK110"}, LESS),
    ("dangling weights", FULL, damage.dangling_in_place_of("model.safetensors"), {"CK110"}, BROKEN),
    ("looping state", FULL, damage.loop_in_place_of("trainer_state.json"), {"CK110"}, NO_RESUME),
    ("a pipe as optimizer", FULL, damage.pipe_in_place_of("optimizer.pt"), {"CK110"}, LESS),
    ("a directory as optimizer", FULL, damage.directory_in_place_of("optimizer.pt"), {"CK110"}, NO_RESUME),
    ("a directory as weights", FULL, damage.directory_in_place_of("model.safetensors"), {"CK110"}, BROKEN),
    ("a directory as arguments", FULL, damage.directory_in_place_of("training_args.bin"), {"CK110"}, READY),
    ("a pipe of accelerate", SAVED, damage.pipe_in_place_of("scheduler.bin"), {"CK110"}, NO_RESUME),
    ("config", FULL, damage.without("config.json"), {"CK117"}, NO_INFERENCE),
    ("config of the only checkpoint", "trainer5-tied", damage.without("config.json"), {"CK117"}, NO_INFERENCE),
    (
        "config that may never have been",
        "trainer5-tied",
        damage.without("config.json", "generation_config.json"),
        set(),
        ("ready", "degraded"),
    ),
    ("adapter config", LORA, damage.without("adapter_config.json"), {"CK118"}, NO_INFERENCE),
    (
        "named adapter's config",
        "trainer5-lora-two",
        damage.without("second/adapter_config.json"),
        {"CK118"},
        NO_INFERENCE,
    ),
    ("scaler", "trainer5-scaler", damage.without("scaler.pt"), {"CK119"}, LESS),
    ("rank 0", "trainer5-2ranks", damage.without("rng_state_0.pth"), {"CK120"}, LESS),
    ("a rank between", "trainer5-2ranks", damage.renamed("rng_state_1.pth", "rng_state_2.pth"), {"CK120"}, LESS),
    ("plain and per rank", "trainer5-2ranks", damage.with_copy("rng_state_1.pth", "rng_state.pth"), {"CK120"}, READY),
    ("a rank less at the end", "trainer5-2ranks", damage.without("rng_state_1.pth"), set(), READY),
    ("links into a cache", FULL, damage.linked_to_blobs, set(), READY),
    (
        "optimizer's backup directory",
        FULL,
        damage.together(damage.without("optimizer.pt"), damage.with_file("old_optimizer/notes.txt")),
        {"CK124"},
        NO_RESUME,
    ),
    ("a harmless backup directory", FULL, damage.with_file("old_optimizer/notes.txt"), set(), READY),
    ("FSDP's name outside of FSDP", FULL, damage.with_file("pytorch_model_fsdp_0/notes.txt"), {"CK124"}, NO_RESUME),
]


@pytest.mark.parametrize(
    ("fixture", "done", "expected", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_damage_gives_these_codes_and_verdicts(
    fixture: str, done: Damage, expected: set[str], verdict: tuple[str, str], copy_of: Copy
) -> None:
    run = copy_of(fixture)
    entry = next(entry for entry in ENTRIES if entry["path"] == fixture)
    last = CHECKPOINT.get(fixture, entry["checkpoints"][-1])
    done(run / last)
    report = judge(run)
    assert codes(report) == expected
    assert verdicts(report, last) == verdict


@pytest.mark.parametrize(
    ("fixture", "done", "expected", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_single_checkpoint_is_judged_as_within_its_run(
    fixture: str, done: Damage, expected: set[str], verdict: tuple[str, str], copy_of: Copy
) -> None:
    run = copy_of(fixture)
    entry = next(entry for entry in ENTRIES if entry["path"] == fixture)
    last = run / CHECKPOINT.get(fixture, entry["checkpoints"][-1])
    done(last)
    report = judge(last)
    assert codes(report) == expected
    assert verdicts(report) == verdict


def test_a_single_file_has_no_missing_neighbours() -> None:
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        assert codes(judge(FIXTURES / FULL / "checkpoint-4" / name), Severity.NOTE) == set()


def test_which_of_the_two_are_lost_is_said_plainly(copy_of: Copy) -> None:
    run = copy_of(FULL)
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    found = finding(judge(run), "CK103")
    assert found.path == "checkpoint-4"
    assert found.message == "optimizer.pt is missing"
    assert "starts both afresh without a word" in found.detail[0]


def test_saved_without_optimizer_is_a_note(copy_of: Copy) -> None:
    report = judge(FIXTURES / "trainer5-save-only-model")
    notes = [finding for finding in report.all_findings() if finding.code == "CK116"]
    assert [note.path for note in notes] == ["checkpoint-2", "checkpoint-4"]
    assert all(note.severity is Severity.NOTE and "save_only_model" in note.message for note in notes)
    assert verdicts(report, "checkpoint-4") == NO_RESUME


def test_the_export_of_a_finished_run_is_for_inference() -> None:
    report = judge(FIXTURES / FULL)
    note = finding(report, "CK116")
    assert (note.path, note.severity) == (".", Severity.NOTE)
    assert verdicts(report, ".") == NO_RESUME


def test_a_loop_that_saves_weights_alone_is_no_interrupted_trainer(tmp_path: Path) -> None:
    source = FIXTURES / "trainer431-bin" / "checkpoint-4"
    for step in (10, 20):
        home = tmp_path / f"checkpoint-{step}"
        home.mkdir()
        for name in ("pytorch_model.bin", "training_args.bin"):
            (home / name).write_bytes((source / name).read_bytes())
    report = judge(tmp_path)
    assert codes(report) == set()
    assert {finding.code for finding in report.all_findings()} == {"CK116", "CK117"}
    assert verdicts(report, "checkpoint-20")[0] == "broken"


def test_the_copy_on_offer_names_the_checkpoint_that_has_it(copy_of: Copy) -> None:
    run = copy_of(FULL)
    (run / "checkpoint-4" / "config.json").unlink()
    fix = finding(judge(run), "CK117").fix
    assert fix is not None
    assert (fix.kind, fix.safe) == ("copy-beside", True)
    assert fix.params == {"name": "config.json", "from": "checkpoint-2"}


def test_links_are_counted_once_per_checkpoint(copy_of: Copy) -> None:
    run = copy_of("trainer5-tied")
    damage.linked_to_blobs(run / "checkpoint-2")
    note = finding(judge(run), "CK122")
    assert note.severity is Severity.NOTE
    assert note.message.startswith("8 of 8 files are symbolic links: ")


@pytest.mark.parametrize(
    ("fixture", "wanted", "expected"),
    [
        ("trainer5-2ranks", 2, None),
        (
            "trainer5-2ranks",
            4,
            "written by 2 processes, planned for 4: ranks 2 to 3 would start with fresh random states",
        ),
        ("trainer5-2ranks", 3, "written by 2 processes, planned for 3: rank 2 would start with fresh random states"),
        (
            "trainer5-2ranks",
            1,
            "written by 2 processes, planned for 1: the one process would not find its random state",
        ),
        ("trainer5-tied", 1, None),
        ("trainer5-tied", 8, "written by 1 process, planned for 8: no rank would find its random state"),
        ("accelerate/bin", 2, "written by 1 process, planned for 2: rank 1 would start with fresh random states"),
    ],
)
def test_world_size(fixture: str, wanted: int, expected: str | None) -> None:
    report = judge(FIXTURES / fixture, world_size=wanted)
    found = [finding for finding in report.all_findings() if finding.code == "CK123"]
    assert {finding.message for finding in found} == ({expected} if expected else set())
    assert all(finding.severity is Severity.WARNING for finding in found)
    if expected:
        assert verdicts(report, report.checkpoints[-1].path) == LESS


@pytest.mark.parametrize(
    ("arguments", "device", "expected"),
    [
        ({"fp16": True}, "cuda", {"CK119"}),
        ({"fp16": True}, "cpu", set()),
        ({"fp16": False}, "cuda", set()),
        ({"fp16": True, "half_precision_backend": "apex"}, "cuda", set()),
        ({"fp16": True, "deepspeed": "ds.json"}, "cuda", set()),
    ],
)
def test_a_scaler_is_missing_only_where_there_was_one(
    arguments: dict[str, Any], device: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(View, "training_args", arguments)
    monkeypatch.setattr(View, "mapping", lambda view, role: {device: None} if role == "rng" else None)
    assert codes(judge(FIXTURES / "trainer5-tied", families=("CK119",))) == expected


def test_another_checkpoint_having_a_scaler_and_fp16_make_it_an_error(
    copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of("trainer5-scaler")
    (run / "checkpoint-4" / "scaler.pt").unlink()
    monkeypatch.setattr(View, "training_args", {"fp16": True})
    found = finding(judge(run), "CK119")
    assert (found.severity, found.detail) == (Severity.ERROR, ("checkpoint-2 has one",))


def test_a_pipe_is_named_and_never_opened(copy_of: Copy) -> None:
    run = copy_of("trainer5-tied")
    damage.pipe_in_place_of("rng_state.pth")(run / "checkpoint-2")
    found = finding(judge(run), "CK110")
    assert found.message == "is a named pipe, not a regular file"
    assert found.path == "checkpoint-2/rng_state.pth"


def test_foreign_directories_called_like_a_checkpoint_are_not_judged_by_the_trainers_rules(tmp_path: Path) -> None:
    home = tmp_path / "checkpoint-10" / "iter_0000010" / "mp_rank_00"
    home.mkdir(parents=True)
    (home / "model_optim_rng.pt").write_bytes(b"x")
    (tmp_path / "checkpoint-10" / "notes.json").write_text(json.dumps({}))
    assert codes(judge(tmp_path)) == set()


def test_weights_of_flax_alone_are_not_resumed_from(copy_of: Copy) -> None:
    home = copy_of("flax/msgpack")
    note = finding(judge(home, families=("CK5",)), "CK588")
    assert (note.path, note.severity) == ("flax_model.msgpack", Severity.NOTE)
    assert verdicts(judge(home, families=("CK5",)), "flax_model.msgpack") == NO_RESUME
    assert verdicts(judge(home, families=("CK5",)), "state.msgpack") == READY
    (home / "state.msgpack").unlink()
    assert ckpt_tools.latest(str(home), settle=0).path is None
