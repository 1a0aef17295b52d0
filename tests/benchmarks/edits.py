"""What an edit costs: a sparse 100 GB optimizer.pt of 1,000 tensors, and a real one against load-edit-save.

``python -m tests.benchmarks.edits [--gigabytes 2]``
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TENSORS = 1000


def scheduler(folder: Path) -> None:
    import torch

    state = {
        "base_lrs": [1e-4], "last_epoch": 5, "_step_count": 6, "_is_initial": False,
        "_get_lr_called_within_step": False, "_last_lr": [1e-4], "lr_lambdas": [{}],
    }  # fmt: skip
    torch.save(state, folder / "scheduler.pt")
    (folder / "trainer_state.json").write_text('{"global_step": 5, "epoch": 1.0, "max_steps": 10, "log_history": []}')


def state(numel: int, moments: Any) -> dict[str, Any]:
    """An AdamW state of TENSORS tensors: a third are steps, two thirds moments."""
    import torch

    count = TENSORS // 3
    entries = {
        n: {"step": torch.tensor(5.0), "exp_avg": moments(numel), "exp_avg_sq": moments(numel)} for n in range(count)
    }
    groups = [{"lr": 1e-4, "initial_lr": 1e-4, "betas": (0.9, 0.999), "params": list(range(count))}]
    return {"state": entries, "param_groups": groups}


def sparse(folder: Path, size: int) -> None:
    """Write a torch zip whose payloads are holes: a small one, with its moments' sizes changed."""
    import torch
    from torch.serialization import skip_data

    numel = size // 4 // (TENSORS // 3 * 2)
    with skip_data(), torch.device("cpu"):
        torch.save(state(numel, torch.empty), folder / "optimizer.pt")


def timed(command: list[str]) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout + done.stderr


def written(folder: Path) -> int:
    """Return the bytes of the sidecar, which is all that an edit adds."""
    return sum(path.stat().st_size for path in (folder / ".ckpt-tools").rglob("*") if path.is_file())


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--gigabytes", type=float, default=2.0)
    words.add_argument("--where", default=None)
    given = words.parse_args()
    ckpt = [sys.executable, "-m", "ckpt_tools"]
    with tempfile.TemporaryDirectory(dir=given.where) as scratch:
        folder = Path(scratch) / "checkpoint-5"
        folder.mkdir()
        scheduler(folder)
        sparse(folder, 100 * 10**9)
        file = folder / "optimizer.pt"
        print(
            f"sparse optimizer.pt: {file.stat().st_size / 1e9:.1f} GB, {file.stat().st_blocks * 512:,} bytes"
            " on the disk"
        )
        started, _ = timed([*ckpt, "--version"])
        print(f"ckpt --version: {started:.2f} s")
        for command in (["set-lr", str(folder), "1e-5"], ["undo", str(folder)], ["set-step", str(folder), "7"]):
            before = written(folder) if (folder / ".ckpt-tools").exists() else 0
            seconds, said = timed([*ckpt, *command])
            line = said.strip().splitlines()[-1] if said.strip() else ""
            print(f"ckpt {command[0]}: {seconds:.2f} s, journal +{written(folder) - before:,} bytes; {line}")
        shutil.rmtree(folder)
        if not given.gigabytes:
            return
        folder.mkdir()
        scheduler(folder)
        import torch

        numel = int(given.gigabytes * 2**30) // 4 // (TENSORS // 3 * 2)
        torch.save(state(numel, torch.ones), file)
        os.sync()
        print(f"real optimizer.pt: {file.stat().st_size / 2**30:.2f} GiB")
        seconds, said = timed([*ckpt, "set-lr", str(folder), "1e-5"])
        print(f"ckpt set-lr: {seconds:.2f} s; {said.strip().splitlines()[-1]}")
        from ckpt_tools.ops.set_lr import set_lr

        started = time.perf_counter()
        set_lr(str(folder), 2e-5)
        inside = time.perf_counter() - started
        print(f"the same as a library call: {inside:.3f} s")
        started = time.perf_counter()
        value = torch.load(file, weights_only=True)
        value["param_groups"][0]["lr"] = 3e-5
        torch.save(value, folder / "new.pt")
        with open(folder / "new.pt", "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(folder / "new.pt", file)
        other = time.perf_counter() - started
        print(f"load, edit, save with torch: {other:.2f} s: {other / seconds:.0f} times the command, "
              f"{other / inside:.0f} times the call")  # fmt: skip


if __name__ == "__main__":
    main()
