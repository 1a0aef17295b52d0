"""CK17x and CK27x: checkpoints of TensorFlow, JAX and the libraries around PyTorch, damaged one way at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.model.findings import Severity
from tests.rules.damage_frameworks import CASES, Case, flipped
from tests.rules.judge import codes, verdicts

Copy = Callable[..., Path]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.fixture}: {case.name}")
def test_a_damage_gives_its_finding_and_no_other(case: Case, copy_of: Copy) -> None:
    run = copy_of(case.fixture)
    case.damage(run)
    report = ckpt_tools.verify(str(run), settle=0, deep=case.deep)
    found = "\n".join(f"{each.code} {each.path} {each.message}" for each in report.all_findings())
    assert codes(report, Severity.WARNING) == case.codes, found
    assert verdicts(report, case.checkpoint) == case.verdicts, found


def test_values_in_hdf5_are_said_to_be_unread_until_they_are_sealed(copy_of: Copy) -> None:
    weights = copy_of("keras") / "model.weights.h5"
    reason = "the values in model.weights.h5: HDF5 is not decoded; a manifest would show a change"
    assert reason in [each.reason for each in ckpt_tools.verify(str(weights), deep=True).checkpoints[0].skipped]
    ckpt_tools.seal(str(weights))
    assert ckpt_tools.verify(str(weights), deep=True).checkpoints[0].skipped == ()


def test_keras_stops_at_a_checksum_that_does_not_fit(copy_of: Copy) -> None:
    archive = copy_of("keras") / "model.keras"
    flipped("model.keras", 0.5)(archive.parent)
    (hit,) = (each for each in ckpt_tools.verify(str(archive), deep=True).all_findings() if each.code == "CK401")
    assert hit.detail[-1] == 'a load stops with "Bad CRC-32"'


@pytest.mark.parametrize("name", ["legacy.h5", "model.weights.h5", "model.keras"])
def test_a_model_of_keras_without_an_optimizer_is_nothing_to_resume_from(copy_of: Copy, name: str) -> None:
    path = copy_of("keras") / name
    assert verdicts(ckpt_tools.verify(str(path), settle=0)) == ("ready", "ready")
    whole = path.read_bytes()
    for old in (b"optimizer_weights\0", b"layers\0\0optimizer\0"):  # the heaps of names, as h5py writes them
        whole = whole.replace(old, old.replace(b"optimizer", b"moredense"))
    path.write_bytes(whole)
    report = ckpt_tools.verify(str(path), settle=0)
    assert codes(report, Severity.NOTE) >= {"CK589"}
    assert verdicts(report) == ("broken", "ready")


@pytest.mark.parametrize("address", [0, 96, 10**6, (1 << 64) - 1])
def test_names_in_hdf5_that_lie_nowhere_are_no_names(copy_of: Copy, address: int) -> None:
    path = copy_of("keras") / "legacy.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[:88] + address.to_bytes(8, "little") + whole[96:])
    report = ckpt_tools.verify(str(path), settle=0)
    assert codes(report, Severity.NOTE) == set()


def test_msgpack_has_no_checksums_and_that_is_said(copy_of: Copy) -> None:
    state = copy_of("flax/msgpack") / "state.msgpack"
    reasons = [each.reason for each in ckpt_tools.verify(str(state), deep=True).checkpoints[0].skipped]
    assert any("checksums of state.msgpack: none inside (msgpack)" in reason for reason in reasons)
    ckpt_tools.seal(str(state))
    assert ckpt_tools.verify(str(state), deep=True).checkpoints[0].skipped == ()
