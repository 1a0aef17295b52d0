"""``ckpt info`` on real checkpoints: what it says, that it says it safely, and that its JSON is JSON."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.core.errors import NothingFoundError, SourceError
from ckpt_tools.core.source import Extent
from ckpt_tools.model import schedules
from ckpt_tools.model.tensors import Chunk, TensorRef
from ckpt_tools.model.values import Opaque, Pairs
from ckpt_tools.ops import info as info_module
from ckpt_tools.ops import versions
from ckpt_tools.ops.address import resolve, split
from ckpt_tools.ops.info import info
from ckpt_tools.render import json as json_format
from ckpt_tools.render import text as text_format
from ckpt_tools.reports.info import InfoReport
from ckpt_tools.reports.tree import Limits, Tree, document

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
RUN = FIXTURES / "trainer5-full"
RECORDED: list[dict[str, Any]] = json.loads((FIXTURES / "fixtures.json").read_text(encoding="utf-8"))
LATER = 2**62


def in_text(report: InfoReport) -> str:
    return "\n".join(text_format.render(report))


def in_json(report: InfoReport) -> dict[str, Any]:
    line = "".join(json_format.render(report))
    found: dict[str, Any] = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    return found


def shown(target: str | Path, **wishes: Any) -> str:
    return in_text(info(str(target), now_ns=LATER, **wishes))


def decoded(target: str | Path, **wishes: Any) -> dict[str, Any]:
    return in_json(info(str(target), now_ns=LATER, **wishes))


def row(text: str, label: str) -> str:
    """Return the first value that stands under ``label``."""
    return next(line.removeprefix(label).strip() for line in text.splitlines() if line.startswith(f"{label} "))


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


# Every fixture ----------------------------------------------------------------------------------------------


def every_checkpoint() -> Iterator[tuple[str, Path]]:
    for entry in RECORDED:
        for checkpoint in entry["checkpoints"]:
            yield f"{entry['path']}/{checkpoint}", FIXTURES / entry["path"] / checkpoint


@pytest.mark.parametrize("path", [FIXTURES / entry["path"] for entry in RECORDED], ids=lambda path: str(path.name))
def test_every_run_is_described(path: Path) -> None:
    report = info(str(path), now_ns=LATER)
    assert len(in_text(report).splitlines()) > 5
    assert in_json(report)["schema"] == "ckpt-tools/info/1"


@pytest.mark.parametrize("path", [path for _, path in every_checkpoint()], ids=[name for name, _ in every_checkpoint()])
def test_every_checkpoint_is_described_within_a_terminal(path: Path) -> None:
    text = shown(path)
    found = decoded(path, tensors=True)
    assert found["kind"] in ("checkpoint", "file", "run")
    wide = [line for line in text.splitlines() if len(line) > 100 and str(FIXTURES) not in line]
    assert wide == []


@pytest.mark.parametrize(
    "path", sorted({path for _, path in every_checkpoint() if path.is_dir()}), ids=lambda p: p.name
)
def test_every_file_of_every_checkpoint_is_shown(path: Path) -> None:
    for file in sorted(path.iterdir()):
        if file.is_file():
            report = info(str(file), now_ns=LATER)
            assert in_text(report)
            assert in_json(report)["kind"] == "file"


def test_nothing_heavy_is_imported() -> None:
    before = set(sys.modules)
    shown(RUN)
    shown(RUN / "checkpoint-4", tensors=True)
    assert not (set(sys.modules) - before) & {"torch", "numpy", "transformers", "peft", "safetensors"}


# Runs -------------------------------------------------------------------------------------------------------


def test_a_run_has_a_row_for_each_checkpoint() -> None:
    found = decoded(RUN)
    assert found["kind"] == "run"
    assert [(each["path"], each["step"]) for each in found["checkpoints"]] == [
        ("checkpoint-2", 2),
        ("checkpoint-4", 4),
        ("checkpoint-6", 6),
        (".", 6),
    ]
    assert [each["resume"] for each in found["checkpoints"][:3]] == ["ready"] * 3
    assert found["metric"] == "eval_loss"
    states = [json.loads((RUN / f"checkpoint-{step}/trainer_state.json").read_text()) for step in (2, 4, 6)]
    losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry][-1] for state in states]
    evals = [[entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry][-1] for state in states]
    assert [each["loss"] for each in found["checkpoints"][:3]] == losses
    assert [each["metric"] for each in found["checkpoints"][:3]] == evals
    assert found["newest"]["path"] == "checkpoint-6"
    assert found["next"][0] == {"what": "resume", "command": f"--resume_from_checkpoint {RUN}/checkpoint-6"}


def test_the_time_of_a_checkpoint_is_local_iso(tmp_path: Path) -> None:
    run = copied(RUN, tmp_path / "run")
    for file in (run / "checkpoint-2").iterdir():
        os.utime(file, ns=(0, 1_700_000_000 * 10**9))
    saved = decoded(run)["checkpoints"][0]["saved"]
    from datetime import datetime

    assert datetime.fromisoformat(saved).timestamp() == 1_700_000_000
    assert saved[:16].replace("T", " ") in shown(run)


def test_the_resume_command_takes_the_newest_that_is_whole(tmp_path: Path) -> None:
    run = copied(RUN, tmp_path / "my run")
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    found = decoded(run)
    assert found["checkpoints"][2]["resume"] == "broken"
    assert found["next"][0]["command"] == f"--resume_from_checkpoint '{run}/checkpoint-4'"
    assert {"what": "see why not", "command": f"ckpt verify '{run}'"} in found["next"]


def test_paths_in_commands_are_quoted_for_their_reader(tmp_path: Path) -> None:
    checkpoint = copied(RUN / "checkpoint-4", tmp_path / "my run" / "checkpoint-4")
    commands = {each["what"]: each["command"] for each in decoded(checkpoint)["next"]}
    assert commands["resume"] == f"--resume_from_checkpoint '{checkpoint}'"
    assert commands["load"] == f"LlamaForCausalLM.from_pretrained('{checkpoint}')"
    refused = decoded(FIXTURES / "plain/refused/protocol4.pt")["next"]
    assert "protocol is 4" in refused[0]["command"]


def test_no_room_for_the_next_save_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info_module, "free_bytes", lambda path: 1000)
    text = shown(RUN)
    assert "1000 B are free" in text
    assert "no room for one more" in text
    assert decoded(RUN)["space"]["enough"] is False
    monkeypatch.setattr(info_module, "free_bytes", lambda path: 1 << 40)
    assert "no room" not in shown(RUN)
    monkeypatch.setattr(info_module, "free_bytes", lambda path: None)
    assert "next save" not in shown(RUN)


# Checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "schedule", "expected"),
    [
        ([{"lr": 0.05, "initial_lr": 0.004, "max_lr": 0.1}], {"total_steps": 6}, "0.05 now, 0.1 at the peak"),
        ([{"lr": 0.04, "initial_lr": 0.02, "swa_lr": 0.05}], {"anneal_epochs": 10}, "0.04 now"),
        ([{"lr": 0.01, "initial_lr": 0.02}], {"T_max": 4}, "0.01 now, 0.02 at the peak"),
    ],
    ids=["a cycle that begins low", "another goal", "from the base down"],
)
def test_the_highest_rate_is_the_schedules_own(
    groups: list[dict[str, Any]], schedule: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    base = [group["initial_lr"] for group in groups]
    optimizer = {"state": {}, "param_groups": [group | {"params": [0]} for group in groups]}
    held = {"optimizer": optimizer, "scheduler": schedule | {"base_lrs": base, "_last_lr": base}, "step": 2}
    torch.save({"model": {"w": torch.ones(2)}, **held}, tmp_path / "ckpt_2.pt")
    assert row(shown(tmp_path / "ckpt_2.pt"), "learning rate") == expected


@pytest.mark.parametrize(
    ("group", "moments", "expected"),
    [
        ({"ns_steps": 5, "momentum": 0.9, "nesterov": True}, ["momentum_buffer"], "Muon"),
        ({"use_muon": True, "momentum": 0.9}, ["momentum_buffer", "exp_avg"], "Muon with Adam"),
        ({"momentum": 0.9, "nesterov": True}, ["momentum_buffer"], "SGD with momentum"),
        ({"beta2_decay": -0.8}, ["row_var", "col_var"], "Adafactor"),
    ],
)
def test_optimizers_by_what_they_keep(group: dict[str, Any], moments: list[str], expected: str) -> None:
    ref = TensorRef("m", "float32", (2,), (), "0")
    state = {"state": {0: dict.fromkeys(moments, ref)}, "param_groups": [group | {"params": [0]}]}
    assert schedules.optimizer(state) == expected


def test_a_trainer_checkpoint_in_full() -> None:
    text = shown(RUN / "checkpoint-4")
    assert row(text, "step") == "4 of 6 (66.7 %)"
    assert row(text, "epoch") == "1 of 2"
    assert row(text, "learning rate") == "0.064 now, 0.16 at the peak"
    assert row(text, "schedule") == "linear (LambdaLR)"
    assert "other epochs or max_steps on resume reshape the curve" in text
    assert row(text, "parameters") == "1,704 in 21 tensors"
    assert row(text, "optimizer") == "AdamW (adamw_torch_fused), trains 21 tensors"
    assert row(text, "warm-up") == "1 step"
    assert f"--resume_from_checkpoint {RUN}/checkpoint-4" in text
    assert "LlamaForCausalLM.from_pretrained" in text
    assert "nothing left" not in text


def test_the_end_of_training_is_said_with_what_to_raise(tmp_path: Path) -> None:
    assert "nothing left to train: a resume ends at once; raise max_steps (now 6)" in shown(RUN / "checkpoint-6")
    checkpoint = copied(RUN / "checkpoint-6", tmp_path / "checkpoint-6")
    (checkpoint / "training_args.bin").unlink()
    assert "raise num_train_epochs or max_steps" in " ".join(shown(checkpoint).split())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("trainer5-2ranks/checkpoint-4", {"world_size": 2, "batch_per_device": 2}),
        ("trainer5-bf16/checkpoint-4", {"world_size": 1}),
        ("trainer5-adafactor-cosine/checkpoint-6", {"optimizer": "Adafactor"}),
        ("trainer5-sgd-constant/checkpoint-4", {"optimizer": "SGD without momentum"}),
        ("trainer5-full/checkpoint-4", {"optimizer": "AdamW", "optimizer_named": "adamw_torch_fused"}),
        ("accelerate/bin", {"world_size": 1}),
    ],
)
def test_training_facts(path: str, expected: dict[str, Any]) -> None:
    training = decoded(FIXTURES / path)["training"]
    assert {key: training[key] for key in expected} == expected


@pytest.mark.parametrize("path", sorted((FIXTURES / "plain/schedules").iterdir()), ids=lambda path: path.stem)
def test_every_scheduler_of_torch_is_told_by_its_keys(path: Path) -> None:
    kind = decoded(path)["schedule"]["kind"]
    ambiguous = {"LambdaLR", "MultiplicativeLR"}
    assert kind == ("LambdaLR or MultiplicativeLR" if path.stem in ambiguous else path.stem)


@pytest.mark.parametrize("path", sorted((FIXTURES / "plain/optimizers").iterdir()), ids=lambda path: path.stem)
def test_every_optimizer_of_torch_is_told_by_its_keys(path: Path) -> None:
    kind = decoded(path)["training"]["optimizer"]
    assert kind == {"SGD": "SGD with momentum"}.get(path.stem, path.stem)


@pytest.mark.parametrize(
    ("path", "named", "kind"),
    [
        ("trainer5-plateau/checkpoint-4", "reduce_lr_on_plateau", "ReduceLROnPlateau"),
        ("trainer5-greedy/checkpoint-4", "greedy", "GreedyLR"),
        ("trainer5-adafactor-cosine/checkpoint-6", "cosine", "LambdaLR"),
        ("trainer5-sgd-constant/checkpoint-4", "constant", "LambdaLR"),
    ],
)
def test_the_trainers_schedules(path: str, named: str, kind: str) -> None:
    schedule = decoded(FIXTURES / path)["schedule"]
    assert (schedule["named"], schedule["kind"]) == (named, kind)


def test_tied_weights_are_counted_once() -> None:
    bin_file, tied = decoded(FIXTURES / "trainer4-bin/checkpoint-4")["model"], 1
    assert bin_file["tied_names"] == tied
    assert bin_file["parameters"] == 1448
    text = shown(FIXTURES / "trainer4-bin/checkpoint-4", pattern="*embed_tokens*")
    assert "1 of 21 tensors" in text or "that fit '*embed_tokens*'" in text
    assert "(shares model.embed_tokens.weight)" in shown(FIXTURES / "trainer4-bin/checkpoint-4", pattern="lm_head*")


def test_adapters_are_named_with_their_base() -> None:
    found = decoded(FIXTURES / "trainer5-lora-two/checkpoint-2")
    assert [(each["name"], each["rank"], each["base"]) for each in found["model"]["adapters"]] == [
        ("", 2, "tiny-llama"),
        ("second", 4, "tiny-llama"),
    ]
    commands = {each["what"]: each["command"] for each in found["next"]}
    assert "AutoPeftModelForCausalLM" in commands["merge"]
    factory = {
        each["what"]: each["command"] for each in decoded(FIXTURES / "llama-factory/reward-lora/checkpoint-2")["next"]
    }
    assert factory["merge"].startswith("llamafactory-cli export --model_name_or_path ")


def test_what_stands_in_the_way_is_said(tmp_path: Path) -> None:
    checkpoint = copied(RUN / "checkpoint-4", tmp_path / "checkpoint-4")
    (checkpoint / "optimizer.pt").unlink()
    text = shown(checkpoint)
    assert "CK103" in text
    assert row(text, "inference") == "ready"


def test_a_cut_file_is_shown_as_far_as_it_is_whole(tmp_path: Path) -> None:
    checkpoint = copied(RUN / "checkpoint-4", tmp_path / "checkpoint-4")
    whole = (checkpoint / "optimizer.pt").read_bytes()
    (checkpoint / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    report = info(str(checkpoint), now_ns=LATER)
    assert report.exit_code == 1
    assert "CK203" in "\n".join(text_format.render(report))
    assert info(str(checkpoint / "optimizer.pt")).exit_code == 1
    assert info(str(checkpoint / "model.safetensors")).exit_code == 0
    assert info(f"{checkpoint}:optimizer.pt:param_groups").exit_code == 1
    (checkpoint / "optimizer.pt").write_bytes(b"\0" * 100)
    with pytest.raises(SourceError, match="cannot be decoded: the file is filled with zeros"):
        info(f"{checkpoint}:optimizer.pt:param_groups")


# Tensors ----------------------------------------------------------------------------------------------------


def test_tensors_are_listed_and_filtered() -> None:
    everything = decoded(RUN / "checkpoint-4", tensors=True)["tensors"]
    only = decoded(RUN / "checkpoint-4", pattern="*norm*")["tensors"]
    assert len(everything) > len(only) > 0
    assert all("norm" in each["name"] for each in only)
    embed = next(each for each in everything if each["name"] == "model.embed_tokens.weight")
    assert embed | {"storage": None} == {
        "name": "model.embed_tokens.weight",
        "file": "model.safetensors",
        "dtype": "float32",
        "shape": [32, 8],
        "bytes": 1024,
        "shared": None,
        "storage": None,
    }


def test_the_tensors_of_a_run_are_those_of_its_newest() -> None:
    assert decoded(RUN, tensors=True)["root"].endswith("checkpoint-6")


# Parts of files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("checkpoint-4:optimizer.pt:param_groups[0].lr", [("param_groups[0].lr", 0.064)]),
        ("checkpoint-4/optimizer.pt:param_groups[0].lr", [("param_groups[0].lr", 0.064)]),
        ("checkpoint-4:optimizer.pt:param_groups.0.lr", [("param_groups[0].lr", 0.064)]),
        (
            "checkpoint-4:optimizer.pt:param_groups[*].lr",
            [("param_groups[0].lr", 0.064), ("param_groups[1].lr", 0.064)],
        ),
        ("checkpoint-4:trainer_state.json:global_step", [("global_step", 4)]),
        ("checkpoint-4:trainer_state.json:log_history[-1].step", [("log_history[5].step", 4)]),
        ("checkpoint-4:training_args.bin:learning_rate", [("learning_rate", 0.16)]),
        ("checkpoint-4:scheduler.pt:base_lrs", [("base_lrs", [0.16, 0.16])]),
        ("checkpoint-4:config.json:architectures[0]", [("architectures[0]", "LlamaForCausalLM")]),
    ],
)
def test_a_part_of_a_file(target: str, expected: list[tuple[str, Any]]) -> None:
    found = decoded(f"{RUN}/{target}")
    assert [(each["key"], each["value"]) for each in found["values"]] == expected


def test_a_tensor_of_one_element_shows_its_value() -> None:
    assert "float32[] = 4.0" in shown(f"{RUN}/checkpoint-4:optimizer.pt:state.0.step")
    assert "= " not in shown(f"{RUN}/checkpoint-4:optimizer.pt:state.0.exp_avg")


def test_dotted_tensor_names_need_no_quotes() -> None:
    text = shown(f"{RUN}/checkpoint-4:model.safetensors:model.layers.0.self_attn.q_proj.weight")
    assert text.endswith("float32[8, 8]")
    below = shown(f"{RUN}/checkpoint-4:model.safetensors:model.layers.0.self_attn")
    assert "q_proj.weight: float32[8, 8]" in below
    assert "4 keys" in below


def test_the_log_is_folded_unless_asked_for() -> None:
    whole = shown(RUN / "checkpoint-4" / "trainer_state.json")
    assert "log_history: list of 6, steps 1 to 4" in whole
    assert "grad_norm" not in whole
    assert "grad_norm" in shown(f"{RUN}/checkpoint-4:trainer_state.json:log_history")
    assert len(decoded(RUN / "checkpoint-4" / "trainer_state.json")["value"]["log_history"]) == 6


def test_objects_of_a_pickle_are_described() -> None:
    text = shown(RUN / "checkpoint-4" / "training_args.bin")
    assert "lr_scheduler_type: <transformers.trainer_utils.SchedulerType 'linear'>" in text
    value = decoded(RUN / "checkpoint-4" / "training_args.bin")["value"]
    assert value["$object"] == "transformers.training_args.TrainingArguments"
    assert value["state"]["lr_scheduler_type"] == {
        "$object": "transformers.trainer_utils.SchedulerType",
        "args": ["linear"],
    }


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("checkpoint-4:optimizer.pt:param_groups[0].lrr", ["no 'lrr' in param_groups[0]", "lr, "]),
        ("checkpoint-4:optimizer.pt:param_group", ["no 'param_group'", "param_groups"]),
        ("checkpoint-4:optimizer.pt:param_groups[7]", ["no '[7]' in param_groups", "0, 1"]),
        ("checkpoint-4:optimizer.pt:param_groups[0].lr.x", ["no 'x'", "nothing inside"]),
        ("checkpoint-4:optimzer.pt:x", ["no file 'optimzer.pt'", "there are: optimizer.pt"]),
        ("checkpoint-5:optimizer.pt:x", ["no such file or directory"]),
    ],
)
def test_an_unknown_name_comes_with_those_there_are(target: str, words: list[str]) -> None:
    if target.startswith("checkpoint-5"):
        target = "../nowhere/" + target
    with pytest.raises(NothingFoundError) as caught:
        info(f"{RUN}/{target}")
    said = f"{caught.value} | {caught.value.hint}"
    assert [word for word in words if word not in said] == []
    assert caught.value.exit_code == 4


def test_paths_with_colons_work(tmp_path: Path) -> None:
    run = copied(RUN, tmp_path / "run:lr=1e-4:b")
    assert decoded(run)["kind"] == "run"
    assert decoded(f"{run}/checkpoint-4")["progress"]["step"] == 4
    assert decoded(f"{run}/checkpoint-4:trainer_state.json:global_step")["values"][0]["value"] == 4
    (run / "checkpoint-4" / "odd:name.json").write_text('{"a": {"b": 1}}', encoding="utf-8")
    assert decoded(f"{run}/checkpoint-4:odd:name.json:a.b")["values"][0]["value"] == 1
    place = split(f"{run}/checkpoint-4:odd:name.json")
    assert (place.path, place.key) == (f"{run}/checkpoint-4", "")


# Values that nobody expects ---------------------------------------------------------------------------------


def saved(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "state.pkl"
    path.write_bytes(pickle.dumps(value, 2))
    return path


def test_odd_values_are_shown_and_are_json(tmp_path: Path) -> None:
    value = {
        "nan": float("nan"),
        "inf": [float("inf"), -float("inf")],
        "bytes": bytes(range(256)),
        "big": 1 << 5000,
        "text": "a\x1b[2J\u202eb" + "x" * 1000,
        1: "one",
        (1, 2): "pair",
        "complex": 1 + 2j,
        "set": {1},
        "deep": [[[[[[[[[["bottom"]]]]]]]]]],
        "empty": [{}, [], ()],
    }
    path = saved(tmp_path, value)
    text = shown(path)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "256 bytes: 00 01 02" in text
    found = decoded(path)["value"]
    assert found["nan"] == "NaN"
    assert found["inf"] == ["Infinity", "-Infinity"]
    assert found["bytes"]["$bytes"] == 256
    assert found["big"]["$int"].startswith("0x1000")
    assert found["complex"] == {"$complex": [1.0, 2.0]}


def test_a_long_list_is_cut_for_people_and_whole_for_programs(tmp_path: Path) -> None:
    path = saved(tmp_path, {"numbers": list(range(5000)), "words": [f"word {number}" for number in range(5000)]})
    assert len(shown(path).splitlines()) < 60
    assert "and 4," in shown(path)
    assert decoded(path)["value"]["numbers"] == list(range(5000))
    assert "... and 4,000 more" in shown(f"{path}:words")


def test_credentials_in_pickled_arguments_are_never_shown() -> None:
    value = Opaque("transformers.TrainingArguments", state={"hub_token": "hf_secret", "seed": 1}, called=True)
    tree = Tree("training_args.bin", value)
    assert "hf_secret" not in "\n".join(tree.lines()) + json.dumps(tree.document())
    nested = Tree("x", {"a": {"hub_token": "hf_secret"}})
    assert "hf_secret" not in "\n".join(nested.lines()) + json.dumps(nested.document())
    assert "hub_token: None" in "\n".join(Tree("x", {"hub_token": None, "b": [1] * 40}).lines())


def test_depth_and_length_are_limited() -> None:
    deep: Any = ["bottom", {"x": "y" * 100}]
    for _ in range(150):
        deep = [deep, {"x": "y" * 100}]
    lines = Tree("deep", deep, limits=Limits(depth=5)).lines()
    assert len(lines) < 60
    assert json.dumps(document(deep))


def test_keys_that_would_fall_together_in_json_stay_apart() -> None:
    assert document({1: "a", "1": "b"}) == {"$pairs": [[1, "a"], ["1", "b"]]}
    assert document(Pairs([([1], "a")])) == {"<list>": "a"}
    ref = TensorRef("a", "float32", (2, 3), (Chunk((0, 0), (2, 3), Extent("f", 0, 24)),), "s", "torch.nn.Parameter")
    assert document(ref) == {
        "$tensor": {"dtype": "float32", "shape": [2, 3], "bytes": 24, "kind": "torch.nn.Parameter", "storage": "s"}
    }


def test_key_paths() -> None:
    value = {"a.b": {"c": [1, {"d e": 2}]}, "a": {"b": 3}, "x": Opaque("m.C", state={"y": 4}), 7: "seven"}
    for key, expected in {
        "a.b.c[0]": 1,
        'a.b.c[1]["d e"]': 2,
        "a.b.c[-1].d e": 2,
        "x.y": 4,
        "7": "seven",
        "[7]": "seven",
        '["a"].b': 3,
    }.items():
        assert [found for _, found in resolve(value, key, "f")] == [expected], key
    assert sorted(found for _, found in resolve([{"a": 1}, {"a": 2}], "[*].a", "f")) == [1, 2]


# Versions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("2.5.1", "2.6", True),
        ("2.13.0+cpu", "2.6", False),
        ("2.6", "2.6.0", False),
        ("4.9", "4.50", True),
        ("5.0.0.dev0", "4.50", False),
        ("unknown", "1.0", False),
    ],
)
def test_versions_are_compared_by_number(left: str, right: str, expected: bool) -> None:
    assert versions.older(left, right) is expected


def test_what_a_checkpoint_needs_is_held_against_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"torch": "2.5.1", "numpy": "1.24.0", "transformers": "4.40.0"}
    monkeypatch.setattr(versions, "installed", here.get)
    found = {each["package"]: each for each in decoded(RUN / "checkpoint-4")["versions"]}
    assert {name: (each["needs"], each["fits"]) for name, each in found.items()} == {
        "torch": ("2.6", False),
        "transformers": ("4.50", False),
        "numpy": ("1.26.1", False),
    }
    assert found["transformers"]["written"] == "5.23.0"
    assert shown(RUN / "checkpoint-4").count("too old here") == 3


def test_a_package_that_is_not_installed_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda package: None)
    text = shown(RUN / "checkpoint-4")
    assert "not installed" in text
    assert "too old" not in text


@pytest.mark.parametrize(
    ("path", "package", "written"),
    [
        ("trainer4-safetensors/checkpoint-4", "transformers", "4.57.6"),
        ("trainer431-bin/checkpoint-4", "transformers", "4.31.0"),
        ("trainer431-lora-bin/checkpoint-4", "transformers", "4.31 or older"),
        ("trainer431-lora-bin/checkpoint-4", "peft", "0.4.0"),
        ("trainer431-bin/checkpoint-4", "numpy", "1.x"),
        ("trainer5-lora/checkpoint-4", "transformers", "4.50 or newer"),
        ("trainer5-lora/checkpoint-4", "peft", "0.21.2"),
        ("trainer5-full/checkpoint-4", "torch", "2.7 or newer"),
    ],
)
def test_the_writers_version(path: str, package: str, written: str) -> None:
    found = {each["package"]: each["written"] for each in decoded(FIXTURES / path)["versions"]}
    assert found[package] == written


def test_a_trap_between_old_transformers_and_new_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", {"torch": "2.6.0", "transformers": "4.46.3"}.get)
    assert "refuses the rng file" in shown(RUN / "checkpoint-4")
    monkeypatch.setattr(versions, "installed", {"torch": "2.5.0", "transformers": "4.46.3"}.get)
    assert "refuses the rng file" not in shown(RUN / "checkpoint-4")


def test_fingerprints_have_no_row_that_another_hides() -> None:
    for number, fingerprint in enumerate(schedules.SCHEDULERS):
        hidden = [earlier.kind for earlier in schedules.SCHEDULERS[:number] if earlier.keys <= fingerprint.keys]
        assert hidden == []
