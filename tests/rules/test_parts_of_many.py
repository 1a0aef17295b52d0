"""Checkpoints of many files that lost one: every loss is told, and so is what to take instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.model.findings import Severity
from tests.rules.damage import Damage, cut, with_file, without
from tests.rules.judge import codes, verdicts

Copy = Callable[..., Path]
UNIVERSAL = "global_step4_universal"

CASES: tuple[tuple[str, str, Damage, str, str], ...] = (
    ("dcp/run", "step-4", cut("step-4/.metadata"), "CK203", "broken"),
    ("torchtitan/checkpoint", "step-4", cut("step-4/.metadata"), "CK203", "broken"),
    ("olmo-core", "step4", cut("step4/model_and_optim/.metadata"), "CK203", "broken"),
    ("olmo-core", "step4", without("step4/train"), "CK149", "degraded"),
    ("fsdp/trainer-full", "checkpoint-2", without("checkpoint-2/pytorch_model_fsdp.bin"), "CK145", "broken"),
    ("fsdp/trainer-sharded", "checkpoint-2", without("checkpoint-2/rng_state_1.pth"), "CK120", "degraded"),
    ("deepspeed/universal-stage1", UNIVERSAL, without(f"{UNIVERSAL}/zero/optimizer_state.pt"), "CK375", "broken"),
    ("deepspeed/trainer-stage1", "checkpoint-4", without("checkpoint-4/global_step4"), "CK151", "broken"),
)


@pytest.mark.parametrize(("fixture", "name", "damage", "code", "verdict"), CASES, ids=[f"{c[0]}-{c[3]}" for c in CASES])
def test_a_lost_part_is_told_once(
    copy_of: Copy, fixture: str, name: str, damage: Damage, code: str, verdict: str
) -> None:
    run = copy_of(fixture)
    damage(run)
    report = ckpt_tools.verify(str(run), settle=0)
    (checkpoint,) = (each for each in report.checkpoints if each.path == name)
    assert [finding.code for finding in checkpoint.findings if finding.severity >= Severity.WARNING] == [code]
    assert verdicts(report, name)[0] == verdict


BROKEN = (
    ("timm", cut("last.pth.tar")),
    ("lightning/run", cut("last.ckpt")),
    ("dcp/run", cut("step-4/.metadata")),
    ("deepspeed/stage1-fp32", without("global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt")),
)


@pytest.mark.parametrize(("fixture", "damage"), BROKEN, ids=[each[0] for each in BROKEN])
def test_the_help_names_what_latest_finds(copy_of: Copy, fixture: str, damage: Damage) -> None:
    run = copy_of(fixture)
    damage(run)
    found = ckpt_tools.latest(str(run), settle=0).path
    assert found is not None
    told = f"`ckpt latest {run}` finds {Path(found).name}, which can be resumed"
    assert told in {finding.help for finding in ckpt_tools.verify(str(run), settle=0).all_findings()}


NONE_GOOD = (
    ("inference", "fsdp/trainer-sharded", without("checkpoint-2/optimizer_0/.metadata"), "--for inference"),
    ("degraded", "fsdp/trainer-sharded", without("checkpoint-2/optimizer_0"), "--allow-degraded"),
    ("nothing", "megatron/torch-dist", without("iter_0000003/common.pt"), "look for another copy"),
)


@pytest.mark.parametrize(("fixture", "damage", "told"), [c[1:] for c in NONE_GOOD], ids=[c[0] for c in NONE_GOOD])
def test_where_none_is_good_the_help_says_what_is_left(copy_of: Copy, fixture: str, damage: Damage, told: str) -> None:
    run = copy_of(fixture)
    damage(run)
    report = ckpt_tools.verify(str(run), settle=0)
    (advice,) = {finding.help for finding in report.checkpoints[0].findings if finding.severity >= Severity.ERROR}
    assert advice is not None
    assert told in advice
    found = ckpt_tools.latest(str(run), settle=0)
    assert found.path is None
    assert found.reasons()[-1].startswith("no checkpoint is good to resume from: ")
    assert ("--allow-degraded" in found.reasons()[-1]) == (told == "--allow-degraded")


def test_the_way_out_follows_what_the_finding_itself_advises(copy_of: Copy) -> None:
    run = copy_of("dcp/run")
    with_file("step-4/__1_0.distcp", bytes(4096))(run)
    (zeros,) = (each for each in ckpt_tools.verify(str(run), settle=0).all_findings() if each.code == "CK202")
    assert zeros.help == f"copy it again, or use another save; `ckpt latest {run}` finds step-2, which can be resumed"


SAVING = (
    ("dcp/run", "step-4", without("step-4/.metadata"), "CK109", ".metadata, which is written last, is not there yet"),
    ("deepspeed/stage1-fp32", "global_step4", without("global_step4/mp_rank_00_model_states.pt"), "CK157", "1 file is"),
    ("deepspeed/stage3-fp32", "global_step4", cut("global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt"), "CK157",
     "zero_pp_rank_1_mp_rank_00_optim_states.pt is not whole"),
    ("tensorflow/manager", "ckpt-3", without("ckpt-3.index"), "CK171", "it is written last"),
)  # fmt: skip


@pytest.mark.parametrize(("fixture", "name", "damage", "code", "first"), SAVING, ids=[f"{c[0]}-{c[3]}" for c in SAVING])
def test_a_save_that_seems_to_go_on_says_what_to_do_if_it_does_not(
    copy_of: Copy, fixture: str, name: str, damage: Damage, code: str, first: str
) -> None:
    run = copy_of(fixture)
    damage(run)
    report = ckpt_tools.verify(str(run), settle=3600)
    (hit,) = (each for each in report.all_findings() if each.code == code)
    assert verdicts(report, name)[0] == "in-progress"
    assert hit.detail[0].startswith(first)
    assert hit.detail[-1] == f"if no job is writing it: `ckpt verify --settle 0 {run}` looks at it as it is"
    assert hit.help is not None
    assert hit.help.startswith(f"`ckpt latest {run}` finds ")


def test_a_tag_is_not_being_written_where_latest_names_one_that_is_gone(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-fp32")
    with_file("latest", b"global_step6")(run)
    now = max(path.stat().st_ctime_ns for path in run.rglob("*"))
    report = ckpt_tools.verify(str(run), settle=60, now_ns=now)
    assert codes(report, Severity.WARNING) == {"CK132"}
    assert verdicts(report, "global_step4") == ("ready", "ready")
