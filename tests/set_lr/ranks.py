"""Processes that load a distributed checkpoint as training scripts do, go on, and note the rates that they use.

Run by ``torchrun`` with the directory of the fixtures' scripts on the path; see ``resumed``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
SAVED, TOTAL = 4, 12


def launched(directory: Path, ranks: int, *words: str) -> dict[str, Any]:
    """Run this file once per rank, and return what rank 0 noted."""
    noted = directory / "noted.json"
    noted.unlink(missing_ok=True)
    path = os.pathsep.join((str(ROOT / "fixtures" / "scripts"), str(ROOT)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launch, __file__, str(noted), *words],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(noted.read_text(encoding="utf-8"))
    return found


def followed(optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """Take steps with gradients of zeros, and return what they used."""
    import torch

    counts = sorted({float(entry["step"]) for entry in optimizer.state.values() if "step" in entry})
    used = []
    for _ in range(STEPS):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        used.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return {"used": used, "counts": counts, "epoch": scheduler.last_epoch - STEPS}


def dcp(path: str, schedule: str, form: str) -> dict[str, Any]:
    """Load it with ``dcp.load`` into a fresh model, optimizer and scheduler of this many ranks."""
    import torch.distributed.checkpoint as checkpoint
    from dcp import Run  # type: ignore[import-not-found]
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    run = Run(schedule)
    state = run.state(flat=form == "flat")
    checkpoint.load(state, checkpoint_id=path)
    options = StateDictOptions(flatten_optimizer_state_dict=form == "flat")
    set_state_dict(
        run.model,
        run.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=options,
    )
    run.scheduler.load_state_dict(state["lr_scheduler"])
    return followed(run.optimizer, run.scheduler) | {"step": state["train_state"]["step"]}


def accelerate(path: str, version: str, kind: str, bins: str = "") -> dict[str, Any]:
    """Load it with ``Accelerator.load_state``."""
    import functools

    import accelerate.accelerator as module
    import fsdp  # type: ignore[import-not-found]
    import torch
    from accelerate import Accelerator

    if bins:
        module.load_fsdp_model = functools.partial(module.load_fsdp_model, use_dcp=False)
        module.load_fsdp_optimizer = functools.partial(module.load_fsdp_optimizer, use_dcp=False)
    accelerator = Accelerator(cpu=True)
    model = fsdp.shard(fsdp.Net(), int(version))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    accelerator._models, accelerator._optimizers, accelerator._schedulers = [model], [optimizer], [scheduler]
    with fsdp.as_fsdp(accelerator, fsdp.plugin(int(version), kind)):
        accelerator.load_state(path)
    return followed(optimizer, scheduler)


def trainer(directory: str, checkpoint: str = "") -> dict[str, Any]:
    """Train the first steps of a run of the real Trainer, or resume from its checkpoint."""
    import fsdp
    import tiny  # type: ignore[import-not-found]
    from trainer5 import arguments  # type: ignore[import-not-found]
    from transformers import TrainerCallback, default_data_collator

    used: dict[int, list[float]] = {}
    counts: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            used[state.global_step + 1] = [float(group["lr"]) for group in rest["optimizer"].param_groups]
            if len(used) == 1:
                counts.extend(
                    sorted({float(entry["step"]) for entry in rest["optimizer"].state.values() if "step" in entry})
                )

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            control.should_training_stop = not checkpoint and state.global_step >= SAVED

    class Resumed(fsdp.ShardedTrainer):  # type: ignore[misc]
        """Loads as under FSDP, too."""

        def _load_optimizer_and_scheduler(self, *args: Any) -> None:
            with fsdp.as_fsdp(self.accelerator, fsdp.plugin(2, self.kind)):
                self.is_fsdp_enabled = True
                super()._load_optimizer_and_scheduler(*args)
            self.is_fsdp_enabled = False

        def _load_from_checkpoint(self, *args: Any, **named: Any) -> None:
            with fsdp.as_fsdp(self.accelerator, fsdp.plugin(2, self.kind)):
                self.is_fsdp_enabled = True
                super()._load_from_checkpoint(*args, **named)
            self.is_fsdp_enabled = False

    tiny.seed_everything()
    given = arguments(
        directory, max_steps=TOTAL, save_steps=SAVED, warmup_steps=2, ddp_backend="gloo", max_grad_norm=0.0
    )
    model = tiny.llama(layers=1)
    fsdp.shard(model, 2)
    run = Resumed(
        model=model, args=given, train_dataset=tiny.rows(), data_collator=default_data_collator, callbacks=[Watch()]
    )
    run.accelerator.prepare_model = lambda model, **_: model
    run.train(resume_from_checkpoint=checkpoint or None)
    return {"used": used, "counts": counts}


def lightning(path: str) -> dict[str, Any]:
    """Load it with ModelParallelStrategy's own method, whose constructor would ask for a GPU, and with the loops'."""
    from types import SimpleNamespace

    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy
    from lightning_files import Module  # type: ignore[import-not-found]
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = Module()
    fully_shard(module.net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    stand_in: Any = SimpleNamespace(
        broadcast=lambda path: path, model=module, optimizers=[optimizer],
        lightning_module=SimpleNamespace(strict_loading=True),
    )  # fmt: skip
    rest = ModelParallelStrategy.load_checkpoint(stand_in, path, weights_only=False)
    scheduler.load_state_dict(rest["lr_schedulers"][0])
    run = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    run.fit_loop.load_state_dict(rest["loops"]["fit_loop"])
    return followed(optimizer, scheduler) | {"step": rest["global_step"], "loops": run.global_step}


def main(noted: str, what: str, *words: str) -> None:
    import torch.distributed as dist

    if what in ("dcp", "lightning"):
        dist.init_process_group("gloo")
    found = {"dcp": dcp, "accelerate": accelerate, "trainer": trainer, "lightning": lightning}[what](*words)
    if dist.get_rank() == 0:
        Path(noted).write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
