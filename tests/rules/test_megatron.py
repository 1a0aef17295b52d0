"""CK160-CK169 and the layouts of Megatron and NeMo."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.rules.megatron import _rank_names
from tests.conftest import ENTRIES, FIXTURES
from tests.rules import damage
from tests.rules.damage import Damage
from tests.rules.judge import codes, finding, judge, verdicts

Copy = Callable[..., Path]

DIST, LEGACY, NEMO = "megatron/torch-dist", "megatron/legacy", "megatron/nemo2"
CURRENT = "megatron/torch-dist-current"
ITER, NAMED = "iter_0000003", "tiny--val_loss=3.20-step=3-consumed_samples=12.0-last"
ALL = ("CK",)
READY, BROKEN, NO_RESUME = ("ready", "ready"), ("broken", "broken"), ("broken", "ready")
HEALTHY = [entry["path"] for entry in ENTRIES if entry["path"].startswith("megatron/") and entry["healthy"]]


def changed(name: str, change: Callable[[Any], None]) -> Damage:
    def done(directory: Path) -> None:
        torch = pytest.importorskip("torch")
        held = torch.load(directory / name, weights_only=False)
        change(held)
        torch.save(held, directory / name)

    return done


def another_iteration(held: Any) -> None:
    held["iteration"] = 2


def four_ranks(held: Any) -> None:
    held["args"].tensor_model_parallel_size, held["args"].pipeline_model_parallel_size = 2, 2


def distributed(held: Any) -> None:
    held["args"].use_distributed_optimizer, held["args"].no_save_optim = True, False


def without_arguments(held: Any) -> None:
    del held["args"]


def experts(directory: Path) -> None:
    """Two ranks, each the tensor rank and the expert rank of its number: experts that are not cut themselves."""
    (directory / "mp_rank_00").rename(directory / "mp_rank_00_000")
    (directory / "mp_rank_01").rename(directory / "mp_rank_01_001")

    def told(held: Any) -> None:
        held["args"].expert_model_parallel_size, held["args"].expert_tensor_parallel_size = 2, 1

    for rank in ("mp_rank_00_000", "mp_rank_01_001"):
        changed(f"{rank}/model_optim_rng.pt", told)(directory)


def optimizers_of_each_rank(directory: Path) -> None:
    """As once: the optimizer lay in a directory of each data-parallel rank."""
    for rank in ("mp_rank_00", "mp_rank_01"):
        changed(f"{rank}/model_optim_rng.pt", distributed)(directory)
        (directory / f"{rank}_000_000").mkdir()
        shutil.copy2(directory / rank / "model_optim_rng.pt", directory / f"{rank}_000_000" / "optim.pt")


def sealed(directory: Path) -> None:
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
    (directory / "integrity.json").write_text(json.dumps({"algorithm": "sha256", "files": files}))


def one_flipped(name: str) -> Damage:
    def done(directory: Path) -> None:
        data = bytearray((directory / name).read_bytes())
        data[-1] ^= 1
        (directory / name).write_bytes(data)

    return done


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_ones_are_silent(name: str) -> None:
    assert codes(judge(FIXTURES / name, families=ALL, deep=True)) == set()


CASES: list[tuple[str, str, str, Damage, set[str], tuple[str, str]]] = [
    ("today's, chunks of a rank lost", CURRENT, ITER, damage.without("__1_0.distcp"), {"CK141", "CK165"}, BROKEN),
    ("today's, killed while it finished", CURRENT, ITER, damage.without("metadata.json"), {"CK161", "CK165"}, BROKEN),
    ("killed before the metadata", DIST, ITER, damage.without(".metadata", "metadata.json"), {"CK101"}, BROKEN),
    ("killed while it finished", DIST, ITER, damage.without("metadata.json"), {"CK161"}, BROKEN),
    ("the same without common.pt", DIST, ITER, damage.without("metadata.json", "common.pt"), {"CK161"}, BROKEN),
    ("the common state lost", DIST, ITER, damage.without("common.pt"), {"CK162"}, BROKEN),
    ("chunks of a rank lost", DIST, ITER, damage.without("__1_0.distcp"), {"CK141"}, BROKEN),
    ("renamed", DIST, ITER, changed("common.pt", another_iteration), {"CK164"}, ("degraded", "ready")),
    ("Megatron's own digests", DIST, ITER, sealed, set(), READY),
    (
        "a file that the digests name is lost",
        DIST,
        ITER,
        damage.together(damage.with_file("x.json", b"{}"), sealed, damage.without("x.json")),
        {"CK165"},
        BROKEN,
    ),
    ("a rank lost", LEGACY, ITER, damage.without("mp_rank_01/model_optim_rng.pt"), {"CK160"}, BROKEN),
    (
        "cut for more ranks than there are",
        LEGACY,
        ITER,
        changed("mp_rank_00/model_optim_rng.pt", four_ranks),
        {"CK160"},
        BROKEN,
    ),
    (
        "a rank lost, and no arguments",
        LEGACY,
        ITER,
        damage.together(
            changed("mp_rank_01/model_optim_rng.pt", without_arguments), damage.without("mp_rank_00/model_optim_rng.pt")
        ),
        {"CK160"},
        BROKEN,
    ),
    ("experts that are not cut", LEGACY, ITER, experts, set(), READY),
    ("an optimizer for each data-parallel rank", LEGACY, ITER, optimizers_of_each_rank, set(), READY),
    (
        "ranks of two iterations",
        LEGACY,
        ITER,
        changed("mp_rank_01/model_optim_rng.pt", another_iteration),
        {"CK164"},
        BROKEN,
    ),
    (
        "one rank has the optimizer",
        LEGACY,
        ITER,
        damage.with_copy("mp_rank_00/model_optim_rng.pt", "mp_rank_00/distrib_optim.pt"),
        {"CK163"},
        NO_RESUME,
    ),
    (
        "none has it, and the arguments say so",
        LEGACY,
        ITER,
        changed("mp_rank_00/model_optim_rng.pt", distributed),
        {"CK163"},
        NO_RESUME,
    ),
    ("killed before the metadata, by NeMo", NEMO, NAMED, damage.without("weights/.metadata"), {"CK101"}, BROKEN),
    ("killed while it finished, by NeMo", NEMO, NAMED, damage.without("weights/metadata.json"), {"CK161"}, BROKEN),
]


@pytest.mark.parametrize(
    ("fixture", "name", "done", "expected", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_damage_gives_these_codes_and_verdicts(
    fixture: str, name: str, done: Damage, expected: set[str], verdict: tuple[str, str], copy_of: Copy
) -> None:
    run = copy_of(fixture)
    done(run / name)
    report = judge(run / name, families=("CK1",))
    assert codes(report) == expected
    assert verdicts(report) == verdict
    assert verdicts(judge(run, families=("CK1",)), name) == verdict


def test_plain_dcp_in_a_directory_of_megatron_is_whole(copy_of: Copy) -> None:
    """``--ckpt-format torch_dcp`` writes no ``metadata.json``."""
    run = copy_of(LEGACY)
    shutil.rmtree(run / ITER)
    shutil.copytree(FIXTURES / "dcp/plain", run / ITER)
    report = judge(run, families=ALL)
    assert codes(report) == set()
    assert verdicts(report, ITER) == READY


def test_a_run_of_both_formats(copy_of: Copy) -> None:
    run = copy_of(LEGACY)
    shutil.copytree(FIXTURES / DIST / ITER, run / "iter_0000004")
    assert [each.layout for each in open_run(run).checkpoints] == ["megatron-torch", "megatron"]


def test_the_digests_are_held_against_the_files(copy_of: Copy) -> None:
    checkpoint = copy_of(DIST) / ITER
    sealed(checkpoint)
    one_flipped("__0_0.distcp")(checkpoint)
    assert "CK166" not in codes(judge(checkpoint, families=ALL))
    report = judge(checkpoint, families=ALL, deep=True)
    assert finding(report, "CK166").path.endswith("__0_0.distcp")
    assert verdicts(report) == BROKEN


def test_names_of_ranks() -> None:
    assert _rank_names(2, 1, 1) == ["mp_rank_00", "mp_rank_01"]
    assert _rank_names(1, 2, 1) == ["mp_rank_00_000", "mp_rank_00_001"]
    assert _rank_names(1, 1, 2) == ["mp_rank_00_000", "mp_rank_00_001"]
    assert _rank_names(1, 2, 2)[-1] == "mp_rank_00_001_001"


def test_moments_have_the_names_that_others_give_them(fixtures_dir: Path) -> None:
    view = View(open_run(fixtures_dir / DIST / ITER).checkpoints[0])
    assert view.weights
    assert not any(name.startswith("optimizer") for name in view.weights)
    assert {name.rpartition(".")[2] for name in view.optimizer_tensors} >= {"exp_avg", "exp_avg_sq"}


def test_the_mark_of_nemo(copy_of: Copy) -> None:
    run = copy_of(NEMO)
    (run / f"{NAMED}-unfinished").touch()
    report = judge(run, families=("CK1",))
    assert codes(report) == {"CK167"}
    assert verdicts(report, NAMED) == NO_RESUME
    assert ckpt_tools.latest(str(run), settle=0).path is None
    assert verdicts(judge(run / NAMED, families=("CK1",))) == NO_RESUME


def test_the_common_state_is_found_among_the_chunks(copy_of: Copy) -> None:
    run = copy_of(CURRENT)
    checkpoint = open_run(run / ITER).checkpoints[0]
    view = View(checkpoint)
    assert not checkpoint.has(Role.COMMON)
    assert [(slot.quantity, slot.value) for slot in view.slots] == [("step", 3), ("lr", 0.02)]
    assert {slot.part.path for slot in view.slots} == {"__0_0.distcp"}
    assert [each.world_size for each in view.assemblies] == [2]
    (run / ITER).rename(run / "iter_0000007")
    (run / "latest_checkpointed_iteration.txt").write_text("7")
    report = judge(run, families=("CK1",))
    assert codes(report) == {"CK164"}
    assert "holds 3" in finding(report, "CK164").message


def test_ranks_that_wrote_no_file_count(copy_of: Copy) -> None:
    """Ranks that hold the same as others write nothing; the arguments tell of them."""
    path = copy_of(DIST) / ITER

    def of_eight(held: Any) -> None:
        held["args"].world_size = 8

    changed("common.pt", of_eight)(path)
    assert [each.world_size for each in View(open_run(path).checkpoints[0]).assemblies] == [8]


def test_the_real_digests_are_held_against_the_files(copy_of: Copy) -> None:
    checkpoint = copy_of(CURRENT) / ITER
    one_flipped("metadata.json")(checkpoint)
    assert finding(judge(checkpoint, families=("CK166",), deep=True), "CK166").path.endswith("metadata.json")


@pytest.mark.parametrize(
    ("name", "ranks", "expected"),
    [
        (LEGACY, 3, {"CK169"}),
        (LEGACY, 2, set()),
        (LEGACY, 8, set()),
        (DIST, 3, set()),
        (CURRENT, 3, set()),
    ],
)
def test_the_planned_number_of_ranks(name: str, ranks: int, expected: set[str]) -> None:
    report = judge(FIXTURES / name / ITER, families=("CK1",), world_size=ranks)
    assert codes(report) == expected
    assert verdicts(report) == (NO_RESUME if expected else READY)


def test_a_distributed_optimizer_in_buckets_cannot_be_cut_anew(copy_of: Copy) -> None:
    path = copy_of(DIST) / ITER

    def in_buckets(held: Any) -> None:
        held["content_metadata"] = {"distrib_optim_sharding_type": "dp_reshardable"}

    changed("common.pt", in_buckets)(path)
    assert codes(judge(path, families=("CK1",), world_size=3)) == {"CK169"}
    assert codes(judge(path, families=("CK1",), world_size=4)) == set()


def test_of_several_ranks_the_slices_are_described() -> None:
    path = FIXTURES / LEGACY / ITER
    view = View(open_run(path).checkpoints[0])
    (ranks,) = view.assemblies
    assert (dict(ranks.weights), ranks.world_size) == ({}, 2)
    assert ranks.outline["mp_rank_01/decoder.final_layernorm.weight"] == "float32 [4]"
    assert len(ranks.outline) == 6
    assert dict(ranks.described)["ranks"].startswith("2 with slices of 3 tensors: 200 numbers")
    (skipped,) = (each.reason for each in judge(path).checkpoints[0].skipped if each.code == "CK3")
    assert "they are not put together" in skipped


def test_one_rank_holds_the_whole_model(copy_of: Copy, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = copy_of(LEGACY) / ITER
    shutil.rmtree(path / "mp_rank_01")

    def alone(held: Any) -> None:
        held["args"].tensor_model_parallel_size = 1

    changed("mp_rank_00/model_optim_rng.pt", alone)(path)
    assert codes(judge(path, families=ALL, deep=True)) == set()
    ckpt_tools.merge(str(path), str(tmp_path / "merged"))
    from safetensors.torch import load_file

    merged = load_file(tmp_path / "merged" / "model.safetensors")
    held = torch.load(path / "mp_rank_00/model_optim_rng.pt", weights_only=False)["model"]
    assert set(merged) == {
        "embedding.word_embeddings.weight",
        "decoder.layers.0.mlp.linear_fc1.weight",
        "decoder.final_layernorm.weight",
    }
    assert torch.equal(merged["embedding.word_embeddings.weight"], held["embedding"]["word_embeddings"]["weight"])
