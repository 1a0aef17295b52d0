"""Trains with DeepSpeed, edits what was saved, and resumes: ``torchrun ... zero_runs.py PLACE engine``.

Everything happens in one process group.  Rank 0 edits between a save and the resumes, and writes what was seen to
``PLACE/answers.json``.  ``trainer 3 5`` is the Trainer with ZeRO 3 and a warm-up of five steps.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_BUILD_OPS", "0")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures" / "scripts")]

SAVED, LAUNCHED = 2, 0.3
"""Steps before the save, and another rate, with which resumes are launched."""

Answers = dict[str, Any]


def engine_of(stage: int, scheduler: str, rate: float, *, universal: bool = False) -> tuple[Any, Any]:
    import deepspeed
    import deepspeed_zero as made
    import tiny

    tiny.seed_everything()
    model = made.Net()
    settings = made.config(stage, warmup=scheduler == "warmup")
    settings["optimizer"]["params"]["lr"] = rate
    settings |= {"checkpoint": {"load_universal": True}} if universal else {}
    given = made.schedule if scheduler == "lambda" else None
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=made.groups(model), config=settings, lr_scheduler=given
    )
    return engine, model


def step(engine: Any, number: int) -> None:
    import deepspeed_zero as made

    engine.backward(engine(made.rows(number, False)).float().pow(2).mean())
    engine.step()


def rates(engine: Any) -> list[float]:
    return [float(group["lr"]) for group in engine.optimizer.param_groups]


def weights(model: Any) -> Any:
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    free = [each for each in model.parameters() if each.requires_grad]
    own = [
        safe_get_full_fp32_param(each) if hasattr(each, "_hp_mapping") or hasattr(each, "ds_id") else each
        for each in free
    ]
    return torch.cat([each.detach().flatten().double() for each in own])


def resumed(place: Path, tag: str | None, stage: int, scheduler: str, *, universal: bool = False) -> Answers:
    """Load a tag and make three steps; ``way`` is how far the weights went in the first of them."""
    engine, model = engine_of(stage, scheduler, LAUNCHED, universal=universal)
    loaded, _ = engine.load_checkpoint(str(place), tag=tag)
    counts = sorted({float(state["step"]) for state in engine.optimizer.state.values() if "step" in state})
    scheduled = engine.lr_scheduler.state_dict() if engine.lr_scheduler is not None else {}
    found: Answers = {"loaded": loaded and Path(loaded).parent.name, "counts": counts, "steps": engine.global_steps}
    found |= {key: scheduled[key] for key in ("last_epoch", "last_batch_iteration") if key in scheduled}
    found |= {"samples": engine.global_samples, "rates": []}
    before = weights(model)
    for number in range(3):
        found["rates"].append(rates(engine))
        step(engine, 10 + number)
        if number == 0:
            found["way"] = (weights(model) - before).tolist()
    engine.destroy()
    return found


def alone(work: Callable[[], Answers]) -> Answers:
    """Do something on rank 0 while the others wait."""
    from torch import distributed

    found = work() if distributed.get_rank() == 0 else {}
    distributed.barrier()
    return found


def edited(source: Path, target: Path, edit: Callable[[str], Any]) -> Answers:
    shutil.copytree(source, target)
    report = edit(str(target))
    return {"before": [list(row.before) for row in report.rates], "after": [list(row.after) for row in report.rates]}


def of_engine(place: Path) -> Answers:
    """Return what was seen by stage and scheduler."""
    from ckpt_tools.ops.set_lr import set_lr
    from ckpt_tools.ops.set_step import set_step

    found: Answers = {}
    for stage in (0, 1, 3):
        for scheduler in ("none", "lambda", "warmup") if stage else ("lambda",):
            home = place / f"{stage}-{scheduler}"
            engine, _ = engine_of(stage, scheduler, 0.02)
            for number in range(SAVED):
                step(engine, number)
            engine.save_checkpoint(str(home))
            engine.destroy()
            tag = f"global_step{SAVED}"

            def rated(home: Path = home, tag: str = tag, scheduler: str = scheduler) -> Answers:
                if scheduler == "warmup":  # refused; by hand, to see what would become of it
                    return by_hand(home / tag, home / "rated")
                return edited(home / tag, home / "rated", lambda path: set_lr(path, 0.005, settle=0))

            def moved(home: Path = home, tag: str = tag) -> Answers:
                run = home.with_name(f"{home.name}-moved")
                shutil.copytree(home, run)
                set_step(str(run / tag), 7, rename=True, settle=0)
                return {}

            own: Answers = {"told": alone(rated), **alone(moved)}
            own["plain"] = resumed(home, tag, stage, scheduler)
            own["rated"] = resumed(home, "rated", stage, scheduler)
            own["moved"] = resumed(home.with_name(f"{home.name}-moved"), None, stage, scheduler)
            found[home.name] = own
    return found


def of_universal(place: Path) -> Answers:
    """Return what was seen of the fixtures, by stage."""
    from ckpt_tools.ops.set_lr import set_lr
    from ckpt_tools.ops.set_step import set_step

    found: Answers = {}
    for stage in (1, 3):
        source = ROOT / "fixtures" / "deepspeed" / f"universal-stage{stage}" / "global_step4_universal"

        def rated(stage: int = stage, source: Path = source) -> Answers:
            return edited(source, place / f"{stage}" / "rated", lambda path: set_lr(path, 0.005))

        def moved(stage: int = stage, source: Path = source) -> Answers:
            return edited(source, place / f"{stage}" / "moved", lambda path: set_step(path, 7))

        own: Answers = {"told": alone(rated), **alone(lambda: {"shifted": moved()})}
        for tag in ("rated", "moved"):
            own[tag] = resumed(place / f"{stage}", tag, stage, "lambda", universal=True)
        found[f"{stage}-universal"] = own
    return found


def by_hand(source: Path, target: Path) -> Answers:
    """Set all rates to 0.005 in every file, as a person would."""
    import torch

    shutil.copytree(source, target)
    for path in target.glob("*optim_states.pt"):
        state = torch.load(path, weights_only=False)
        inner = state["optimizer_state_dict"]
        for key in ("base_optimizer_state", "optimizer_state_dict"):
            for group in inner.get(key, {}).get("param_groups", ()):
                group["lr"] = 0.005
        torch.save(state, path)
    return {}


def of_trainer(place: Path, stage: str, warmup: str) -> Answers:
    """Train with the Trainer, and resume what was saved as it is, at another rate, and from another step."""
    from ckpt_tools.ops.set_lr import set_lr
    from ckpt_tools.ops.set_step import set_step

    kind = (int(stage), int(warmup))
    trained(place / "run", None, *kind)
    source = place / "run" / f"checkpoint-{SAVED}"
    told = alone(lambda: edited(source, place / "rated", lambda path: set_lr(path, 0.005, settle=0)))

    def moved() -> Answers:
        shutil.copytree(source, place / "moved" / source.name)
        report = set_step(str(place / "moved" / source.name), 4, rename=True, settle=0)
        return {"after": [list(row.after) for row in report.rates]}

    shifted = alone(moved)
    return {
        "told": told,
        "shifted": shifted,
        "plain": trained(place / "plain", source, *kind),
        "rated": trained(place / "again", place / "rated", *kind),
        "moved": trained(place / "further", place / "moved" / "checkpoint-4", *kind),
    }


def trained(out: Path, resume: Path | None, stage: int, warmup: int) -> Answers:
    """Run the Trainer to its first save, or from a checkpoint on, with another rate on its command line."""
    import tiny
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    used: dict[int, list[float]] = {}

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            used[state.global_step + 1] = [float(group["lr"]) for group in rest["optimizer"].param_groups]

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            control.should_training_stop = resume is None and state.global_step >= SAVED

    tiny.seed_everything()
    settings = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=8, save_steps=SAVED, logging_steps=1, warmup_steps=warmup,
        learning_rate=0.02 if resume is None else LAUNCHED, per_device_train_batch_size=2, seed=tiny.SEED,
        save_strategy="steps" if resume is None else "no", deepspeed=settings, optim="adamw_torch", report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False, ddp_backend="gloo",
    )  # fmt: skip
    trainer = Trainer(
        model=tiny.llama(layers=1), args=arguments, train_dataset=tiny.rows(), data_collator=default_data_collator,
        callbacks=[Watch()],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(resume) if resume is not None else None)
    engine = trainer.model_wrapped
    log = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}
    return {"used": used, "log": log, "steps": engine.global_steps, "end": trainer.state.global_step}


if __name__ == "__main__":
    import deepspeed
    import deepspeed_zero
    from torch import distributed

    deepspeed_zero.without_compiler()
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    work: dict[str, Callable[..., Answers]] = {"engine": of_engine, "universal": of_universal, "trainer": of_trainer}
    answers = work[sys.argv[2]](Path(sys.argv[1]), *sys.argv[3:])
    if distributed.get_rank() == 0:
        (Path(sys.argv[1]) / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()
