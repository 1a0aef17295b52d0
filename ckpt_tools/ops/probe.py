"""The child process of ``--load``: loads one file after the other with its own library and says what that said.

Reads one JSON object per line on its standard input, answers with one per line on its standard output.  torch files
are loaded with ``weights_only=True`` and nothing turns that off; the names allowed besides are those that the
Trainer allows for its rng file (transformers ``trainer.py``, ``safe_globals``).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def load_torch(path: str, rng: bool) -> None:
    """Load a torch file onto the CPU; ``rng`` adds the Trainer's own allow-list."""
    import torch

    with torch.serialization.safe_globals(_rng_globals() if rng else []):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            if "``torch.distributed.tensor`` must be imported" not in str(error):
                raise
            import torch.distributed.tensor  # allows its classes, as it does in the trainer

            torch.load(path, map_location="cpu", weights_only=True)


def _rng_globals() -> list[Any]:
    import _codecs

    import numpy

    core = numpy._core if hasattr(numpy, "_core") else numpy.core
    return [
        core.multiarray._reconstruct,
        (core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        numpy.ndarray,
        numpy.dtype,
        type(numpy.dtype(numpy.uint32)),
        _codecs.encode,
    ]


def load_safetensors(path: str) -> None:
    """Read every tensor of a safetensors file, or its header alone where torch is not installed."""
    from importlib.util import find_spec

    from safetensors import safe_open

    has_torch = find_spec("torch") is not None
    with safe_open(path, framework="pt" if has_torch else "np") as file:
        for name in file.keys() if has_torch else ():
            file.get_tensor(name)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Load one file and return ``{"status": "ok" | "refused" | "missing", "text": what the loader said}``."""
    try:
        if request["kind"] == "safetensors":
            load_safetensors(request["path"])
        else:
            load_torch(request["path"], request["rng"])
    except ModuleNotFoundError as error:
        return {"status": "missing", "text": str(error.name)}
    except Exception as error:  # noqa: BLE001 - whatever a loader raises is its answer
        text = " ".join(str(error).split()) or "(no text)"
        return {"status": "refused", "text": f"{type(error).__name__}: {text}"}
    return {"status": "ok", "text": ""}


def main() -> None:
    for line in sys.stdin:
        os.write(1, (json.dumps(answer(json.loads(line))) + "\n").encode())


if __name__ == "__main__":
    main()
