"""What the tests of seals share: sealing a copy, looking at what verify says of it, large files without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ckpt_tools
from ckpt_tools.model.findings import Finding, Severity
from ckpt_tools.ops.seal import seal
from ckpt_tools.reports.seal import SealedCheckpoint
from ckpt_tools.reports.verify import VerifyReport

MANIFEST = Path(".ckpt-tools") / "manifest.json"


def sealed(path: Path, **options: Any) -> SealedCheckpoint:
    """Seal one checkpoint, which must succeed."""
    (made,) = seal(str(path), settle=0, **options).checkpoints
    assert made.status in ("sealed", "unchanged"), (made.reasons, made.findings)
    return made


def looked(path: Path, **options: Any) -> VerifyReport:
    return ckpt_tools.verify(str(path), settle=0, select=("CK41",), **options)


def found(report: VerifyReport, least: Severity = Severity.NOTE) -> list[Finding]:
    """Return what the rules about manifests said."""
    return [each for each in report.all_findings() if each.code.startswith("CK41") and each.severity >= least]


def codes(report: VerifyReport, least: Severity = Severity.WARNING) -> set[str]:
    return {each.code for each in found(report, least)}


def flip(path: Path, offset: int, mask: int = 1) -> None:
    """Change one byte and keep the time of change, as a disk does."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([old ^ mask]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def safetensors(path: Path, tensors: dict[str, bytes]) -> dict[str, int]:
    """Write float32 vectors as a safetensors file; return where each begins."""
    header: dict[str, Any] = {}
    at = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "F32", "shape": [len(data) // 4], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors.values()))
    return {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}
