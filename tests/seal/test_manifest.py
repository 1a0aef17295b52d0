"""The manifest as a document: its documented form, its own checksum, and input that means harm."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from ckpt_tools.core.errors import CkptError, NothingFoundError, UsageError
from ckpt_tools.model.findings import Severity
from ckpt_tools.model.manifest import LIMIT, ManifestError, compare
from ckpt_tools.model.manifest_document import document, parse
from ckpt_tools.ops import sealed as manifests
from tests.seal.support import MANIFEST, codes, found, looked, sealed

Copy = Callable[..., Path]


@pytest.fixture
def checkpoint(copy_of: Copy) -> Path:
    place = copy_of("trainer5-full/checkpoint-2")
    sealed(place, env=True)
    return place


def read(checkpoint: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())
    return value


def write(checkpoint: Path, value: Any, *, checksum: bool = True) -> None:
    """Put a document in the place of the manifest, with a checksum that fits."""
    if checksum and isinstance(value, dict):
        value.pop("checksum", None)
        value["checksum"] = manifests._checksum(value)
    (checkpoint / MANIFEST).write_text(json.dumps(value))


def problem(checkpoint: Path) -> str:
    report = looked(checkpoint)
    (only,) = (each for each in found(report) if each.code == "CK411")
    assert only.severity is Severity.ERROR
    assert report.exit_code() == 1
    return only.message


def test_it_goes_round(checkpoint: Path) -> None:
    manifest = manifests.load(str(checkpoint / MANIFEST), "m")
    assert parse(json.loads(json.dumps(document(manifest)))) == manifest
    assert manifests.decode(manifests.encode(manifest)) == manifest
    assert not compare(manifest.files, manifest.files).any


def test_it_holds_every_file_and_what_the_page_says(checkpoint: Path) -> None:
    value = read(checkpoint)
    files = {path.name for path in checkpoint.iterdir() if path.is_file()}
    assert set(value["files"]) == files
    assert value["schema"] == "ckpt-tools/manifest/1"
    assert (value["name"], value["step"], value["layouts"]) == ("checkpoint-2", 2, ["hf-trainer"])
    assert {"python", "packages", "platform"} <= value["environment"].keys()
    for name, file in value["files"].items():
        assert file["size"] == (checkpoint / name).stat().st_size == sum(each[0] for each in file["segments"])


def test_the_bytes_that_are_hashed_are_the_documented_ones(checkpoint: Path) -> None:
    """docs/manifest.md, written out once more with nothing but blake3."""
    value = read(checkpoint)["files"]["model.safetensors"]
    data = (checkpoint / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    start = 8 + int.from_bytes(data[:8], "little")
    whole = b"ckpt-tools/file/1\0"
    for length, digest, *name in value["segments"]:
        if name:
            entry = header[name[0]]
            begin, end = (start + at for at in entry["data_offsets"])
            shape = ",".join(map(str, entry["shape"]))
            head = f"ckpt-tools/tensor/1\0float32\0{shape}\0".encode()
            digest = value["tensors"][name[0]]["digest"]
        else:
            begin, end, head = 0, start, b"ckpt-tools/bytes/1\0"
        pieces = [blake3(data[at : min(at + (1 << 25), end)]).digest() for at in range(begin, end, 1 << 25)]
        assert digest == f"blake3-32m:{blake3(head + b''.join(pieces)).hexdigest()}"
        assert end - begin == length
        whole += length.to_bytes(8, "little") + bytes.fromhex(digest.split(":")[1])
    assert value["digest"] == f"blake3-32m:{blake3(whole).hexdigest()}"


def test_a_changed_bit_of_the_manifest_is_told_as_that(checkpoint: Path) -> None:
    path = checkpoint / MANIFEST
    good = path.read_bytes()
    rng = random.Random(3)
    for _ in range(60):
        at = rng.randrange(len(good))
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
        report = looked(checkpoint)
        said = codes(report, Severity.ERROR)
        same = _value(path) == json.loads(good)  # white space, or a letter of "\u00e9" in another case
        assert said == (set() if same else {"CK411"})


def _value(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_a_cut_manifest_is_told(checkpoint: Path) -> None:
    path = checkpoint / MANIFEST
    good = path.read_bytes()
    for size in (0, 1, len(good) // 2, len(good) - 2):
        path.write_bytes(good[:size])
        assert "no JSON" in problem(checkpoint)


DIGEST = "blake3-32m:" + "0" * 64


def at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(top: dict[str, Any]) -> None:
        *way, last = path.split("/")
        for key in way:
            top = top[int(key)] if isinstance(top, list) else top[key]
        top[last] = value

    return change


def named(name: str) -> Callable[[dict[str, Any]], None]:
    def change(top: dict[str, Any]) -> None:
        top["files"][name] = top["files"].pop("config.json")

    return change


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "path above": (named("../config.json"), "leads out"),
    "path above, inside": (named("a/../../config.json"), "leads out"),
    "absolute path": (named("/etc/passwd"), "leads out"),
    "empty path": (named(""), "leads out"),
    "dot": (named("."), "leads out"),
    "NUL": (named("a\0b"), "leads out"),
    "own directory": (named(".ckpt-tools/lock"), "belongs to this tool"),
    "long path": (named("a" * 5000), "leads out"),
    "data above": (at("data", [{"name": "d", "files": {"../x": {"size": 1, "digest": DIGEST}}}]), "leads out"),
    "data no list": (at("data", {"name": "d"}), "a list is expected"),
    "files a list": (at("files", []), "an object is expected"),
    "file a number": (at("files/config.json", 7), "an object is expected"),
    "size a text": (at("files/config.json/size", "7"), "a number"),
    "size negative": (at("files/config.json/size", -1), "a number"),
    "size a truth": (at("files/config.json/size", True), "a number"),
    "size huge": (at("files/config.json/size", 1 << 80), "a number"),
    "size not that of its segments": (at("files/config.json/size", 7), "segments"),
    "segments a text": (at("files/config.json/segments", "x"), "a list is expected"),
    "segment short": (at("files/config.json/segments", [[1]]), "parts"),
    "segment of no tensor": (at("files/config.json/segments", [[1, None, "x"]]), "no tensor"),
    "digest no text": (at("files/config.json/digest", None), "a text is expected"),
    "digest short": (at("files/config.json/digest", "blake3-32m:00"), "no digest"),
    "digest another": (at("files/config.json/digest", DIGEST), "contradicts itself"),
    "digest of tomorrow": (at("files/config.json/digest", "blake4:" + "0" * 64), "does not know"),
    "tensor a list": (at("files/model.safetensors/tensors/lm_head.weight", []), "an object is expected"),
    "tensor without a type": (at("files/model.safetensors/tensors/lm_head.weight/dtype", 3), "a text is expected"),
    "many dimensions": (at("files/model.safetensors/tensors/lm_head.weight/shape", [1] * 99), "dimensions"),
    "no schema": (at("schema", None), "no schema"),
    "schema of tomorrow": (at("schema", "ckpt-tools/manifest/2"), "does not know"),
    "step a text": (at("step", "2"), "a number"),
    "environment a list": (at("environment", ["x"]), "an object is expected"),
    "environment of numbers": (at("environment", {"torch": 2}), "a text is expected"),
    "layouts of numbers": (at("layouts", [1]), "a text is expected"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_input_that_means_harm_is_a_finding(name: str, checkpoint: Path) -> None:
    change, words = HOSTILE[name]
    value = read(checkpoint)
    change(value)
    write(checkpoint, value)
    assert words in problem(checkpoint)


@pytest.mark.parametrize("value", [None, 7, "x", [], [1], {}, {"schema": []}])
def test_other_documents_are_findings(value: Any, checkpoint: Path) -> None:
    write(checkpoint, value)
    problem(checkpoint)


def test_depth_and_size_are_bounded(checkpoint: Path) -> None:
    path = checkpoint / MANIFEST
    path.write_text("[" * 200_000)
    problem(checkpoint)
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    problem(checkpoint)
    path.write_text('{"schema": ' + "9" * 10_000 + "}")
    problem(checkpoint)
    os.truncate(path, LIMIT + 1)  # a hole: nothing of it is read
    assert "bytes; at most" in problem(checkpoint)


def test_a_link_a_directory_and_a_pipe_are_no_manifest(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / MANIFEST
    path.unlink()
    path.mkdir()
    assert "cannot be read" in problem(checkpoint)
    path.rmdir()
    os.mkfifo(path)
    assert "cannot be read" in problem(checkpoint)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert found(looked(checkpoint)) == []


def test_against_takes_a_manifest_from_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "m.json"
    (checkpoint / MANIFEST).rename(elsewhere)
    assert found(looked(checkpoint)) == []
    assert found(looked(checkpoint, against=str(elsewhere), deep=True)) == []
    (checkpoint / "config.json").write_text("{}")
    assert codes(looked(checkpoint, against=str(elsewhere))) == {"CK413"}


def test_against_wants_one_checkpoint_and_a_manifest(checkpoint: Path, fixtures_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingFoundError):
        looked(checkpoint, against=str(tmp_path / "none"))
    with pytest.raises(CkptError) as raised:
        looked(checkpoint, against=str(checkpoint / "config.json"))
    assert raised.value.exit_code == 3
    with pytest.raises(UsageError):
        looked(fixtures_dir / "trainer5-full", against=str(checkpoint / MANIFEST))


def test_parse_never_fails_in_another_way(checkpoint: Path) -> None:
    """Values of any type in any place, several changes on top of each other: a manifest, or a ``ManifestError``."""
    rng = random.Random(11)
    values: list[Any] = [None, True, -1, 1 << 70, 1.5, "", "x", [], [None], {}, {"a": 1}, [[1, 2, 3, 4]], float("nan")]
    refused = 0
    value = read(checkpoint)
    for turn in range(3000):
        if turn % 50 == 0:
            value = read(checkpoint)
        _change(value, rng, values)
        try:
            parse(value)
        except ManifestError:
            refused += 1
            value = read(checkpoint)
    assert refused > 500


def _change(node: Any, rng: random.Random, values: list[Any]) -> None:
    """Replace one value somewhere below ``node``."""
    while keys := list(node) if isinstance(node, dict) else list(range(len(node))):
        key = rng.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
            node = node[key]
        else:
            node[key] = rng.choice(values)
            return
