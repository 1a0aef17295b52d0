"""``ckpt merge`` of a DCP checkpoint of two ranks, about 2 GiB, against ``cp`` of the same files.

The command also reads back what it wrote and waits for the disk; ``cp`` alone does neither.  So there are two rivals:
``cp``, and ``cp`` that is followed by ``sync`` of the copy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from measure import CKPT, built, interleaved, runs, tell

LAYERS = 32
ROWS, COLUMNS, MATRICES = 1024, 2048, 4
RANKS = 2


def build(directory: Path) -> None:
    """Let two processes save one model, each its rows."""
    script = directory / "save.py"
    script.write_text(_SAVE, encoding="utf-8")
    place = str(directory / "dcp")
    wanted = [str(number) for number in (LAYERS, ROWS, COLUMNS, MATRICES)]
    ranks = [subprocess.Popen([sys.executable, script, f"{rank}", place, *wanted]) for rank in range(RANKS)]
    for rank in ranks:
        if rank.wait():
            raise SystemExit("the checkpoint could not be made")


_SAVE = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
rank, place, layers, rows, columns, matrices = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
store = f"file://{os.path.dirname(place)}/store"
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(rank)
state = {}
for layer in range(layers):
    for number in range(matrices):
        local = torch.randn(rows, columns)
        state[f"layers.{layer}.{number}.weight"] = DTensor.from_local(local, mesh, [Shard(0)])
    state[f"layers.{layer}.norm.weight"] = DTensor.from_local(torch.randn(rows), mesh, [Shard(0)])
dcp.save({"model": state}, checkpoint_id=place)
"""


def ready(place: Path, out: Path) -> None:
    """Remove what the command before wrote, and give every command the same memory to write to.

    A virtual machine pays about a second for each GiB of memory that its host has taken back, and whoever writes first
    would pay for all: so a copy is made and removed before every command.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(place, out)
    subprocess.run(["sync"], check=True)
    shutil.rmtree(out)


if __name__ == "__main__":
    with built(__file__, build) as scratch:
        place, out = scratch / "dcp", scratch / "out"
        results = interleaved(
            {
                "ckpt merge": (*CKPT, "merge", "-q", str(place), str(out)),
                "cp, sync": ("/bin/sh", "-c", 'cp -r "$0" "$1" && sync "$1"/* "$1"', str(place), str(out)),
                "cp": (shutil.which("cp") or "/bin/cp", "-r", str(place), str(out)),
            },
            runs(5),
            before=lambda: ready(place, out),
        )
        size = sum(path.stat().st_size for path in place.glob("*.distcp"))
        tell(
            f"DCP of {size / 2**30:.2f} GiB in {RANKS} files",
            results,
            ["merge at no less than 0.7 times the rate of cp"],
        )
