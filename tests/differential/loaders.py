"""The oracles: what the real loader says of one file."""

from __future__ import annotations

import json
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch.distributed.tensor")  # as FSDP has it imported, whose files of ranks hold its tensors
numpy = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors")


def load(path: Path, container: str) -> str | None:
    """Load a file with its own library; return None when it was taken, else what the library said.

    torch files are loaded as a resume does it: ``weights_only=True``, plus the Trainer's own allow-list for rng files.
    """
    try:
        if container == "safetensors":
            _safetensors(path)
        elif container == "json":
            _json(path)
        else:
            _torch(path)
    except Exception as error:  # noqa: BLE001 - whatever the loader raises is its answer
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _safetensors(path: Path) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            file.get_tensor(name)


def _json(path: Path) -> None:
    """As transformers reads its configurations and the trainer's state: strict UTF-8, an object at the top."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__}, not an object")


def _torch(path: Path) -> None:
    allowed = _rng_globals() if re.match(r"(rng_state|random_states)", path.name) else []
    with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
        warnings.simplefilter("ignore")
        torch.load(path, map_location="cpu", weights_only=True)


@cache
def _rng_globals() -> list[Any]:
    """Return what ``transformers.trainer_pt_utils.safe_globals`` allows."""
    core = numpy._core if hasattr(numpy, "_core") else numpy.core
    return [core.multiarray._reconstruct, numpy.ndarray, numpy.dtype, type(numpy.dtype(numpy.uint32))]
