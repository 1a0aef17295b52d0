"""``ckpt verify --deep`` as it is typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_tools.cli import main
from tests.conftest import FIXTURES, Copy
from tests.deep.support import flip, look_at_file

RUN = str(FIXTURES / "trainer5-full")


def document(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main(["verify", "--format", "json", "--settle", "0", *words])
    return code, json.loads(capsys.readouterr().out)


def test_the_document_says_how_deep_it_went(capsys: pytest.CaptureFixture[str]) -> None:
    code, deep = document(capsys, "--deep", "--jobs", "2", RUN)
    _, shallow = document(capsys, RUN)
    assert code == 0
    assert {each["depth"] for each in deep["checkpoints"]} == {"deep"}
    assert {each["depth"] for each in shallow["checkpoints"]} == {"structure"}
    assert deep["summary"]["bytes_read"] >= deep["summary"]["bytes"]
    assert {skip["code"] for each in shallow["checkpoints"] for skip in each["skipped"]} == {"CK4"}
    assert {skip["code"] for each in deep["checkpoints"] for skip in each["skipped"]} == {"CK401"}


def test_a_damaged_record_is_one_line_with_quiet(copy_of: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy_of("trainer5-full/checkpoint-4", "checkpoint-4")
    summary = look_at_file(path / "optimizer.pt")
    flip(path / "optimizer.pt", summary.tensors["state.2.exp_avg"].ref.chunks[0].extent.offset)
    assert main(["verify", "--deep", "-q", "--settle", "0", str(path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "CK401" in line
    assert main(["verify", "-q", "--settle", "0", str(path)]) == 0
    assert main(["verify", "--deep", "-q", "--ignore", "CK4", "--settle", "0", str(path)]) == 0


@pytest.mark.parametrize(
    "words",
    [["--sample", "1/7"], ["--deep", "--sample", "8/7"], ["--deep", "--sample", "x"], ["--deep", "--jobs", "0"]],
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *words, RUN]) == 2
    assert capsys.readouterr().out == ""


def test_a_sample_says_what_it_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = document(capsys, "--deep", "--sample", "1/3", RUN)
    reasons = [skip["reason"] for each in said["checkpoints"] for skip in each["skipped"]]
    assert any("left out by --sample 1/3" in reason for reason in reasons)


STOP = """
import os, signal, sys, threading
from ckpt_tools.numerics import streaming
unit, once = streaming._Run._unit, threading.Lock()
def interrupted(self, number, pieces, result, buffer):
    if once.acquire(blocking=False):
        os.kill(os.getpid(), signal.SIGINT)
    self.stop.wait(60)
    return unit(self, number, pieces, result, buffer)
streaming._Run._unit = interrupted
from ckpt_tools.cli import main
sys.exit(main(["verify", "--deep", sys.argv[1]]))
"""


def test_an_interruption_ends_it_with_130(fixtures_dir: Path) -> None:
    """Every worker is held in its first unit until the interruption has been dealt with."""
    done = subprocess.run(
        [sys.executable, "-c", STOP, RUN], capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "PYTHONPATH": str(fixtures_dir.parent)},
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_structural_look_stays_light(fixtures_dir: Path) -> None:
    program = "import sys; from ckpt_tools.cli import main; main(['verify', '-q', sys.argv[1]]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, RUN], capture_output=True, text=True, check=True,
                          cwd=fixtures_dir.parent)  # fmt: skip
    loaded = set(done.stdout.split())
    assert not loaded & {"numpy", "ml_dtypes", "isal", "blake3", "ckpt_tools.ops.deep", "ckpt_tools.numerics"}
