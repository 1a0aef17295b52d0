"""A structural verify of a checkpoint whose optimizer is 2 GiB, against listing that file with torch.

The run is the fixture ``trainer5-full`` with one checkpoint's weights and optimizer replaced by large real ones.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from measure import CKPT, REPOSITORY, built, interleaved, runs, tell

PARAMETERS = 96
ELEMENTS = (2 << 30) // 4 // 2 // PARAMETERS


def build(directory: Path) -> None:
    import torch
    from safetensors.torch import save_file

    run = directory / "run"
    shutil.copytree(REPOSITORY / "fixtures" / "trainer5-full", run)
    place = run / "checkpoint-6"
    held = torch.load(place / "optimizer.pt", weights_only=True)
    rows = ELEMENTS // 1024
    weight = torch.full((rows, 1024), 0.5)
    names = {f"model.layers.{number}.weight": weight.clone() for number in range(PARAMETERS)}
    save_file(names, place / "model.safetensors", metadata={"format": "pt"})
    del names
    groups = held["param_groups"]
    split = PARAMETERS * 2 // 3
    groups[0]["params"], groups[1]["params"] = list(range(split)), list(range(split, PARAMETERS))
    state = {
        number: {"step": torch.tensor(6.0), "exp_avg": weight.clone(), "exp_avg_sq": weight.clone()}
        for number in range(PARAMETERS)
    }
    torch.save({"state": state, "param_groups": groups}, place / "optimizer.pt")


if __name__ == "__main__":
    with built(__file__, build) as scratch:
        place = scratch / "run" / "checkpoint-6"
        listed = (
            "import sys, torch\n"
            "held = torch.load(sys.argv[1], mmap=True, weights_only=True, map_location='cpu')\n"
            "print(len(held['state']))"
        )
        results = interleaved(
            {
                "ckpt verify CHECKPOINT": (*CKPT, "verify", "--settle", "0", str(place)),
                "torch.load(optimizer, mmap, weights_only)": (
                    sys.executable,
                    "-c",
                    listed,
                    str(place / "optimizer.pt"),
                ),
            },
            runs(5),
            (0, 1),
        )
        size = (place / "optimizer.pt").stat().st_size
        tell(f"optimizer of {size / 2**30:.2f} GiB", results, ["at least 10 times as fast", "under 60 MB"])
