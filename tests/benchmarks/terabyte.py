"""A sharded model of 1 TB, 200 shards and 4,000 tensors, in files that take no disk: how long is a look?"""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path

from measure import CKPT, built, interleaved, runs, tell

SHARDS = 200
PER_SHARD = 20
SIDE = 11_200
"""A square of bfloat16: 250,880,000 bytes, so that 4,000 of them are 1.004e12 bytes."""


def build(directory: Path) -> None:
    weight_map = {}
    size = SIDE * SIDE * 2
    for shard in range(1, SHARDS + 1):
        name = f"model-{shard:05}-of-{SHARDS:05}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for number in range(PER_SHARD):
            tensor = f"model.layers.{(shard - 1) * PER_SHARD + number}.weight"
            header[tensor] = {
                "dtype": "BF16",
                "shape": [SIDE, SIDE],
                "data_offsets": [number * size, (number + 1) * size],
            }
            weight_map[tensor] = name
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        (directory / name).write_bytes(struct.pack("<Q", len(raw)) + raw)
        os.truncate(directory / name, 8 + len(raw) + PER_SHARD * size)
    total = SHARDS * PER_SHARD * size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))


if __name__ == "__main__":
    with built(__file__, build) as scratch:
        keys = (
            "import sys, glob; from safetensors import safe_open\n"
            "for path in glob.glob(sys.argv[1] + '/*.safetensors'):\n"
            "    with safe_open(path, framework='np') as file:\n"
            "        [file.get_slice(name).get_shape() for name in file.keys()]"
        )
        results = interleaved(
            {
                "ckpt verify DIRECTORY": (*CKPT, "verify", "--settle", "0", str(scratch)),
                "safe_open of every shard, shapes": (sys.executable, "-c", keys, str(scratch)),
            },
            runs(5),
            (0, 1),
        )
        tell(f"1 TB in {SHARDS} shards, {SHARDS * PER_SHARD:,} tensors", results, ["under 2 s", "under 100 MB"])
