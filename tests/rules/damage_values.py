"""Damages to what files say rather than to their bytes, and the table row that all tests of such rules use.

Safetensors headers and pickles are written by hand here; what needs a torch file rewritten is skipped without torch.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.model.findings import Severity
from tests.rules.damage import Damage
from tests.rules.judge import judge, verdicts

FAMILIES = ("CK3", "CK5", "CK7")
READY, BROKEN = ("ready", "ready"), ("broken", "broken")
RESUME_BROKEN, RESUME_DEGRADED = ("broken", "ready"), ("degraded", "ready")

WEIGHTS, ADAPTER, ADAPTER_CONFIG = "model.safetensors", "adapter_model.safetensors", "adapter_config.json"
OPTIMIZER, SCHEDULER, STATE, RNG = "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"
FULL, LORA = "trainer5-full/checkpoint-4", "trainer5-lora/checkpoint-4"

Tensors = dict[str, tuple[str, list[int], bytes]]
"""A safetensors file's tensors: dtype, shape and bytes by name."""


@dataclass(frozen=True, slots=True)
class Case:
    """``codes`` are all that are found at least as warnings, ``notes`` some of those below."""

    name: str
    fixture: str
    damage: Damage
    codes: set[str]
    verdict: tuple[str, str]
    notes: frozenset[str] = frozenset()


def found(case: Case, copy_of: Callable[..., Path]) -> tuple[set[str], tuple[str, str], set[str]]:
    """Damage a copy; return the codes from warnings on, the verdicts, and all codes."""
    run, _, inside = case.fixture.partition("/checkpoint")
    directory = copy_of(run)
    directory = directory / f"checkpoint{inside}" if inside else directory
    case.damage(directory)
    moved = next((path for path in (directory, *directory.parent.glob("checkpoint-*")) if path.exists()), directory)
    report = judge(moved, families=FAMILIES)
    findings = list(report.all_findings())
    least = {finding.code for finding in findings if finding.severity >= Severity.WARNING}
    return least, verdicts(report), {finding.code for finding in findings}


def check(case: Case, copy_of: Callable[..., Path]) -> None:
    codes, verdict, every = found(case, copy_of)
    assert (codes, verdict) == (case.codes, case.verdict)
    assert case.notes <= every


# safetensors, by hand


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    body = data[8 + size :]
    return {
        name: (entry["dtype"], entry["shape"], body[entry["data_offsets"][0] : entry["data_offsets"][1]])
        for name, entry in header.items()
    }, metadata


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    text += b" " * 8 * (len(text) % 256 == 128)  # no length that begins as a pickle does
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def tensors(edit: Callable[[Tensors], Tensors | None], name: str = WEIGHTS) -> Damage:
    """Edit the tensors of a safetensors file, in place or by returning others."""

    def done(directory: Path) -> None:
        found, metadata = read_tensors(directory / name)
        result = edit(found)
        write_tensors(directory / name, found if result is None else result, metadata)

    return done


def reshaped(part: str, shape: list[int]) -> Callable[[Tensors], None]:
    """Give the tensors whose name holds ``part`` another shape, with zeros for data."""

    def edit(found: Tensors) -> None:
        assert any(part in name for name in found)
        for name, (dtype, _, _) in found.items():
            if part in name:
                count = 1
                for size in shape:
                    count *= size
                found[name] = (dtype, shape, bytes(4 * count))

    return edit


def renamed_tensors(new: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda found: {new(name): value for name, value in found.items()}


def without_tensors(part: str) -> Callable[[Tensors], Tensors]:
    def edit(found: Tensors) -> Tensors:
        assert any(part in name for name in found)
        return {name: value for name, value in found.items() if part not in name}

    return edit


# JSON


def in_json(name: str, edit: Callable[[dict[str, Any]], object]) -> Damage:
    def done(directory: Path) -> None:
        value = json.loads((directory / name).read_text(encoding="utf-8"))
        edit(value)
        (directory / name).write_text(json.dumps(value, indent=2), encoding="utf-8")

    return done


def values(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: value.update(changes)


def lacking(*keys: str) -> Callable[[Any], object]:
    return lambda value: [value.pop(key) for key in keys] and None


# torch files


def in_torch(name: str, edit: Callable[[Any], object], **how: Any) -> Damage:
    """Load a torch file, edit it in place or return another value, save it."""

    def done(directory: Path) -> None:
        torch = pytest.importorskip("torch")
        value = torch.load(directory / name, weights_only=False)
        result = edit(value)
        torch.save(result if isinstance(result, dict | list) else value, directory / name, **how)

    return done


def each_group(**changes: Any) -> Callable[[Any], None]:
    def edit(value: Any) -> None:
        for group in value["param_groups"]:
            group.update(changes)

    return edit


def moment(shape: tuple[int, ...], *names: str, of: int = 0) -> Callable[[Any], None]:
    def edit(value: Any) -> None:
        torch = pytest.importorskip("torch")
        for name in names or ("exp_avg", "exp_avg_sq"):
            value["state"][of][name] = torch.zeros(shape)

    return edit


def torch_zip(path: Path, pickle: bytes, root: str = "archive", **records: bytes) -> None:
    """Write a torch file around a pickle made by hand; nothing of it is ever loaded."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickle)
        archive.writestr(f"{root}/byteorder", b"little")
        archive.writestr(f"{root}/version", b"3\n")
        for name, data in records.items():
            archive.writestr(name, data)


def hostile(name: str, pickle: bytes) -> Damage:
    return lambda directory: torch_zip(directory / name, pickle)


def calling(module: str, function: str, argument: str = "true") -> bytes:
    """A pickle of protocol 2 that would call ``module.function(argument)``."""
    text = argument.encode()
    call = f"c{module}\n{function}\n".encode() + b"X" + len(text).to_bytes(4, "little") + text + b"\x85R"
    return b"\x80\x02" + call + b"."
