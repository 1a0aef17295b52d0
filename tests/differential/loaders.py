"""The oracles: what the real loader says of one file."""

from __future__ import annotations

import json
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FIXTURES

torch = pytest.importorskip("torch")
pytest.importorskip("torch.distributed.tensor")  # as FSDP has it imported, whose files of ranks hold its tensors
numpy = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors")


UNSAFE = ("deepspeed/", "megatron/", "mmengine/", "timm/", "ultralytics/")
"""Fixtures of libraries that load with ``weights_only=False``, or allow their own classes."""


def load(path: Path, container: str, subject: str = "") -> str | None:
    """Load a file with its own library; return None when it was taken, else what the library said.

    torch files are loaded as a resume does it: ``weights_only=True``, plus the Trainer's own allow-list for rng files.
    Those of ``UNSAFE`` libraries are too, with something that stands in for each class that ``subject``, the undamaged
    file, names: nothing of a damaged pickle runs, and none of these libraries is needed.
    """
    try:
        if container == "safetensors":
            _safetensors(path)
        elif container == "json":
            _json(path)
        else:
            _torch(path, subject)
    except Exception as error:  # noqa: BLE001 - whatever the loader raises is its answer
        text, mark, reason = " ".join(str(error).split()).partition("WeightsUnpickler error:")
        return f"{type(error).__name__}: {text[:60] if mark else text[:300]} {mark}{reason[:240]}".rstrip()
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


def _torch(path: Path, subject: str) -> None:
    allowed: list[Any] = []
    if re.match(r"(rng_state|random_states)", path.name):
        allowed = _rng_globals()
    elif subject.startswith(UNSAFE):
        allowed = _stand_ins(subject)
    with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
        warnings.simplefilter("ignore")
        torch.load(path, map_location="cpu", weights_only=True)


@cache
def _rng_globals() -> list[Any]:
    """Return what ``transformers.trainer_pt_utils.safe_globals`` allows."""
    core = numpy._core if hasattr(numpy, "_core") else numpy.core
    return [core.multiarray._reconstruct, numpy.ndarray, numpy.dtype, type(numpy.dtype(numpy.uint32))]


class StandIn:
    """Takes whatever a pickle gives to an object or a function of a library."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@cache
def _stand_ins(subject: str) -> list[tuple[type, str]]:
    """Return one class for each name that torch does not build by itself."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(FIXTURES / subject)
    return [(type("StandIn", (StandIn,), {}), name) for name in names]
