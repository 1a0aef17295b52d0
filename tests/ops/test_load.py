"""``ckpt verify --load`` on every kind of file: what is loaded, what is listed as not loaded, and no false errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Finding, Purpose, Severity, Verdict
from ckpt_tools.ops.engine import Selection
from ckpt_tools.ops.load import Loader, proven
from ckpt_tools.reports.verify import VerifyReport
from tests.conftest import FIXTURES, Copy
from tests.rules import damage

PICKLED = "torch reads .metadata with plain pickle, which would run what it names"
UNSAFE = "the pickle needs weights_only=False, which would run what it names"
UNKNOWN = "only torch and safetensors files are"


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    """One child process for many checkpoints: torch takes seconds to import."""
    pytest.importorskip("torch")
    with Loader() as child:
        yield child


def loaded(path: Path) -> VerifyReport:
    return ckpt_tools.verify(str(path), load=True, settle=0)


def not_loaded(report: VerifyReport) -> list[str]:
    return [each.reason for part in report.checkpoints for each in part.skipped if each.code == "CK240"]


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("dcp/plain", [f".metadata, __0_0.distcp, __1_0.distcp not loaded: {PICKLED}"]),
        ("tensorflow/manager/ckpt-2", [f"ckpt-2.index, ckpt-2.data-00000-of-00001 not loaded: {UNKNOWN}"]),
        ("keras/model.keras", [f"model.keras not loaded: {UNKNOWN}"]),
        ("keras/legacy.h5", [f"legacy.h5 not loaded: {UNKNOWN}"]),
        ("flax/legacy/checkpoint_2", [f"checkpoint_2 not loaded: {UNKNOWN}"]),
        ("flax/msgpack/state.msgpack", [f"state.msgpack not loaded: {UNKNOWN}"]),
    ],
)
def test_what_no_safe_loader_reads_is_listed(name: str, skipped: list[str]) -> None:
    report = loaded(FIXTURES / name)
    assert not_loaded(report) == skipped
    assert report.exit_code() == 0


def test_many_files_are_listed_by_the_first_ones() -> None:
    (told,) = not_loaded(loaded(FIXTURES / "orbax/manager/4"))
    assert told.startswith("state/manifest.ocdbt, state/d/")
    assert told.endswith(f" more not loaded: {UNKNOWN}")
    assert told.partition(" and ")[0].count(",") == 2


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("dcp/hf-writer", []),
        ("lightning/run/last.ckpt", []),
        ("fsdp/fsdp2-full", []),
        ("fsdp/fsdp2-rank-bins", []),
        (
            "deepspeed/stage1-fp32/global_step4",
            [
                "zero_pp_rank_0_mp_rank_00_optim_states.pt, zero_pp_rank_1_mp_rank_00_optim_states.pt "
                f"not loaded: {UNSAFE}"
            ],
        ),
        ("deepspeed/universal-stage1/global_step4_universal", [f"zero/optimizer_state.pt not loaded: {UNSAFE}"]),
        (
            "megatron/legacy/iter_0000003",
            [f"mp_rank_00/model_optim_rng.pt, mp_rank_01/model_optim_rng.pt not loaded: {UNSAFE}"],
        ),
        (
            "megatron/torch-dist/iter_0000003",
            [
                f".metadata, __0_0.distcp, __0_1.distcp and 2 more not loaded: {PICKLED}",
                f"common.pt not loaded: {UNSAFE}",
            ],
        ),
        ("timm/last.pth.tar", [f"last.pth.tar not loaded: {UNSAFE}"]),
    ],
)
def test_torch_files_are_loaded_or_need_an_unsafe_load(name: str, skipped: list[str], loader: Loader) -> None:
    (checkpoint,) = open_run(FIXTURES / name).checkpoints
    found, left = proven([], checkpoint, View(checkpoint), Selection(), loader)
    assert sorted(each.reason for each in left) == sorted(skipped)
    assert found == []


def errors(path: Path, loader: Loader) -> list[Finding]:
    """Return the errors of a checkpoint, after what its loaders added to them."""
    (report,) = ckpt_tools.verify(str(path), settle=0).checkpoints
    (checkpoint,) = open_run(path).checkpoints
    found, _ = proven(list(report.findings), checkpoint, View(checkpoint), Selection(), loader)
    return [each for each in found if each.severity >= Severity.ERROR]


def test_what_accelerate_cannot_load_is_an_error_with_the_words_of_its_loader(loader: Loader) -> None:
    path = FIXTURES / "fsdp/fsdp1-local"
    found = errors(path, loader)
    assert {each.code for each in found} == {"CK701"}
    assert all("Unsupported global" in each.detail[-1] for each in found)
    (report,) = ckpt_tools.verify(str(path), settle=0).checkpoints
    assert report.verdicts[Purpose.RESUME] is Verdict.BROKEN


def test_a_rank_file_that_is_damaged_inside_is_still_refused(copy_of: Copy, loader: Loader) -> None:
    path = copy_of("deepspeed/stage1-fp32") / "global_step4"
    damage.cut("zero_pp_rank_1_mp_rank_00_optim_states.pt", 0.5)(path)
    (error,) = errors(path, loader)
    assert error.code == "CK203"
    assert "the loader says" in error.detail[-1]
