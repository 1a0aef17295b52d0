"""What torch finds in a distributed checkpoint, and what an edit may not touch in it."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".ckpt-tools" not in path.parts
    }


def loaded(folder: Path) -> dict[str, Any]:
    """Load a directory as torch does, into the nested dictionary that was saved; tensors are put together."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with warnings.catch_warnings(), TemporaryDirectory() as beside:
        warnings.simplefilter("ignore")
        dcp_to_torch_save(str(folder), f"{beside}/whole.pt")
        found: dict[str, Any] = torch.load(f"{beside}/whole.pt", weights_only=False)
    return found


def blobs(folder: Path) -> dict[tuple[str, str, int], bytes]:
    """Return the bytes of every object and chunk by file, name and offset, as torch's own metadata says."""
    found = {}
    for metadata in folder.glob("*.metadata"):
        for index, where in pickle.loads(metadata.read_bytes()).storage_data.items():
            raw = (folder / where.relative_path).read_bytes()[where.offset : where.offset + where.length]
            found[where.relative_path, index.fqn, where.offset] = raw
    return found


def require_whole(raw: bytes) -> Any:
    """Read one of them with the eyes of others, and return what it holds."""
    import torch

    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() is None
        for record in archive.infolist():
            assert record.file_size == record.compress_size
    return torch.load(io.BytesIO(raw), weights_only=True)


def changed(before: dict[tuple[str, str, int], bytes], folder: Path) -> dict[str, Any]:
    """Return what changed, by name, and require that all of it is whole and of the old length."""
    after = blobs(folder)
    assert after.keys() == before.keys()
    assert all(len(raw) == len(before[key]) for key, raw in after.items())
    return {key[1]: require_whole(raw) for key, raw in after.items() if raw != before[key]}


def saved(folder: Path, state: dict[str, Any]) -> Path:
    """Save a nested dictionary as one process does."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(folder))
    return folder


def training(rates: list[Any], scheduler: dict[str, Any] | None = None, step: int = 5, **group: Any) -> dict[str, Any]:
    """Return what a loop saves, with one parameter for each rate."""
    import torch

    names = [f"layers.{number}.weight" for number in range(len(rates))]
    groups = [
        {"lr": rate, "weight_decay": 0.1, "params": [name], **group} for rate, name in zip(rates, names, strict=True)
    ]
    entries = {name: {"step": torch.tensor(float(step)), "exp_avg": torch.ones(3)} for name in names}
    made: dict[str, Any] = {
        "model": {name: torch.ones(3) for name in names},
        "optimizer": {"state": entries, "param_groups": groups},
        "train_state": {"step": step},
    }
    return made | ({"lr_scheduler": scheduler} if scheduler is not None else {})


def flattened(groups: list[dict[str, Any]], scheduler: dict[str, Any], each: int = 2) -> dict[str, Any]:
    """Return the same with the optimizer's numbers parameter by parameter, each group with so many."""
    import torch

    made: dict[str, Any] = {"optimizer": {}, "lr_scheduler": scheduler, "train_state": {"step": 5}}
    for number, group in enumerate(groups):
        for member in range(each):
            name = f"layers.{number}.{member}.weight"
            made[name] = torch.ones(3)
            made["optimizer"][f"state.{name}.step"] = torch.tensor(5.0)
            made["optimizer"] |= {f"param_groups.{name}.{key}": value for key, value in group.items()}
    return made
