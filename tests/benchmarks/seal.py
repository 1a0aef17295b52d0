"""``ckpt seal`` of 4 GiB in page cache, against model-signing's BLAKE3 mode, ``sha256sum`` and a ``cat`` of the files.

model-signing is used where ``MODEL_SIGNING`` names an interpreter that has it (its dependencies are many); without one
the stand-in is the kernel that it calls, ``blake3.update_mmap`` with all threads, file after file.  Both are measured
as whole processes and, inside of one process, by the clock around the work alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from measure import CKPT, REPOSITORY, built, interleaved, runs, tell

GIB = 1 << 30
SIZE = 4 * GIB
TENSORS = 64

KERNEL = """
import sys, time
from blake3 import blake3
started = time.perf_counter()
for path in sys.argv[1:]:
    blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
print(time.perf_counter() - started)
"""
SIGNING = """
import sys, time
from pathlib import Path
from model_signing import hashing
started = time.perf_counter()
paths = [Path(path) for path in sys.argv[1:]]
hashing.Config().use_file_serialization(hashing_algorithm="blake3").hash(paths[0].parent, files_to_hash=paths)
print(time.perf_counter() - started)
"""
OURS = """
import sys, time
from ckpt_tools.ops.seal import seal
started = time.perf_counter()
report = seal(sys.argv[1], output=sys.argv[2], force=True, settle=0)
print(time.perf_counter() - started)
"""


def build(directory: Path) -> None:
    import numpy as np
    import torch
    from safetensors.torch import save_file

    place = directory / "checkpoint-2"
    shutil.copytree(REPOSITORY / "fixtures" / "trainer5-full" / "checkpoint-2", place)
    generator = np.random.default_rng(1)
    rows = SIZE // 2 // TENSORS // 4 // 1024
    tensors = {
        f"model.layers.{number}.weight": torch.from_numpy(generator.standard_normal((rows, 1024), dtype=np.float32))
        for number in range(TENSORS)
    }
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    torch.save({"state": {n: {"exp_avg": each} for n, each in enumerate(tensors.values())}}, place / "optimizer.pt")


def inside(commands: dict[str, list[str]], count: int) -> dict[str, float]:
    """Return the median seconds that each program says its work took, run by turns."""
    seen: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(count + 1):
        for name, command in commands.items():
            environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            if turn:
                seen[name].append(float(done.stdout))
    return {name: sorted(times)[len(times) // 2] for name, times in seen.items()}


def busy(command: list[str]) -> float:
    """Return how many processors a command keeps busy: its processor seconds by its wall seconds, start included."""
    from measure import one

    wall, processor, _, _ = one(command)
    return processor / wall


if __name__ == "__main__":
    with built(__file__, build) as scratch:
        place = scratch / "checkpoint-2"
        large = [str(place / name) for name in ("model.safetensors", "optimizer.pt")]
        every = sorted(str(path) for path in place.iterdir())
        manifest = str(scratch / "manifest.json")
        signing = os.environ.get("MODEL_SIGNING")
        rival = [signing, "-c", SIGNING, *every] if signing else [sys.executable, "-c", KERNEL, *every]
        name = "model-signing, BLAKE3" if signing else "blake3.update_mmap, all threads (stand-in)"
        gib = sum(os.path.getsize(path) for path in every) / GIB
        count = runs(3)
        ours = [*CKPT, "seal", "-q", "--settle", "0", "--force", "-o", manifest, str(place)]
        results = interleaved(
            {
                "ckpt seal": ours,
                name: rival,
                "cat FILES > /dev/null": ["/bin/cat", *large],
                "sha256sum FILES": ["/usr/bin/sha256sum", *large],
            },
            count,
        )
        goals = ["10 times sha256sum", f"no slower than {name}", "under 200 MB"]
        tell(f"whole processes, {gib:.2f} GiB", results, goals)
        for label, got in results.items():
            print(f"  {label:<48}{gib / got.wall:7.2f} GiB/s  {got.processor / gib:.2f} CPU s per GiB")
        kernel = [sys.executable, "-c", KERNEL, *every]
        programs = {"ckpt seal": [sys.executable, "-c", OURS, str(place), manifest], name: rival, "kernel": kernel}
        print("\nthe work alone, without start and imports")
        for label, seconds in inside(programs, count).items():
            print(f"  {label:<48}{gib / seconds:7.2f} GiB/s")
        print(f"\nprocessors busy during ckpt seal: {busy(ours):.2f}")
