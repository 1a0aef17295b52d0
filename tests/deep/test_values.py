"""Faults in values: NaN and Inf, lost pages, untrained adapters, impossible moments, outliers; and their
look-alikes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.model.findings import Purpose, Severity, Verdict
from tests.conftest import Copy
from tests.deep.support import (
    change_safetensors,
    change_torch,
    codes,
    data_findings,
    flip,
    look_at_file,
    one,
    skipped,
    verify,
)

torch = pytest.importorskip("torch")


def save(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})
    return path


def verdicts(report, name: str = ".") -> tuple[Verdict, Verdict]:
    (found,) = (each for each in report.checkpoints if each.path == name)
    return found.verdicts[Purpose.RESUME], found.verdicts[Purpose.INFERENCE]


# NaN and Inf (cases 66, 67, 68) --------------------------------------------------------------------------------


def test_a_tensor_that_is_nan_all_over(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    names = []

    def change(tensors: dict[str, np.ndarray]) -> None:
        names.append(next(name for name in tensors if tensors[name].ndim == 2))
        tensors[names[0]][:] = np.nan

    change_safetensors(run / "checkpoint-4" / "model.safetensors", change)
    report = verify(run)
    found = one(report, "CK402")
    assert found.severity is Severity.ERROR
    assert found.path == "checkpoint-4/model.safetensors"
    assert found.at.tensor == names[0]
    assert f"{names[0]}[0, 0] is the first" in found.detail[0]
    assert verdicts(report, "checkpoint-4") == (Verdict.DEGRADED, Verdict.DEGRADED)
    assert verdicts(report, "checkpoint-2") == (Verdict.READY, Verdict.READY)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_one_nan_is_counted_and_placed(dtype: str, tmp_path: Path) -> None:
    weight = torch.randn(7, 9).to(getattr(torch, dtype))
    values = weight.float()
    values[3, 5] = float("nan")
    path = save(tmp_path / "model.safetensors", {"other": torch.ones(4), "w": values.to(weight.dtype)})
    found = one(verify(path), "CK402")
    assert found.message == "1 NaN in tensor w"
    assert found.detail == (f"w[3, 5] is the first; 1 NaN of 63 {dtype}",)


def test_inf_in_a_second_moment(copy_of: Copy) -> None:
    path = copy_of("trainer5-full/checkpoint-4", "checkpoint-4") / "optimizer.pt"

    def change(state) -> None:
        state["state"][1]["exp_avg_sq"].view(-1)[2] = float("inf")

    change_torch(path, change)
    report = verify(path.parent)
    found = one(report, "CK402")
    assert found.message == "1 Inf in tensor state.1.exp_avg_sq"
    assert found.severity is Severity.ERROR
    assert verdicts(report) == (Verdict.DEGRADED, Verdict.READY)


@pytest.mark.parametrize("name", ["h.0.attn.masked_bias", "layers.0.rotary_emb.inv_freq", "causal_mask",
                                  "layers.3.mlp.gate.e_score_correction_bias"])  # fmt: skip
def test_infinities_that_are_meant_are_notes(name: str, tmp_path: Path) -> None:
    tensor = torch.zeros(5, 5)
    tensor[0, 1:] = float("-inf")
    path = save(tmp_path / "model.safetensors", {name: tensor, "w": torch.randn(4, 4)})
    report = verify(path)
    assert one(report, "CK402").severity is Severity.NOTE
    assert one(report, "CK402").at.tensor == name
    assert report.exit_code() == 0


def test_inf_in_a_weight_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", {"layers.0.mlp.weight": torch.full((2, 2), float("-inf"))})
    assert one(verify(path), "CK402").severity is Severity.ERROR


def test_what_is_neither_weight_nor_moment_may_be_anything(tmp_path: Path) -> None:
    model, losses = torch.nn.Linear(3, 3), torch.tensor([1.0, float("nan")])
    path = tmp_path / "last.pt"
    torch.save({"model": model.state_dict(), "epoch": 3, "losses": losses}, path)
    assert one(verify(path), "CK402").severity is Severity.NOTE
    torch.save({"model": {"w": losses}, "epoch": 3}, path)
    assert one(verify(path), "CK402").severity is Severity.ERROR


# Lost pages (case 9) -------------------------------------------------------------------------------------------


def many(tmp_path: Path, **extra: torch.Tensor) -> Path:
    generator = torch.Generator().manual_seed(4)
    tensors = {f"layers.{n}.weight": torch.randn(96, 100, generator=generator) for n in range(4)}
    return save(tmp_path / "model.safetensors", {**tensors, **extra})


def zero(path: Path, begin: int, end: int) -> None:
    data = bytearray(path.read_bytes())
    data[begin : min(end, len(data))] = bytes(min(end, len(data)) - begin)
    path.write_bytes(data)


def test_the_second_half_is_zeros(copy_of: Copy, tmp_path: Path) -> None:
    path = many(tmp_path)
    size = path.stat().st_size
    begin = size // 2 + 777
    zero(path, begin, size)
    found = one(verify(path), "CK403")
    assert found.severity is Severity.WARNING
    assert "to the end of the file" in found.message
    assert found.at.offset is not None
    assert abs(found.at.offset - begin) < 4
    assert any("layers.3.weight" in line for line in found.detail)


def test_lost_pages_at_the_end_are_an_error(tmp_path: Path) -> None:
    path = many(tmp_path)
    zero(path, 20 * 4096, path.stat().st_size)
    found = one(verify(path), "CK403")
    assert found.severity is Severity.ERROR
    assert found.at.offset == 20 * 4096
    assert verdicts(verify(path))[1] is Verdict.BROKEN


def test_one_lost_page_inside_a_tensor(tmp_path: Path) -> None:
    path = many(tmp_path)
    zero(path, 9 * 4096, 10 * 4096)
    found = one(verify(path), "CK403")
    assert (found.severity, found.message) == (Severity.ERROR, "1 pages of zeros inside tensors")
    assert found.at.offset == 9 * 4096


def test_a_sparse_file_says_so(tmp_path: Path) -> None:
    path = many(tmp_path)
    data = path.read_bytes()
    with path.open("wb") as out:
        out.write(data[: 16 * 4096])
        out.truncate(len(data))
    lines = one(verify(path), "CK403").detail
    assert any("holes" in line for line in lines) or path.stat().st_blocks * 512 >= len(data)


def test_zeros_that_end_with_rows_and_tensors_are_right(tmp_path: Path) -> None:
    embedding = torch.randn(400, 128)
    embedding[40:90] = 0
    embedding[380:] = 0
    causal = torch.tril(torch.ones(2100, 2100))
    quiet = {
        "embed_tokens.weight": embedding,
        "h.bias_mask": causal,
        "a.bias": torch.zeros(9000),
        "q.lora_A.weight": torch.randn(8, 4096),
        "q.lora_B.weight": torch.zeros(4096, 8),
        "z.norm.weight": torch.zeros(5000),
    }
    path = many(tmp_path, **quiet)
    assert codes(verify(path)) == set()


def test_zero_pages_behind_a_fitting_checksum_are_right(tmp_path: Path) -> None:
    weight = torch.randn(64, 1000)
    weight.view(-1)[5000:9000] = 0
    path = tmp_path / "weights.pt"
    torch.save({"w": weight}, path)
    assert codes(verify(path)) == set()


# Adapters (case 69) --------------------------------------------------------------------------------------------


def zero_lora(tensors: dict[str, np.ndarray]) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name][:] = 0


def test_an_adapter_that_learnt_nothing(copy_of: Copy) -> None:
    run = copy_of("trainer5-lora")
    change_safetensors(run / "checkpoint-4" / "adapter_model.safetensors", zero_lora)
    found = one(verify(run), "CK404")
    assert (found.severity, found.path) == (Severity.WARNING, "checkpoint-4/adapter_model.safetensors")
    assert found.message == "all 4 lora_B are zero: the adapter changes nothing"


def test_an_exported_adapter_counts_the_steps_beside_it(copy_of: Copy) -> None:
    run = copy_of("trainer5-lora")
    change_safetensors(run / "adapter_model.safetensors", zero_lora)
    assert one(verify(run), "CK404").severity is Severity.WARNING
    alone = copy_of("trainer5-lora/adapter_model.safetensors", "alone/adapter_model.safetensors")
    (alone.parent / "adapter_config.json").write_bytes((run / "adapter_config.json").read_bytes())
    change_safetensors(alone, zero_lora)
    assert one(verify(alone.parent), "CK404").severity is Severity.NOTE


def test_at_the_first_step_zeros_are_right(copy_of: Copy) -> None:
    path = copy_of("trainer5-lora/checkpoint-2", "checkpoint-1")
    state = json.loads((path / "trainer_state.json").read_text())
    state["global_step"] = 1
    (path / "trainer_state.json").write_text(json.dumps(state))
    change_safetensors(path / "adapter_model.safetensors", zero_lora)
    assert "CK404" not in {each.code for each in data_findings(verify(path))}


def test_one_lora_b_that_moved_is_enough(copy_of: Copy) -> None:
    path = copy_of("trainer5-lora/checkpoint-4", "checkpoint-4")

    def change(tensors: dict[str, np.ndarray]) -> None:
        zero_lora(tensors)
        first = next(name for name in tensors if "lora_B" in name)
        tensors[first].reshape(-1)[-1] = 1e-7

    change_safetensors(path / "adapter_model.safetensors", change)
    assert codes(verify(path)) == set()


# Moments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["trainer5-full/checkpoint-4", "trainer5-lora/checkpoint-4"])
def test_a_second_moment_below_zero(fixture: str, copy_of: Copy) -> None:
    path = copy_of(fixture, "checkpoint-4")

    def change(state) -> None:
        state["state"][0]["exp_avg_sq"].view(-1)[1] = -1e-9
        state["state"][0]["exp_avg_sq"].view(-1)[0] = -0.0

    change_torch(path / "optimizer.pt", change)
    report = verify(path)
    found = one(report, "CK405")
    assert found.message == "1 elements of second moments are negative"
    assert found.at.tensor == "state.0.exp_avg_sq"
    assert verdicts(report) == (Verdict.DEGRADED, Verdict.READY)


def test_views_of_one_flat_moment_are_told_apart(tmp_path: Path) -> None:
    flat = torch.rand(1000)
    flat[700] = -1
    views = {n: {"exp_avg_sq": flat[500 * n : 500 * (n + 1)], "step": torch.tensor(3.0)} for n in range(2)}
    path = tmp_path / "optimizer.pt"
    torch.save({"state": views, "param_groups": [{"lr": 0.1, "params": [0, 1]}], "flat": flat}, path)
    summary = look_at_file(path)
    counts = {name: each.negative for name, each in summary.tensors.items() if name.endswith("exp_avg_sq")}
    assert counts == {"state.0.exp_avg_sq": 0, "state.1.exp_avg_sq": 1}


def test_quantised_moments_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "optimizer.pt"
    state = {0: {"exp_avg_sq": torch.full((8,), -3, dtype=torch.int8), "exp_avg": torch.full((8,), -1.0)}}
    torch.save({"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}, path)
    assert codes(verify(path)) == set()


# Outliers ------------------------------------------------------------------------------------------------------


def test_a_flipped_exponent_stands_out_beside_its_neighbour(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    path = run / "checkpoint-4" / "model.safetensors"
    tensor = next(name for name, each in look_at_file(path).tensors.items() if len(each.ref.shape) == 2)
    extent = look_at_file(path).tensors[tensor].ref.chunks[0].extent
    flip(path, extent.offset + 43, 6)
    report = verify(run)
    found = one(report, "CK406")
    assert (found.severity, found.path) == (Severity.WARNING, "checkpoint-4/model.safetensors")
    assert found.at.tensor == tensor
    assert codes(verify(run / "checkpoint-4")) == set()


def test_large_values_that_were_there_before_are_right(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6", "."):

        def change(tensors: dict[str, np.ndarray]) -> None:
            tensors[min(tensors)].reshape(-1)[0] = 1e30

        change_safetensors(run / name / "model.safetensors", change)
    assert codes(verify(run)) == set()


def test_runs_of_single_files_are_compared_as_well(copy_of: Copy) -> None:
    run = copy_of("plain/epochs")

    def change(state) -> None:
        tensors = next(each for each in state.values() if isinstance(each, dict) and "weight" in str(list(each)))
        next(each for each in tensors.values() if each.is_floating_point()).view(-1)[0] = 1e25

    change_torch(run / "epoch_2.pt", change)
    assert one(verify(run), "CK406").severity is Severity.WARNING


# Bool bytes, and what nothing can see ----------------------------------------------------------------------------


def test_bool_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", {"mask": torch.ones(3, 4, dtype=torch.bool), "w": torch.randn(4, 4)})
    begin = look_at_file(path).tensors["mask"].ref.chunks[0].extent.offset
    flip(path, begin + 6, 2)
    found = one(verify(path), "CK407")
    assert "mask[1, 2] is the first" in found.detail[0]


def test_a_small_flip_in_safetensors_is_honestly_not_seen(copy_of: Copy) -> None:
    path = copy_of("trainer5-full/checkpoint-4/model.safetensors", "model.safetensors")
    extent = next(iter(look_at_file(path).tensors.values())).ref.chunks[0].extent
    flip(path, extent.offset, 0)
    report = verify(path)
    assert codes(report) == set()
    assert "a changed value that stays plausible is seen only against a manifest" in skipped(report)
