"""The manifest as a JSON value, and back: the form that docs/manifest.md describes.

A manifest is read from the checkpoint itself, so nothing in it is believed: types, sizes and paths are checked, and no
path that it names is ever opened for its own sake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ckpt_tools.core.listing import SIDECAR
from ckpt_tools.model.manifest import Manifest, ManifestError, SealedData, SealedFile, SealedTensor
from ckpt_tools.model.summaries import Segment

__all__ = ["SCHEMA", "ManifestError", "document", "parse"]

SCHEMA = "ckpt-tools/manifest/1"
_FAMILY = "ckpt-tools/manifest/"

_DIGEST = re.compile(r"[a-z0-9-]{1,32}:[0-9a-f]{64}\Z")
_MAX_SIZE = 1 << 63
_MAX_RANK = 64


def document(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as the documented JSON value, without its own checksum."""
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "tool": manifest.tool,
        "created": manifest.created,
        "name": manifest.name,
        "layouts": list(manifest.layouts),
        "step": manifest.step,
        "files": {path: _file_document(file) for path, file in manifest.files.items()},
    }
    if manifest.environment is not None:
        found["environment"] = dict(manifest.environment)
    if manifest.data:
        found["data"] = [
            {
                "name": data.name,
                "files": {path: {"size": size, "digest": digest} for path, (size, digest) in data.files.items()},
            }
            for data in manifest.data
        ]
    return found


def _file_document(file: SealedFile) -> dict[str, Any]:
    found: dict[str, Any] = {"size": file.size, "digest": file.digest}
    if file.mtime_ns is not None:
        found["mtime_ns"] = file.mtime_ns
    if file.container:
        found["container"] = file.container
    found["segments"] = [
        [each.length, each.digest] if each.tensor is None else [each.length, None, each.tensor]
        for each in file.segments or ()
    ]
    if file.tensors:
        found["tensors"] = {name: _tensor_document(tensor) for name, tensor in file.tensors.items()}
    return found


def _tensor_document(tensor: SealedTensor) -> dict[str, Any]:
    found: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "digest": tensor.digest}
    if tensor.largest is not None:
        found["largest"] = tensor.largest
    return found


def parse(value: Any) -> Manifest:
    """Return the manifest that a decoded JSON value is.

    Raises:
        ManifestError: it is none; the message says where.
    """
    top = _object(value, "the document")
    schema = top.get("schema")
    if schema != SCHEMA:
        if isinstance(schema, str) and schema.startswith(_FAMILY):
            raise ManifestError(f"is of the schema {schema[:60]!r}, which this version does not know")
        raise ManifestError(f"names no schema {SCHEMA!r}")
    files = {}
    for path, each in _object(top.get("files"), "files").items():
        files[_path(path)] = _parsed_file(each, path)
    step = top.get("step")
    environment = top.get("environment")
    return Manifest(
        _text(top, "tool"),
        _text(top, "created"),
        _text(top, "name"),
        tuple(_word(each, "layouts") for each in _list(top.get("layouts", []), "layouts")),
        None if step is None else _number(step, "step"),
        files,
        None
        if environment is None
        else {key: _word(each, "environment") for key, each in _object(environment, "environment").items()},
        tuple(_parsed_data(each) for each in _list(top.get("data", []), "data")),
    )


def _parsed_file(value: Any, path: str) -> SealedFile:
    where = f"files[{path[:80]!r}]"
    found = _object(value, where)
    size = _number(found.get("size"), f"{where}.size")
    tensors = {
        name: _parsed_tensor(each, f"{where}.tensors[{name[:80]!r}]")
        for name, each in _object(found.get("tensors", {}), f"{where}.tensors").items()
    }
    mtime = found.get("mtime_ns")
    container = found.get("container", "")
    segments = []
    offset = 0
    for each in _list(found.get("segments"), f"{where}.segments"):
        segment = _segment(each, offset, tensors, f"{where}.segments")
        segments.append(segment)
        offset += segment.length
    if offset != size:
        raise ManifestError(f"{where}: its segments have {offset:,} bytes, its size is {size:,}")
    return SealedFile(
        size,
        _digest(found.get("digest"), f"{where}.digest"),
        mtime if type(mtime) is int else None,
        _word(container, f"{where}.container"),
        tuple(segments),
        tensors,
    )


def _segment(value: Any, offset: int, tensors: Mapping[str, SealedTensor], where: str) -> Segment:
    parts = _list(value, where)
    if len(parts) not in (2, 3):
        raise ManifestError(f"{where}: a segment has {len(parts)} parts")
    length = _number(parts[0], where)
    if len(parts) == 2:
        return Segment(offset, length, None, _digest(parts[1], where))
    name = _word(parts[2], where)
    tensor = tensors.get(name)
    if tensor is None or tensor.digest is None:
        raise ManifestError(f"{where}: {name[:80]!r} is no tensor of the file, or has no digest")
    return Segment(offset, length, name, tensor.digest)


def _parsed_tensor(value: Any, where: str) -> SealedTensor:
    found = _object(value, where)
    shape = _list(found.get("shape"), f"{where}.shape")
    if len(shape) > _MAX_RANK:
        raise ManifestError(f"{where}.shape has {len(shape)} dimensions")
    digest, largest = found.get("digest"), found.get("largest")
    return SealedTensor(
        _word(found.get("dtype"), f"{where}.dtype"),
        tuple(_number(size, f"{where}.shape") for size in shape),
        None if digest is None else _digest(digest, f"{where}.digest"),
        float(largest) if isinstance(largest, float) or (type(largest) is int and largest < _MAX_SIZE) else None,
    )


def _parsed_data(value: Any) -> SealedData:
    found = _object(value, "data")
    files: dict[str, tuple[int, str]] = {}
    for path, each in _object(found.get("files"), "data.files").items():
        entry = _object(each, "data.files")
        size, digest = _number(entry.get("size"), "data.files"), _digest(entry.get("digest"), "data.files")
        files[_path(path) if path else ""] = size, digest
    return SealedData(_text(found, "name"), files)


def _path(path: str) -> str:
    """Return a path of the manifest when it stays inside the checkpoint and is none of the tool's own."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path or len(path) > 4096:
        raise ManifestError(f"the path {path[:80]!r} leads out of the checkpoint")
    if parts[0] == SIDECAR:
        raise ManifestError(f"the path {path[:80]!r} belongs to this tool")
    return path


def _of(kind: type, words: str) -> Callable[[Any, str], Any]:
    def checked(value: Any, where: str) -> Any:
        if not isinstance(value, kind):
            raise ManifestError(f"{where}: {words} is expected, not {type(value).__name__}")
        return value

    return checked


_object = _of(dict, "an object")
_list = _of(list, "a list")
_word = _of(str, "a text")


def _text(found: Mapping[str, Any], key: str) -> str:
    text: str = _word(found.get(key, ""), key)
    return text[:1000]


def _number(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < _MAX_SIZE:
        raise ManifestError(f"{where}: a number from 0 to 2**63 is expected")
    return value


def _digest(value: Any, where: str) -> str:
    text: str = _word(value, where)
    if not _DIGEST.match(text):
        raise ManifestError(f"{where}: {text[:80]!r} is no digest")
    return text
