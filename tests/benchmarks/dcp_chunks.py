"""A distributed checkpoint of 204,800 chunks in 512 files: a structural verify against unpickling its metadata.

The yardstick is the C unpickler on stub classes, which is the least that any reader of the metadata can take.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from measure import CKPT, built, interleaved, runs, tell

RANKS = 512
TENSORS = 400
STUBS = """
import pickle, sys
class Stub:
    def __init__(self, *args): self.args = args
    def __setstate__(self, state): self.state = state
class Size(tuple): pass
class Reader(pickle.Unpickler):
    def find_class(self, module, name):
        return Size if name == "Size" else type(name, (Stub,), {})
with open(sys.argv[1], "rb") as file:
    Reader(file).load()
"""


def build(directory: Path) -> None:
    import pickle

    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        StorageMeta,
        TensorProperties,
        TensorStorageMetadata,
    )

    raw = io.BytesIO()
    torch.save(torch.zeros(4, 8), raw)
    blob = raw.getvalue()
    names = [f"model.layers.{number // 7}.mlp.experts.{number % 7}.down_proj.weight" for number in range(TENSORS)]
    described = {
        name: TensorStorageMetadata(
            TensorProperties(dtype=torch.float32),
            torch.Size([4 * RANKS, 8]),
            [ChunkStorageMetadata(torch.Size([4 * rank, 0]), torch.Size([4, 8])) for rank in range(RANKS)],
        )
        for name in names
    }
    stored = {}
    for rank in range(RANKS):
        path = f"__{rank}_0.distcp"
        (directory / path).write_bytes(blob * TENSORS)
        for number, name in enumerate(names):
            index = MetadataIndex("".join(name), torch.Size([4 * rank, 0]), rank)
            stored[index] = _StorageInfo(path, number * len(blob), len(blob))
    planner = {name: ("model", name.removeprefix("model.")) for name in names}
    meta = StorageMeta(checkpoint_id=directory, save_id="1c36c91c-97a8-48dd-8967-ffbe54f4969c")
    with (directory / ".metadata").open("wb") as file:
        pickle.dump(Metadata(described, planner, stored, meta), file)


if __name__ == "__main__":
    with built(__file__, build) as scratch:
        results = interleaved(
            {
                "ckpt verify DIRECTORY": (*CKPT, "verify", "--settle", "0", str(scratch)),
                "C unpickler on stub classes": (sys.executable, "-c", STUBS, str(scratch / ".metadata")),
            },
            runs(3),
            (0, 1),
        )
        goals = ["within 5 times (0.2 x as fast)", "under 1 GB"]
        tell(f"{RANKS * TENSORS:,} chunks in {RANKS} files", results, goals)
