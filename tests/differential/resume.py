"""A real resume, watched: what the Trainer makes of a damaged checkpoint, compared with the undamaged one.

The models, the data and the arguments are those that made the fixtures (``fixtures/scripts``).  What counts as the same
is decided at the beginning of the first step after the resume, and by the rates of the steps that follow.

``python -m tests.differential.resume DIRECTORY FIXTURE`` does one resume and prints its outcome as JSON; the test uses
it for damage that can kill a process.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "fixtures" / "scripts"


@dataclass(frozen=True, slots=True)
class Setting:
    """How a fixture is resumed: from which of its checkpoints, with which changes of the script's arguments."""

    checkpoint: str
    changes: dict[str, Any]


SETTINGS = {
    "trainer5-full": Setting(
        "checkpoint-4",
        {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.16},
    ),
    "trainer5-sharded": Setting("checkpoint-2", {"max_steps": 4}),
    "trainer5-lora": Setting("checkpoint-2", {"max_steps": 4}),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """``error`` is what the Trainer raised; ``differs`` what was not as in the resume of the undamaged checkpoint.

    ``differs`` holds ``weights``, ``optimizer``, ``schedule``, ``step``, ``rng`` and ``log``.
    """

    error: str | None = None
    differs: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return ``raises``, ``loses`` or ``resumes``; another random state or log is no loss of training."""
        if self.error is not None:
            return "raises"
        return "loses" if self.differs.keys() & {"weights", "optimizer", "schedule", "step"} else "resumes"


@dataclass
class _Seen:
    """What a resume looked like from inside."""

    weights: dict[str, Any] = field(default_factory=dict)
    moments: dict[str, Any] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    step: int | None = None
    last: int | None = None
    rng: tuple[Any, ...] = ()
    log: list[Any] = field(default_factory=list)


@contextlib.contextmanager
def scripts() -> Iterator[None]:
    """Make the modules of ``fixtures/scripts`` importable by their own names."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield
    finally:
        sys.path.remove(str(SCRIPTS))


@cache
def _module(name: str) -> ModuleType:
    with scripts():
        return importlib.import_module(name)


def _model(fixture: str) -> Any:
    """Build the model that the fixture's script builds, so that anything not loaded has its first values."""
    if fixture == "trainer5-lora":
        return _module("lora").adapted()
    model = _module("tiny").llama()
    if fixture == "trainer5-sharded":
        import functools

        model.save_pretrained = functools.partial(model.save_pretrained, max_shard_size="2KB")
    return model


def _watched(fixture: str, run: Path, checkpoint: str | None = None) -> tuple[_Seen, str | None]:
    """Resume in ``run`` (a copy of the fixture with the fixture's name) and look on."""
    from transformers import TrainerCallback

    seen = _Seen()

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            import numpy
            import torch

            optimizer = more["optimizer"]
            seen.rates.append(optimizer.param_groups[0]["lr"])
            if seen.step is not None:
                return
            seen.step = state.global_step
            seen.log = copy.deepcopy(state.log_history)
            seen.weights = {name: value.detach().clone() for name, value in more["model"].state_dict().items()}
            held = copy.deepcopy(optimizer.state_dict())
            seen.moments = {
                f"{key!r}.{name}": item for key, entry in held["state"].items() for name, item in entry.items()
            }
            seen.groups = held["param_groups"]
            seen.rng = (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            seen.last = state.global_step

    setting = SETTINGS[fixture]
    home = Path.cwd()
    silence = io.StringIO()
    os.chdir(run.parent)
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            trainer = _module("trainer5").trainer(run.name, _model(fixture), dict(setting.changes), callbacks=[Watch()])
            trainer.train(resume_from_checkpoint=f"{run.name}/{checkpoint or setting.checkpoint}")
    except Exception as error:  # noqa: BLE001 - what the trainer raises is the answer
        return seen, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        os.chdir(home)
    return seen, None


def _lost(good: dict[str, Any], seen: dict[str, Any], tolerance: float = 0.0) -> list[str]:
    """Return the names whose values are not those of the undamaged resume; what came on top is no loss."""
    import torch

    lost = []
    for name, left in good.items():
        right = seen.get(name)
        if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
            same = left.shape == right.shape and torch.allclose(left, right, rtol=tolerance, atol=tolerance / 10)
        else:
            same = right is not None and bool(left == right)
        if not same:
            lost.append(name)
    return lost


_REFERENCE: dict[str, _Seen] = {}


def resume(fixture: str, run: Path, fresh: Callable[[], Path], checkpoint: str | None = None) -> Outcome:
    """Resume in ``run`` and say what differs from a resume in ``fresh()``, an undamaged copy made once per process.

    ``checkpoint`` is the directory's name where it is not the fixture's own.
    """
    if fixture not in _REFERENCE:
        reference, error = _watched(fixture, fresh())
        assert error is None, f"the undamaged {fixture} does not resume: {error}"
        _REFERENCE[fixture] = reference
    seen, error = _watched(fixture, run, checkpoint)
    if error is not None:
        return Outcome(error)
    return Outcome(None, _differences(_REFERENCE[fixture], seen))


def _differences(good: _Seen, seen: _Seen) -> dict[str, str]:
    differs: dict[str, str] = {}
    if seen.step is None:
        return {"step": "no step was run"}
    if (good.step, good.last) != (seen.step, seen.last):
        differs["step"] = f"goes from {seen.step} to {seen.last}, not from {good.step} to {good.last}"
    weights = _lost(good.weights, seen.weights, 0.004)  # bfloat16, where that was saved
    if weights:
        differs["weights"] = f"{len(weights)} of {len(good.weights)} tensors, first {weights[0]}"
    moments = _lost(good.moments, seen.moments)
    if moments:
        differs["optimizer"] = f"{len(moments)} of {len(good.moments)} entries of its state, first {moments[0]}"
    if good.rates != seen.rates:
        differs["schedule"] = f"rates {seen.rates} instead of {good.rates}"
    if good.groups != seen.groups and "schedule" not in differs:
        differs["groups"] = f"{seen.groups} instead of {good.groups}"
    if good.rng != seen.rng:
        differs["rng"] = "another random state"
    if good.log != seen.log:
        differs["log"] = f"{len(seen.log)} entries instead of {len(good.log)}"
    return differs


def resume_in_child(fixture: str, run: Path) -> Outcome:
    """Resume in a process of its own; one that dies of a signal counts as raising."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.differential.resume", str(run), fixture],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode < 0:
        return Outcome(f"the process died of signal {-done.returncode}")
    if done.returncode:
        return Outcome(f"the process ended with {done.returncode}: {done.stderr[-300:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Outcome(told["error"], told["differs"])


def main() -> None:
    import shutil
    import tempfile

    run, fixture = Path(sys.argv[1]), sys.argv[2]

    def fresh() -> Path:
        place = Path(tempfile.mkdtemp()) / fixture
        shutil.copytree(REPOSITORY / "fixtures" / fixture, place)
        return place

    print(json.dumps(asdict(resume(fixture, run, fresh))))  # noqa: T201


if __name__ == "__main__":
    main()
