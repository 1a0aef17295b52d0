"""Pairs of files for the tests: written by the real libraries, or by hand where no library is needed."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def safetensors(path: Path, tensors: Mapping[str, np.ndarray], **forms: str) -> Path:
    """Write arrays as a safetensors file, by hand: no library is needed, and bfloat16 is 16-bit integers."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        form = forms.get(name.replace(".", "_"), NAMES.get(array.dtype.name, ""))
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": form, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def weights(seed: int = 0, layers: int = 2, width: int = 8) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    found = {"model.embed_tokens.weight": random.standard_normal((16, width), np.float32)}
    for number in range(layers):
        for kind in ("self_attn.q_proj", "mlp.up_proj"):
            found[f"model.layers.{number}.{kind}.weight"] = random.standard_normal((width, width), np.float32)
        found[f"model.layers.{number}.input_layernorm.weight"] = np.ones(width, np.float32)
    return found
