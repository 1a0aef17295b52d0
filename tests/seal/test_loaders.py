"""The real loaders work with the tool's own directory in a checkpoint, and rotation still deletes it whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.ops.seal import seal
from tests.architecture.package import REPOSITORY
from tests.seal.support import MANIFEST, sealed

Copy = Callable[..., Path]

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fixture", ["trainer5-full", "trainer5-sharded", "trainer5-lora"])
def test_the_trainer_resumes_as_if_nothing_was_there(fixture: str, copy_of: Copy) -> None:
    from tests.differential import resume

    run = copy_of(fixture)
    report = seal(str(run), settle=0, env=True)
    assert report.exit_code == 0
    outcome = resume.resume(fixture, run, lambda: copy_of(fixture, f"fresh/{fixture}"))
    assert (outcome.kind, outcome.differs) == ("resumes", {}), outcome


@pytest.mark.parametrize("fixture", ["hf-model/tiny-llama", "hf-model/sharded", "trainer5-full/checkpoint-4"])
def test_from_pretrained(fixture: str, copy_of: Copy) -> None:
    from transformers import AutoModelForCausalLM

    place = copy_of(fixture)
    before = AutoModelForCausalLM.from_pretrained(place).state_dict()
    sealed(place)
    after = AutoModelForCausalLM.from_pretrained(place).state_dict()
    assert all(after[name].equal(value) for name, value in before.items())


def test_accelerate_loads_its_state() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", ACCELERATE], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"before": True, "after": True}


ACCELERATE = """
import json, shutil, sys, tempfile, torch
from pathlib import Path
from accelerate import Accelerator
from ckpt_tools.ops.seal import seal

def made():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return model, optimizer, schedule

accelerator = Accelerator(cpu=True)
model, optimizer, schedule = accelerator.prepare(*made())
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
schedule.step()
place = Path(tempfile.mkdtemp()) / "state"
accelerator.save_state(str(place))
want = {name: value.clone() for name, value in model.state_dict().items()}
said = {}
for turn in ("before", "after"):
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    accelerator.load_state(str(place))
    said[turn] = all(model.state_dict()[name].equal(value) for name, value in want.items())
    if turn == "before":
        assert seal(str(place), settle=0).exit_code == 0
        assert (place / ".ckpt-tools" / "manifest.json").is_file()
shutil.rmtree(place.parent)
print(json.dumps(said))
"""


def test_peft_loads_an_adapter(copy_of: Copy) -> None:
    from peft import PeftModel

    from tests.differential.resume import _module

    place = copy_of("trainer5-lora/checkpoint-2")
    sealed(place)
    model = PeftModel.from_pretrained(_module("tiny").llama(), str(place))
    assert any("lora_" in name for name in model.state_dict())


def test_rotation_deletes_a_sealed_checkpoint_whole(copy_of: Copy) -> None:
    from transformers.trainer_utils import rotate_checkpoints

    run = copy_of("trainer5-full")
    times = {name: (run / name).stat().st_mtime_ns for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6")}
    seal(str(run), settle=0)
    assert times == {name: (run / name).stat().st_mtime_ns for name in times}
    rotate_checkpoints(str(run), save_total_limit=1, use_mtime=False)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-6"]
    assert (run / "checkpoint-6" / MANIFEST).is_file()


def trained(run: Path, **options: Any) -> Any:
    """Train the fixtures' tiny model for 6 steps in ``run`` and return the Trainer."""
    from tests.differential.resume import _module

    callbacks = options.pop("callbacks")
    trainer = _module("trainer5").trainer(str(run), _module("tiny").llama(), options, callbacks=callbacks)
    trainer.train()
    return trainer


def test_the_callback_seals_every_checkpoint_and_rotation_goes_on(tmp_path: Path) -> None:
    from ckpt_tools.integrations.transformers import SealCallback
    from tests.seal.support import found, looked

    callback = SealCallback()
    run = tmp_path / "out"
    trained(run, callbacks=[callback], save_total_limit=2)
    assert callback.trouble == []
    left = sorted(path.name for path in run.glob("checkpoint-*"))
    assert left == ["checkpoint-4", "checkpoint-6"]
    for name in left:
        value = json.loads((run / name / MANIFEST).read_text())
        assert {path.name for path in (run / name).iterdir() if path.is_file()} == set(value["files"])
        assert "torch" in value["environment"]
    assert found(looked(run, deep=True)) == []


class Damaging:
    """Make a callback that cuts the optimizer of every checkpoint, before the other callbacks see it."""

    def __new__(cls) -> Any:
        from transformers import TrainerCallback

        class Cut(TrainerCallback):  # type: ignore[misc]
            def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "optimizer.pt"
                with file.open("r+b") as opened:
                    opened.truncate(file.stat().st_size // 2)

        return Cut()


def test_trouble_is_a_warning_and_the_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from ckpt_tools.integrations.transformers import SealCallback

    callback = SealCallback()
    trainer = trained(tmp_path / "out", callbacks=[Damaging(), callback])
    assert trainer.state.global_step == 6
    assert len(callback.trouble) == 3
    assert "CK203" in callback.trouble[0]
    said = [record.getMessage() for record in caplog.records if record.name == "ckpt_tools.integrations.transformers"]
    assert said == callback.trouble
    assert not list((tmp_path / "out").glob("checkpoint-*/.ckpt-tools"))


def test_strict_stops_the_training(tmp_path: Path) -> None:
    from ckpt_tools.integrations.transformers import SealCallback, UnsoundCheckpointError

    with pytest.raises(UnsoundCheckpointError):
        trained(tmp_path / "out", callbacks=[Damaging(), SealCallback(strict=True)])
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_fault_of_ours_never_breaks_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_tools.integrations import transformers as hooks

    def broken(*words: object, **options: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(hooks, "seal", broken)
    callback = hooks.SealCallback()
    trainer = trained(tmp_path / "out", callbacks=[callback])
    assert trainer.state.global_step == 6
    assert callback.trouble == [
        f"checkpoint-{step} could not be sealed: RuntimeError: out of order" for step in (2, 4, 6)
    ]


def test_only_rank_0_seals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from ckpt_tools.integrations import transformers as hooks

    waited = []
    monkeypatch.setattr(hooks, "seal", lambda *words, **options: pytest.fail("a rank other than 0 sealed"))
    args = SimpleNamespace(
        world_size=4,
        output_dir=str(tmp_path),
        distributed_state=SimpleNamespace(wait_for_everyone=lambda: waited.append(1)),
    )
    state = SimpleNamespace(is_world_process_zero=False, global_step=2)
    hooks.SealCallback().on_save(args, state, None)
    assert waited == [1], "it waits, so that nothing is sealed while it still writes"


TWO_RANKS = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import tiny, torch, trainer5
from transformers import TrainerCallback
from ckpt_tools.integrations.transformers import SealCallback, UnsoundCheckpointError

class Cut(TrainerCallback):
    def on_save(self, args, state, control, **more):
        if sys.argv[3] == "strict" and state.is_world_process_zero:
            os.truncate(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "optimizer.pt", 100)

tiny.seed_everything()
stopped = False
try:
    trainer5.trainer(sys.argv[1], tiny.llama(), {"max_steps": 4, "ddp_backend": "gloo"},
                     callbacks=[Cut(), SealCallback(strict=sys.argv[3] == "strict")]).train()
except UnsoundCheckpointError:
    stopped = True
Path(f"{sys.argv[1]}.{os.environ['RANK']}").write_text(json.dumps(stopped))
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("strict", [False, True])
def test_two_ranks_seal_what_both_wrote_and_stop_together(strict: bool, tmp_path: Path) -> None:
    from tests.seal.support import found, looked

    program = tmp_path / "program.py"
    program.write_text(TWO_RANKS)
    run = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, program, run, REPOSITORY / "fixtures" / "scripts", "strict" if strict else "lenient"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stopped = [json.loads((tmp_path / f"out.{rank}").read_text()) for rank in (0, 1)]
    assert stopped == [strict, strict]
    if not strict:
        for name in ("checkpoint-2", "checkpoint-4"):
            names = set(json.loads((run / name / MANIFEST).read_text())["files"])
            assert {"rng_state_0.pth", "rng_state_1.pth"} <= names
        assert found(looked(run, deep=True)) == []
