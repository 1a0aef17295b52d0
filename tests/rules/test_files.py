"""CK2xx and CK0xx: what is wrong with the bytes of one file, as exact codes and verdicts."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Severity
from ckpt_tools.reports.verify import VerifyReport
from tests.rules.judge import codes, verdicts

BROKEN = ("broken", "broken")
RESUME = ("broken", "ready")
Damage = Callable[[Path], None]


def judged(path: Path, **options: Any) -> VerifyReport:
    return ckpt_tools.verify(str(path), settle=0, **options)


def written(data: bytes) -> Damage:
    return lambda path: path.write_bytes(data) and None


def cut(share: float) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)]) and None


def appended(data: bytes) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes() + data) and None


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Rewrite the header of a safetensors file; ``change`` edits it, or returns another value or raw bytes."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        value = json.loads(data[8 : 8 + length])
        made = change(value)
        raw = made if isinstance(made, bytes) else json.dumps(value if made is None else made).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])

    return damage


def tensors(value: dict[str, Any]) -> list[dict[str, Any]]:
    entries = [entry for name, entry in value.items() if name != "__metadata__"]
    return sorted(entries, key=lambda entry: entry["data_offsets"])


def shape(value: dict[str, Any]) -> None:
    tensors(value)[0]["shape"].append(3)


def overlap(value: dict[str, Any]) -> None:
    first, second = tensors(value)[:2]
    size = second["data_offsets"][1] - second["data_offsets"][0]
    second["data_offsets"] = [first["data_offsets"][0], first["data_offsets"][0] + size]


def gap(value: dict[str, Any]) -> None:
    for name, entry in list(value.items()):
        if name != "__metadata__" and entry["data_offsets"][0] == 0:
            del value[name]


def outside(value: dict[str, Any]) -> None:
    last = tensors(value)[-1]
    begin, end = last["data_offsets"]
    last["data_offsets"] = [end, begin]


def beyond(value: dict[str, Any]) -> None:
    last = tensors(value)[-1]
    last["data_offsets"] = [offset + 4096 for offset in last["data_offsets"]]


def twice(value: dict[str, Any]) -> bytes:
    name = next(name for name in value if name != "__metadata__")
    return json.dumps(value)[:-1].encode() + f', "{name}": {json.dumps(value[name])}}}'.encode()


def repacked(change: Callable[[dict[str, bytes]], Any], method: int = zipfile.ZIP_STORED) -> Damage:
    """Pack a torch file again; ``change`` edits its records."""

    def damage(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        change(records)
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in records.items():
                archive.writestr(name, data)

    return damage


def named(records: dict[str, bytes], ending: str) -> str:
    return next(name for name in records if name.endswith(ending))


def short(records: dict[str, bytes]) -> None:
    records[named(records, "/data/1")] = records[named(records, "/data/1")][:-1]


def bad_pickle(records: dict[str, bytes]) -> None:
    records[named(records, "data.pkl")] = records[named(records, "data.pkl")][:50]


def duplicated(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        name = named(dict.fromkeys(archive.namelist(), b""), ".format_version")
        data = archive.read(name)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, data)


WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "trainer_state.json"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{1:064d}\nsize 24512\n".encode()
ROWS: dict[str, tuple[str, Damage, set[str], tuple[str, str]]] = {
    "empty": (WEIGHTS, written(b""), {"CK201"}, BROKEN),
    "zeros": (WEIGHTS, lambda path: path.write_bytes(bytes(path.stat().st_size)) and None, {"CK202"}, BROKEN),
    "zeros-optimizer": (OPTIMIZER, lambda p: p.write_bytes(bytes(p.stat().st_size)) and None, {"CK202"}, RESUME),
    "half": (WEIGHTS, cut(0.5), {"CK203"}, BROKEN),
    "one-byte-less": (WEIGHTS, lambda p: p.write_bytes(p.read_bytes()[:-1]) and None, {"CK203"}, BROKEN),
    "length-alone": (WEIGHTS, lambda p: p.write_bytes(p.read_bytes()[:8]) and None, {"CK203"}, BROKEN),
    "half-optimizer": (OPTIMIZER, cut(0.5), {"CK203"}, RESUME),
    "pointer": (WEIGHTS, written(POINTER), {"CK204"}, BROKEN),
    "page": (WEIGHTS, written(b"<!DOCTYPE html><html><title>Sign in</title></html>"), {"CK205"}, BROKEN),
    "error": (WEIGHTS, written(b'{"error":"Repository not found"}'), {"CK206"}, BROKEN),
    "no-entry": (WEIGHTS, written(b"Entry not found"), {"CK206"}, BROKEN),
    "gzip": (WEIGHTS, lambda p: p.write_bytes(b"\x1f\x8b\x08\0" + p.read_bytes()) and None, {"CK207"}, BROKEN),
    "torch-as-safetensors": (
        WEIGHTS,
        lambda p: p.write_bytes((p.parent / OPTIMIZER).read_bytes()) and None,
        {"CK208"},
        BROKEN,
    ),
    "safetensors-as-torch": (
        OPTIMIZER,
        lambda p: p.write_bytes((p.parent / WEIGHTS).read_bytes()) and None,
        {"CK208"},
        RESUME,
    ),
    "noise": (OPTIMIZER, written(bytes(range(200, 256)) * 20), {"CK209"}, RESUME),
    "header-a-list": (WEIGHTS, header(lambda value: [1, 2]), {"CK210"}, BROKEN),
    "header-not-utf8": (WEIGHTS, header(lambda value: b'{"\xff\xfe": 1}'), {"CK210"}, BROKEN),
    "header-of-2-60": (
        WEIGHTS,
        lambda p: p.write_bytes(struct.pack("<Q", 1 << 60) + p.read_bytes()[8:]) and None,
        {"CK211"},
        BROKEN,
    ),
    "one-byte-more": (WEIGHTS, appended(b"\0"), {"CK212"}, BROKEN),
    "more-behind-zip": (OPTIMIZER, appended(b"\0" * 100), {"CK213"}, ("ready", "ready")),
    "far-more-behind-zip": (OPTIMIZER, appended(b"\0" * 80_000), {"CK213", "CK225"}, RESUME),
    "shape": (WEIGHTS, header(shape), {"CK214"}, BROKEN),
    "overlap": (WEIGHTS, header(overlap), {"CK215"}, BROKEN),
    "gap": (WEIGHTS, header(gap), {"CK216"}, BROKEN),
    "backwards": (WEIGHTS, header(outside), {"CK221"}, BROKEN),
    "past-the-end": (WEIGHTS, header(beyond), {"CK217"}, BROKEN),
    "dtype": (WEIGHTS, header(lambda value: tensors(value)[0].update(dtype="F99")), {"CK218"}, BROKEN),
    "twice": (WEIGHTS, header(twice), {"CK219"}, BROKEN),
    "metadata-number": (WEIGHTS, header(lambda value: value.update(__metadata__={"format": 1})), {"CK220"}, BROKEN),
    "entry-without-shape": (WEIGHTS, header(lambda value: tensors(value)[0].pop("shape") and None), {"CK221"}, BROKEN),
    "record-missing": (OPTIMIZER, repacked(lambda r: r.pop(named(r, "/data/1")) and None), {"CK222"}, RESUME),
    "record-short": (OPTIMIZER, repacked(short), {"CK223"}, RESUME),
    "pickle-cut": (OPTIMIZER, repacked(bad_pickle), {"CK224"}, RESUME),
    "no-pickle": (OPTIMIZER, repacked(lambda r: r.pop(named(r, "data.pkl")) and None), {"CK222"}, RESUME),
    "compressed": (OPTIMIZER, repacked(lambda r: None, zipfile.ZIP_DEFLATED), {"CK226"}, ("ready", "ready")),
    "record-twice": (OPTIMIZER, duplicated, {"CK227"}, ("ready", "ready")),
    "version-11": (OPTIMIZER, repacked(lambda r: r.update({named(r, "/version"): b"11"})), {"CK228"}, RESUME),
    "byteorder-odd": (OPTIMIZER, repacked(lambda r: r.update({named(r, "/byteorder"): b"odd"})), {"CK228"}, RESUME),
    "outside-root": (OPTIMIZER, repacked(lambda r: r.update({"other/x": b"1"})), {"CK229"}, RESUME),
    "json-cut": (STATE, cut(0.5), {"CK230"}, RESUME),
    "json-empty": (STATE, written(b""), {"CK201"}, RESUME),
    "json-a-list": (STATE, written(b"[1, 2]"), {"CK231"}, RESUME),
}


@pytest.fixture
def checkpoint(copy_of: Callable[..., Path]) -> Path:
    return copy_of("trainer5-full") / "checkpoint-4"


@pytest.mark.parametrize("name", ROWS)
def test_a_damaged_file_gives_its_code_and_verdicts(name: str, checkpoint: Path) -> None:
    file, damage, expected, verdict = ROWS[name]
    assert codes(judged(checkpoint)) == set()
    damage(checkpoint / file)
    report = judged(checkpoint)
    assert (codes(report), verdicts(report)) == (expected, verdict)


def test_nan_and_double_keys_of_a_state_are_told_calmly(checkpoint: Path) -> None:
    state = (checkpoint / STATE).read_text()
    (checkpoint / STATE).write_text(state.replace('"total_flos"', '"best_metric": NaN,\n  "total_flos"', 1))
    report = judged(checkpoint)
    assert {"CK232", "CK233"} <= codes(report, Severity.NOTE)
    assert verdicts(report) == ("ready", "ready")


def test_a_cut_log_line_is_a_note(copy_of: Callable[..., Path]) -> None:
    run = copy_of("llama-factory/sft-lora")
    log = run / "trainer_log.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    assert codes(judged(run)) == set()


def test_damage_that_no_purpose_needs_is_a_warning(checkpoint: Path) -> None:
    (checkpoint / "training_args.bin").write_bytes(b"")
    report = judged(checkpoint)
    assert [finding.severity for finding in report.all_findings() if finding.code == "CK201"] == [Severity.WARNING]
    assert verdicts(report) == ("ready", "ready")


def test_a_directory_that_cannot_be_listed_is_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    (checkpoint / "inner").mkdir()
    listed = os.listdir

    def refuse(path: Any) -> list[str]:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)
    report = judged(checkpoint)
    assert "CK003" in codes(report, Severity.FATAL)
    assert report.exit_code() == 3


def test_an_unfinished_edit_is_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_tools.ops import engine

    def unfinished(view: View) -> None:
        view.pending = ("learning rate set from 1 to 2",)

    monkeypatch.setattr(engine, "find_pending", unfinished)
    (checkpoint / ".ckpt-tools").mkdir()
    report = judged(checkpoint)
    assert codes(report) == {"CK005"}
    assert verdicts(report) == BROKEN


def test_what_a_loader_refuses_is_an_error_of_its_own(checkpoint: Path) -> None:
    pytest.importorskip("torch")
    scheduler = checkpoint / "scheduler.pt"
    clean = judged(checkpoint, load=True)
    assert codes(clean) == set()
    repacked(lambda records: records.update({named(records, "/version"): b"0"}))(scheduler)
    report = judged(checkpoint, load=True, select=("CK24",))
    assert codes(report) == {"CK240"}
    assert verdicts(report) == RESUME


def test_compressed_weights_are_an_error(copy_of: Callable[..., Path]) -> None:
    checkpoint = copy_of("trainer4-bin") / "checkpoint-2"
    assert codes(judged(checkpoint)) == set()
    repacked(lambda records: None, zipfile.ZIP_DEFLATED)(checkpoint / "pytorch_model.bin")
    report = judged(checkpoint)
    assert codes(report, Severity.ERROR) == {"CK226"}
    assert verdicts(report) == BROKEN
