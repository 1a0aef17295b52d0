"""Resumes DeepSpeed from directories, each with ranks of its own: ``loader.py CASES.json OUT.json``.

A case is ``{"place": ..., "ranks": 2, "kind": "network", "settings": [stage, bf16, scheduler, tied]}``; the answer is
empty where all ranks loaded the tag and made a step, else what the first of them said.  DeepSpeed is imported once and
then forked.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_S = 300


def resume(case: dict[str, Any], rank: int, port: int) -> str:
    """Load the tag and make one step, as rank ``rank``; return what went wrong."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(case["ranks"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    engine, step = ENGINES[case["kind"]](*case["settings"])
    place = Path(case["place"])
    loaded, _ = engine.load_checkpoint(str(place.parent), tag=place.name)
    if loaded is None:
        return "nothing was loaded"
    step()
    return ""


def network(stage: int, bf16: bool, scheduler: str, tied: bool) -> Engine:
    import deepspeed
    import deepspeed_zero as made

    module = made.Net(tied)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=made.groups(module),
        config=made.config(stage, bf16, scheduler == "warmup"),
        lr_scheduler=made.schedule if scheduler == "lambda" else None,
    )
    return engine, stepping(engine, bf16)


def experts(stage: int, bf16: bool) -> Engine:
    import deepspeed
    import deepspeed_zero as made
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

    module = made.Experts()
    parameters = split_params_into_different_moe_groups_for_optimizer(
        {"params": list(module.parameters()), "name": "parameters"}
    )
    engine, *_ = deepspeed.initialize(model=module, model_parameters=parameters, config=made.config(stage, bf16))
    return engine, stepping(engine, bf16)


def pipeline(stage: int, bf16: bool) -> Engine:
    import deepspeed
    import deepspeed_zero as made
    import torch
    from deepspeed.pipe import PipelineModule
    from torch import nn

    layers = [nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7), nn.Linear(7, 3)]
    module = PipelineModule(layers=layers, num_stages=2, loss_fn=nn.functional.mse_loss, partition_method="uniform")
    settings = made.config(stage, bf16, warmup=True)
    engine, *_ = deepspeed.initialize(model=module, model_parameters=list(module.parameters()), config=settings)
    target = torch.zeros(4, 3, dtype=torch.bfloat16 if bf16 else torch.float32)
    return engine, lambda: engine.train_batch(iter([(made.rows(7, bf16), target)]))


def stepping(engine: Any, bf16: bool) -> Callable[[], object]:
    import deepspeed_zero as made

    def step() -> None:
        engine.backward(engine(made.rows(7, bf16)).float().pow(2).mean())
        engine.step()

    return step


Engine = tuple[Any, Callable[[], object]]
ENGINES: dict[str, Callable[..., Engine]] = {"network": network, "experts": experts, "pipeline": pipeline}


def answer(case: dict[str, Any], out: Path) -> str:
    """Run a case in forked ranks; the first that fails ends all of them, for the others would wait for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks: dict[int, Path] = {}
    for rank in range(case["ranks"]):
        note = out.with_suffix(f".{rank}")
        note.unlink(missing_ok=True)
        process = os.fork()
        if process == 0:
            code = 1
            try:
                said = resume(case, rank, port)
                code = 1 if said else 0
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
                said = f"{type(error).__name__}: {error}"
            note.write_text(said, encoding="utf-8")
            os._exit(code)
        ranks[process] = note
    ends, said, limit = dict(ranks), "", time.monotonic() + LIMIT_S
    while ends and not said:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done == 0:
            time.sleep(0.02)
            said = "the ranks hang" if time.monotonic() > limit else ""
            continue
        note = ends.pop(done)
        if status:
            said = note.read_text(encoding="utf-8") if note.exists() else f"killed ({status})"
            said = said or "an error without text"
    for process in ends:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return said


def main(cases: Path, out: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures/scripts"))
    os.environ |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "OMP_NUM_THREADS": "1"}
    import deepspeed_zero

    deepspeed_zero.without_compiler()  # and DeepSpeed is imported, for the forked ranks to have it
    answers = [answer(case, out) for case in json.loads(cases.read_text(encoding="utf-8"))]
    out.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
