"""Digests of tensors in pieces, and seals of the files that hold the pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckpt_tools
from tests.conftest import FIXTURES, Copy


def told(place: Path) -> dict[str, str | None]:
    report = ckpt_tools.checksum(str(place))
    assert report.exit_code == 0
    return {row.tensor or "": row.digest for row in report.rows}


def test_a_tensor_has_one_digest_in_every_sharding() -> None:
    forms = [told(FIXTURES / "dcp/same-model" / form) for form in ("one-rank", "two-ranks", "columns", "safetensors")]
    assert forms[0]
    assert all(form == forms[0] for form in forms)


def test_each_tensor_is_printed_once_and_by_its_name() -> None:
    report = ckpt_tools.checksum(str(FIXTURES / "dcp/plain"))
    names = [row.tensor for row in report.rows]
    assert len(names) == len(set(names)) == 13
    assert next(iter(report.lines())).endswith("  float32 []  scale")
    assert {row.path for row in report.rows} == {"."}


def test_what_lies_beside_the_pieces_in_a_rank_file_is_printed_too() -> None:
    report = ckpt_tools.checksum(str(FIXTURES / "deepspeed/stage1-bf16"))
    by_path: dict[str, set[str | None]] = {}
    for row in report.rows:
        by_path.setdefault(row.path, set()).add(row.tensor)
    assert {"first.weight", "state.first.weight.exp_avg"} <= by_path["global_step3"]
    assert "module.first.weight" in by_path["global_step3/mp_rank_00_model_states.pt"]
    assert not any("single_partition" in (row.tensor or "") for row in report.rows)


def test_digests_of_zero_are_those_of_its_merged_weights(tmp_path: Path) -> None:
    source = FIXTURES / "deepspeed/stage3-bf16/global_step3"
    ckpt_tools.merge(str(source), str(tmp_path / "out"))
    assert told(tmp_path / "out").items() <= told(source).items()


def test_info_lists_tensors_in_pieces_once() -> None:
    report = ckpt_tools.info(str(FIXTURES / "dcp/same-model/columns"), tensors=True)
    found = {row["name"]: row for row in report.document()["tensors"]}
    assert len(found) == len(report.document()["tensors"]) == 4
    assert found["first.weight"]["chunks"] == 2
    assert found["first.weight"]["file"] == "2 chunks in 2 files"
    assert "chunks" not in found["scale"]
    assert report.document()["model"]["chunk_files"] == 2
    assert report.document()["training"]["world_size"] == 2


@pytest.mark.parametrize(
    ("fixture", "inside", "file"),
    [
        ("dcp/same-model/columns", "", "__1_0.distcp"),
        ("deepspeed/stage3-fp32", "global_step4", "zero_pp_rank_1_mp_rank_00_optim_states.pt"),
    ],
)
def test_a_seal_finds_any_flipped_bit_of_a_piece(copy_of: Copy, fixture: str, inside: str, file: str) -> None:
    place = copy_of(fixture) / inside
    assert ckpt_tools.seal(str(place), settle=0).exit_code == 0
    assert ckpt_tools.verify(str(place), deep=True, settle=0).exit_code() == 0
    whole = (place / file).read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 12)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        (place / file).write_bytes(damaged)
        report = ckpt_tools.verify(str(place), deep=True, settle=0)
        codes = {finding.code for found in report.checkpoints for finding in found.findings}
        assert any(code.startswith("CK41") for code in codes), at
    (place / file).write_bytes(whole)
    assert ckpt_tools.verify(str(place), deep=True, settle=0).exit_code() == 0


def test_not_a_number_in_a_chunk_is_found_where_it_is(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    weight = torch.ones(5, 3)
    weight[2, 1] = float("nan")
    dcp.save({"model": {"a.weight": weight, "b.weight": torch.ones(4)}}, checkpoint_id=tmp_path / "bad")
    report = ckpt_tools.verify(str(tmp_path / "bad"), deep=True, settle=0)
    findings = [finding for found in report.checkpoints for finding in found.findings if finding.code == "CK402"]
    assert len(findings) == 1
    assert "a.weight" in f"{findings[0].message} {findings[0].detail} {findings[0].at}"
