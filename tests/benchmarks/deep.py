"""``ckpt verify --deep`` against ``cat`` and ``zipfile.testzip`` on a warm checkpoint of a ``.pt`` and a
``.safetensors`` file.

    python tests/benchmarks/deep.py [--gib 4] [--rounds 5] [--directory DIR] [--jobs N]

Runs are interleaved and medians compared, since the machine may be busy: rates, CPU seconds per GiB, peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTZIP = "import sys, zipfile; assert zipfile.ZipFile(sys.argv[1]).testzip() is None"


def make(target: Path, gib: float) -> None:
    """Write a checkpoint of ``gib`` GiB: a third bfloat16 weights, two thirds float32 moments, all of it random."""
    import torch

    target.mkdir(parents=True)
    weights = int(gib * 2**30 / 3)
    side = 2048
    layers = max(1, weights // (side * side * 2))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(side * side, generator=generator)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for layer in range(layers):
        begin = layer * side * side * 2
        header[f"model.layers.{layer}.weight"] = {
            "dtype": "BF16",
            "shape": [side, side],
            "data_offsets": [begin, begin + side * side * 2],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target / "model.safetensors", "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for layer in range(layers):
            out.write(noise.roll(layer * 7919).to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    state = {}
    for layer in range(layers):
        moment = noise.roll(layer * 104729).reshape(side, side)
        parts = {"exp_avg": moment * 1e-3}
        if layer % 2 == 0:
            parts["exp_avg_sq"] = moment * moment * 1e-6
        state[layer] = {"step": torch.tensor(100.0), **parts}
    groups = [{"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": list(range(layers))}]
    torch.save({"state": state, "param_groups": groups}, target / "optimizer.pt")


def run(command: list[str]) -> tuple[float, float, float]:
    """Return seconds, CPU seconds and peak MiB of a command."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{command[:4]} ended with {status}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory")
    parser.add_argument("--jobs")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=options.directory))
    try:
        target = place / "checkpoint-100"
        child = os.fork()  # so that what torch takes is no part of anything measured
        if not child:
            make(target, options.gib)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        report(target, options.rounds, options.jobs)
    finally:
        shutil.rmtree(place)


def report(target: Path, rounds: int, jobs: str | None) -> None:
    files = sorted(str(path) for path in target.iterdir())
    archives = [path for path in files if path.endswith(".pt")]
    whole = sum(os.path.getsize(path) for path in files) / 2**30
    zipped = sum(os.path.getsize(path) for path in archives) / 2**30
    deep = [sys.executable, "-m", "ckpt_tools", "verify", "--deep", "-q", "--ignore", "CK1,CK5,CK6"]
    commands = {
        "cat": (["cat", *files], whole),
        "ckpt verify --deep": ([*deep, *(["--jobs", jobs] if jobs else []), str(target)], whole),
        "ckpt verify --deep, one thread": ([*deep, "--jobs", "1", str(target)], whole),
        "zipfile.testzip (.pt)": ([sys.executable, "-c", TESTZIP, *archives], zipped),
        "ckpt verify --deep (.pt)": ([*deep, *archives], zipped),
    }
    for command, _ in commands.values():
        run(command)
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, (command, _) in commands.items():
            results[name].append(run(command))
    rates: dict[str, float] = {}
    best: dict[str, float] = {}
    print(
        f"{whole:.2f} GiB, {rounds} interleaved rounds, medians; load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores"
    )
    for name, (_, gib) in commands.items():
        seconds, cpu, peak = (statistics.median(each[column] for each in results[name]) for column in range(3))
        best[name] = gib / min(each[0] for each in results[name])
        rates[name] = gib / seconds
        use = f"{cpu / gib:6.3f} CPU s/GiB  {cpu / seconds:4.2f} cores  {peak:4.0f} MiB"
        print(f"{name:32} {gib / seconds:6.2f} GiB/s  (best {best[name]:5.2f})  {use}")
    for ours, theirs, goal in (
        ("ckpt verify --deep", "cat", "0.4"),
        ("ckpt verify --deep (.pt)", "zipfile.testzip (.pt)", "2"),
    ):
        ratios = f"{rates[ours] / rates[theirs]:.2f}, of the best runs {best[ours] / best[theirs]:.2f}"
        print(f"{ours} / {theirs}: {ratios} (at least {goal})")


if __name__ == "__main__":
    main()
