"""What a safetensors file begins with, for those who write one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ckpt_tools.containers.safetensors_header import DTYPES
from ckpt_tools.model.tensors import TensorRef

NAMES = {dtype: name for name, (dtype, _) in DTYPES.items()}
"""The format's names of the types that it knows, by torch's."""

_PLACES = {dtype: place for place, (dtype, _) in enumerate(DTYPES.values())}


def in_order(tensors: Iterable[TensorRef]) -> list[TensorRef]:
    """Return tensors as the library lays them out: wide types first, which keeps all of them aligned, then by name."""
    return sorted(tensors, key=lambda ref: (-_PLACES[ref.dtype], ref.fqn))


def header(tensors: Iterable[TensorRef], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes before the tensors' own, which follow one another in the order given."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for ref in tensors:
        end = at + ref.nbytes
        entries[ref.fqn] = {"dtype": NAMES[ref.dtype], "shape": list(ref.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    return len(text).to_bytes(8, "little") + text
