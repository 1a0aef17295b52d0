"""Looking deep at files and directories, and changing tensors of copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ckpt_tools
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Finding, Severity
from ckpt_tools.model.summaries import DataSummary, FileSummary
from ckpt_tools.ops import deep
from ckpt_tools.reports.verify import VerifyReport


def verify(path: Path, **options: Any) -> VerifyReport:
    """Verify with every byte; without a clock nothing is ever in progress."""
    return ckpt_tools.verify(str(path), deep=True, settle=0, **options)


def data_findings(report: VerifyReport, least: Severity = Severity.NOTE) -> list[Finding]:
    """Return the findings about bytes, in order."""
    return [each for each in report.all_findings() if each.code.startswith("CK40") and each.severity >= least]


def codes(report: VerifyReport, least: Severity = Severity.WARNING) -> set[str]:
    return {finding.code for finding in data_findings(report, least)}


def one(report: VerifyReport, code: str) -> Finding:
    (found,) = (finding for finding in data_findings(report) if finding.code == code)
    return found


def skipped(report: VerifyReport) -> str:
    return "\n".join(skip.reason for checkpoint in report.checkpoints for skip in checkpoint.skipped)


def look(path: Path, **options: Any) -> DataSummary:
    """Read a file or a checkpoint without judging it."""
    run = open_run(str(path))
    (checkpoint,) = run.checkpoints
    return deep.read(View(checkpoint), **options)


def look_at_file(path: Path, **options: Any) -> FileSummary:
    (found,) = look(path, **options).files.values()
    return found


def change_safetensors(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change tensors of a safetensors file in place; its header stays."""
    from safetensors.numpy import load_file, save_file

    tensors = {name: array.copy() for name, array in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def change_torch(path: Path, change: Callable[[Any], None]) -> None:
    """Change what a torch file holds and save it anew, with checksums that fit."""
    import torch

    value = torch.load(path, weights_only=True)
    change(value)
    torch.save(value, path)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Turn one bit of a file over."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)
