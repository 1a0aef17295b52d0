"""Everything that is no large tensor: what is told of it, and what is silent because nothing differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Pairs
from ckpt_tools.ops import diff_log, diff_names, diff_values
from ckpt_tools.ops.diff import diff
from ckpt_tools.reports.diff import MISSING, DiffReport, Section
from tests.diff.pairs import safetensors, weights

Copy = Callable[..., Path]


def section(report: DiffReport, name: str) -> Section:
    (only,) = (section for section in report.sections if section.name == name)
    return only


def pairs(found: Section) -> dict[str, tuple[Any, Any]]:
    return {change.key: (change.left, change.right) for change in found.changes}


def edit(path: Path, **values: Any) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    document.update(values)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_every_fixture_equals_its_copy(fixtures_dir: Path, tmp_path: Path) -> None:
    count = 0
    for top in sorted(fixtures_dir.iterdir()):
        for state in [*top.glob("checkpoint-*"), *top.glob("*/adapter_model.safetensors"), *top.glob("*/*.pt")]:
            target = tmp_path / top.name / state.name
            target.parent.mkdir(exist_ok=True, parents=True)
            (shutil.copytree if state.is_dir() else shutil.copy)(state, target)
            report = diff(str(state), str(target))
            assert report.equal, (state, [s for s in report.sections if s.differs], report.tensors, report.moments)
            assert not report.trouble, (state, report.trouble)
            assert not report.skipped, (state, report.skipped)
            assert report.headline == ("equal",)
            count += 1
    assert count > 30


def test_two_checkpoints_of_a_run(fixtures_dir: Path) -> None:
    run = fixtures_dir / "trainer5-full"
    report = diff(f"{run}@2", f"{run}@4")
    assert report.exit_code == 1
    assert report.steps == (2, 4)
    assert pairs(section(report, "trainer_state"))["global_step"] == (2, 4)
    assert pairs(section(report, "scheduler"))["last_epoch"] == (2, 4)
    assert pairs(section(report, "optimizer"))["param_groups[0].lr"] == (0.128, 0.064)
    assert pairs(section(report, "optimizer_state")) == {"step": (2, 4)}
    assert set(pairs(section(report, "rng"))) == {"cpu"}
    for equal in ("config", "generation_config", "training_args", "tokenizer"):
        assert section(report, equal).changes == ()
    assert [change.note for change in section(report, "trainer_state").changes if change.key == "log_history"] == [
        "the first 3 are the same"
    ]
    assert report.headline[0] == "21 of 21 weights changed"
    assert report.moments is not None
    assert len(report.moments.rows) == 42


def test_a_run_means_its_latest(fixtures_dir: Path, copy_of: Copy) -> None:
    run = copy_of("trainer5-full", "out")
    report = diff(str(run), str(run / "checkpoint-6"))
    assert report.equal
    assert report.took == (f"left: took {run}/checkpoint-6, the newest to resume from",)
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    assert diff(str(run), str(run / "checkpoint-4")).took == (
        f"left: took {run}/checkpoint-4, the newest to resume from, 1 newer passed over",
    )


def test_case_87_no_weight_changed(copy_of: Copy) -> None:
    run = copy_of("trainer5-full", "out")
    shutil.copy(run / "checkpoint-2" / "model.safetensors", run / "checkpoint-4" / "model.safetensors")
    report = diff(f"{run}@2", f"{run}@4")
    assert report.headline == ("no weight changed: 21 tensors with the same values",)
    assert report.document()["tensors"]["changed"] == 0
    assert "the saver kept one stale copy of the weights" in report.reasons[0]
    assert report.exit_code == 1


def test_nothing_was_training(copy_of: Copy) -> None:
    run = copy_of("trainer5-full", "out")
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        shutil.copy(run / "checkpoint-2" / name, run / "checkpoint-4" / name)
    (reason,) = diff(f"{run}@2", f"{run}@4").reasons
    assert "nothing was training" in reason


def test_only_the_adapter_changed(fixtures_dir: Path) -> None:
    run = fixtures_dir / "trainer5-lora"
    report = diff(f"{run}@2", f"{run}@4")
    assert report.headline[0] == "only the adapter changed: 8 of 8 tensors differ"
    assert report.moments is not None
    assert report.tensors is not None
    assert {row.weight for row in report.moments.rows} == {row.name for row in report.tensors.rows}


def test_frozen_layers_of_a_real_run(fixtures_dir: Path) -> None:
    run = fixtures_dir / "trainer5-frozen"
    (reason,) = diff(f"{run}@2", f"{run}@4").reasons
    assert reason == (
        "10 tensors did not move (frozen: the optimizer trains no more than what moved):"
        " model.embed_tokens, model.layers.0"
    )


def test_training_arguments_are_read_and_secrets_are_not_shown(copy_of: Copy) -> None:
    torch = pytest.importorskip("torch")
    one, other = copy_of("trainer5-full", "one"), copy_of("trainer5-full", "other")

    class Arguments:
        pass

    Arguments.__module__, Arguments.__qualname__ = "__main__", "Arguments"
    import __main__

    __main__.Arguments = Arguments  # type: ignore[attr-defined]
    for run, rate, token in ((one, 1e-4, "first"), (other, 2e-4, "second")):
        made = Arguments()
        made.__dict__.update({"learning_rate": rate, "hub_token": token, "seed": 1})
        torch.save(made, run / "checkpoint-2" / "training_args.bin")
    report = diff(f"{one}@2", f"{other}@2")
    assert pairs(section(report, "training_args")) == {
        "learning_rate": (1e-4, 2e-4),
        "hub_token": ("(hidden)", "(hidden)"),
    }
    assert "first" not in json.dumps(report.document())


def test_a_part_that_only_one_side_has(copy_of: Copy) -> None:
    one, other = copy_of("trainer5-full", "one"), copy_of("trainer5-full", "other")
    for name in ("optimizer.pt", "config.json", "rng_state.pth", "tokenizer.json"):
        (other / "checkpoint-2" / name).unlink()
    (other / "checkpoint-2" / "notes.txt").write_text("x", encoding="utf-8")
    report = diff(f"{one}@2", f"{other}@2")
    assert report.exit_code == 1
    for name in ("config", "optimizer", "optimizer_state", "rng"):
        (change,) = section(report, name).changes
        assert (change.left, change.right) == ("present", MISSING), name
    assert pairs(section(report, "tokenizer")) == {"tokenizer.json": ("1,733 bytes", MISSING)}
    assert pairs(section(report, "other_files")) == {"notes.txt": (MISSING, "1 byte")}
    assert report.moments is not None
    assert len(report.moments.only_left) == 42


def test_config_with_nested_lists_is_aligned(copy_of: Copy) -> None:
    one, other = copy_of("trainer5-full", "one"), copy_of("trainer5-full", "other")
    entries = [{"id": number, "content": f"<{number}>"} for number in range(6)]
    edit(one / "checkpoint-2" / "config.json", added=entries, rate=0.1, kinds=["a"])
    edit(other / "checkpoint-2" / "config.json", added=entries[1:], rate=0.1 + 1e-17, kinds=["a", "b"])
    found = pairs(section(diff(f"{one}@2", f"{other}@2"), "config"))
    assert found == {"added[0]": ({"id": 0, "content": "<0>"}, MISSING), "kinds": (["a"], ["a", "b"])}


def test_lists_of_an_adapter_config_have_no_order(copy_of: Copy) -> None:
    one, other = copy_of("trainer5-lora", "one"), copy_of("trainer5-lora", "other")
    edit(one / "checkpoint-2" / "adapter_config.json", target_modules=["q", "v"])
    edit(other / "checkpoint-2" / "adapter_config.json", target_modules=["v", "q"], r=4)
    assert pairs(section(diff(f"{one}@2", f"{other}@2"), "adapter_config")) == {"r": (2, 4)}


def test_two_files_are_compared_for_what_they_hold(fixtures_dir: Path) -> None:
    run = fixtures_dir / "trainer5-full"
    report = diff(str(run / "checkpoint-2" / "optimizer.pt"), str(run / "checkpoint-4"))
    assert [section.name for section in report.sections] == ["optimizer", "optimizer_state"]
    assert report.tensors is None
    report = diff(str(run / "checkpoint-2" / "trainer_state.json"), str(run / "checkpoint-4" / "trainer_state.json"))
    assert [section.name for section in report.sections] == ["trainer_state"]
    report = diff(str(run / "checkpoint-2" / "scheduler.pt"), str(run / "checkpoint-2" / "scheduler.pt"))
    assert report.equal


def test_plain_checkpoints_with_everything_in_one_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for number, name in enumerate(("a.pt", "b.pt")):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 / (1 + number))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        for _ in range(number + 1):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            scheduler.step()
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "epoch": number,
                "args": {"name": "x", "width": 4 + number},
                "ema": {"weight": model.weight.detach() * 0.5},
            },
            tmp_path / name,
        )
    report = diff(str(tmp_path / "a.pt"), str(tmp_path / "b.pt"))
    assert pairs(section(report, "values")) == {"epoch": (0, 1), "args.width": (4, 5)}
    assert pairs(section(report, "optimizer_state")) == {"step": (1, 2)}
    assert report.tensors is not None
    assert {row.name: row.part for row in report.tensors.rows} == {
        "weight": "weights", "bias": "weights", "ema.weight": "other",
    }  # fmt: skip
    assert pairs(section(report, "scheduler"))["last_epoch"] == (1, 2)


def test_hand_made_directories_without_torch(tmp_path: Path) -> None:
    for name, step in (("checkpoint-1", 1), ("checkpoint-2", 2)):
        safetensors(tmp_path / name / "model.safetensors", weights())
        state = {"global_step": step, "log_history": [{"step": n, "loss": 1 / n} for n in range(1, step + 1)]}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    report = diff(f"{tmp_path}@1", f"{tmp_path}@2")
    assert report.headline == ("no weight changed: 7 tensors with the same values",)
    assert [section.name for section in report.sections if section.differs] == ["trainer_state"]


# The pieces --------------------------------------------------------------------------------------------------


def logged(*entries: tuple[int, float]) -> list[dict[str, float]]:
    return [{"step": step, "loss": loss} for step, loss in entries]


def test_log_histories() -> None:
    base = logged((1, 3.0), (2, 2.0))
    assert diff_log.compare(base, logged((1, 3.0), (2, 2.0))) == []
    (longer,) = diff_log.compare(base, logged((1, 3.0), (2, 2.0), (3, 1.0)))
    assert (longer.left, longer.right, longer.note) == (
        "2 entries, to step 2", "3 entries, to step 3", "the first 2 are the same",
    )  # fmt: skip
    lengths, first = diff_log.compare(base, logged((1, 3.0), (2, 9.0), (3, 1.0)))
    assert lengths.note == "the first 1 are the same, 1 of one step contradict each other"
    assert (first.key, first.left, first.right) == ("log_history, step 2: loss", 2.0, 9.0)
    timed = [{"step": 1, "eval_loss": 1.0, "eval_runtime": 5.0}]
    (lengths,) = diff_log.compare(timed, [{"step": 1, "eval_loss": 1.0, "eval_runtime": 6.0}])
    assert "contradict" not in lengths.note
    assert diff_log.compare(None, "nonsense") == []


def test_values_of_every_sort() -> None:
    shared: dict[str, Any] = {"leaf": 1}
    for _ in range(60):
        shared = {"a": shared, "b": shared}
    with pytest.raises(diff_values.TooMuchError):
        diff_values.plain(shared, lambda ref: None)
    value = {
        "enum": Opaque("x.Kind", ("linear",), called=True),
        "object": Opaque("x.Thing", state={"a": (1, 2)}),
        "pairs": Pairs([((1, 2), b"\x01")]),
        "tensor": TensorRef("t", "float32", (2,), ()),
        "class": Opaque("x.Class"),
        "ordered": Opaque("collections.OrderedDict", items=[("k", 1)], called=True),
        "set": Opaque("builtins.set", ([3, 1],), called=True),
    }
    assert diff_values.plain(value, lambda ref: None) == {
        "enum": "linear",
        "object": {"a": [1, 2]},
        "pairs": [[[1, 2], "1 bytes: 01"]],
        "tensor": "float32[2]",
        "class": "<x.Class>",
        "ordered": {"k": 1},
        "set": [1, 3],
    }


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (0.1, 0.1 + 1e-15, True),
        (0.1, 0.1001, False),
        (float("nan"), float("nan"), True),
        (True, 1, False),
        (10**20, 10**20 + 1, False),
        (10**400, 1.0, False),
        ([1, [2]], [1, [2.0]], True),
        ({"a": 1}, {"b": 1}, False),
        (None, 0, False),
        ("a", "a", True),
    ],
)
def test_when_two_values_are_the_same(left: Any, right: Any, equal: bool) -> None:
    assert diff_values.same(left, right) is equal
    assert (diff_values.changes(left, right) == []) is equal


def test_long_lists_of_unlike_length_are_told_by_their_length() -> None:
    left = {"x": [{"a": n} for n in range(3000)]}
    right = {"x": [{"a": n} for n in range(3001)]}
    (change,) = diff_values.changes(left, right)
    assert (change.key, change.left, change.right) == ("x", "list of 3,000", "list of 3,001")


def test_layers_and_kinds() -> None:
    table = {
        "model.layers.3.self_attn.q_proj.weight": ("model.layers.3", "self_attn.q_proj.weight"),
        "transformer.h.11.mlp.experts.4.w1": ("transformer.h.11", "mlp.experts.*.w1"),
        "model.embed_tokens.weight": ("model.embed_tokens", "weight"),
        "lm_head.weight": ("lm_head", "weight"),
        "base_model.model.model.layers.0.q_proj.lora_A.weight": (
            "base_model.model.model.layers.0",
            "q_proj.lora_A.weight",
        ),
        "weight": ("weight", "weight"),
        "0.weight": ("0", "weight"),
    }
    for name, (layer, kind) in table.items():
        assert (diff_names.layer(name), diff_names.kind(name)) == (layer, kind), name
    assert diff_names.ranges(["a", "l.0", "l.1", "l.2", "l.4", "m.3"]) == ["a", "l.0-2", "l.4", "m.3"]


def test_moments_are_named_after_weights_where_shapes_allow(fixtures_dir: Path) -> None:
    run = fixtures_dir / "trainer5-full"
    report = diff(f"{run}@2", f"{run}@4")
    assert report.moments is not None
    named = {row.name: row.weight for row in report.moments.rows}
    assert named["state.0.exp_avg"] == "model.embed_tokens.weight"
    assert named["state.1.exp_avg"] == "model.layers.0.self_attn.q_proj.weight"
    assert named["state.15.exp_avg_sq"] == "lm_head.weight"
    assert named["state.20.exp_avg_sq"] == "model.norm.weight"
    optimizer = {"state": {0: {"m": TensorRef("", "float32", (4,), ())}}, "param_groups": [{"params": [0]}]}
    assert diff_names.parameter_names(optimizer, {"x.weight": TensorRef("", "float32", (5,), ())}) == {}
    assert diff_names.parameter_names(optimizer, {"x.weight": TensorRef("", "float32", (4,), ())}) == {"0": "x.weight"}
