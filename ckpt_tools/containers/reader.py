"""The one door to containers: a source goes in, what its bytes are comes out."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_tools.containers.base import Content
from ckpt_tools.containers.kinds import (
    COMPRESSED,
    KINDS,
    Look,
    describe,
    error_object,
    identify,
    lfs_promise,
    look,
    page_words,
    quote,
)
from ckpt_tools.core.source import BytesSource, Source
from ckpt_tools.model.findings import Problem

__all__ = ["KINDS", "READERS", "describe", "identify", "open", "read"]

_TORCH = frozenset({"torch-zip", "torch-legacy", "pickle"})


def _safetensors(source: Source) -> Content:
    from ckpt_tools.containers import safetensors

    return safetensors.read(source)


def _torch_zip(source: Source) -> Content:
    from ckpt_tools.containers import torch_zip

    return torch_zip.read(source)


def _torch_legacy(source: Source) -> Content:
    from ckpt_tools.containers import torch_legacy

    return torch_legacy.read(source)


def _bare_pickle(source: Source) -> Content:
    from ckpt_tools.containers import bare_pickle

    return bare_pickle.read(source)


def _dcp(source: Source) -> Content:
    from ckpt_tools.containers import dcp

    return dcp.read(source)


def _json(source: Source) -> Content:
    from ckpt_tools.containers import json_text

    return json_text.read(source)


def _json_lines(source: Source) -> Content:
    from ckpt_tools.containers import json_text

    return json_text.read_lines(source)


def _text(source: Source) -> Content:
    from ckpt_tools.containers import text

    return text.read(source)


def _hdf5(source: Source) -> Content:
    from ckpt_tools.containers import hdf5

    return hdf5.read(source)


def _keras_zip(source: Source) -> Content:
    from ckpt_tools.containers import keras_zip

    return keras_zip.read(source)


def _msgpack(source: Source) -> Content:
    from ckpt_tools.containers import msgpack

    return msgpack.read(source)


def _ocdbt(source: Source) -> Content:
    from ckpt_tools.containers import ocdbt

    return ocdbt.read(source)


def _tensor_bundle(source: Source) -> Content:
    from ckpt_tools.containers import tensor_bundle

    return tensor_bundle.read(source)


def _raw(source: Source) -> Content:
    return Content("raw", source.size)


READERS: tuple[tuple[str, Callable[[Source], Content]], ...] = (
    ("safetensors", _safetensors),
    ("torch-zip", _torch_zip),
    ("torch-legacy", _torch_legacy),
    ("pickle", _bare_pickle),
    ("dcp", _dcp),
    ("json", _json),
    ("jsonl", _json_lines),
    ("text", _text),
    ("hdf5", _hdf5),
    ("keras-zip", _keras_zip),
    ("msgpack", _msgpack),
    ("ocdbt", _ocdbt),
    ("tensor-bundle", _tensor_bundle),
    ("raw", _raw),
)
"""The kinds that are read, each with its reader."""


def read(source: Source, expected: tuple[str, ...] = ()) -> Content:
    """Return what ``source`` holds, as far as its bytes allow.

    Bad bytes are problems of the content, never an exception.  ``expected`` are the containers that loaders read
    under the file's name: it breaks ties (see ``kinds.identify``), and a file of another readable kind is read as
    what it is.  Kinds that are known and not read here (GGUF, ``.npy``) come back unreadable, and are a
    problem only where something else was expected.

    Raises:
        SourceError: the file could not be read, or changed while it was.
    """
    seen = look(source, expected)
    for kind, reader in READERS:
        if kind == seen.kind:
            return reader(source)
    problem = _problem(source, seen, expected)
    facts: dict[str, object] = {}
    if seen.kind == "git-lfs-pointer":
        facts["promised_size"], facts["oid"] = lfs_promise(seen.head)
    if seen.kind == "zeros":
        facts["looked"] = seen.looked
    return Content(seen.kind, source.size, readable=False, facts=facts, problems=(problem,) if problem else ())


SMALL = 1 << 16
"""What has up to this many bytes is read in one go, which is cheaper than looking at it in pieces."""


def open(window: Source, expected: tuple[str, ...] = ()) -> Content:
    """Return what a whole file, or a window of one, holds: ``read``, with few requests to the system for a small one.

    It is the door for a container that holds another.

    Raises:
        SourceError: the file could not be read, or changed while it was.
    """
    if window.size <= SMALL:
        window = BytesSource(window.read(0, window.size), window.name, window.base)
    return read(window, expected)


def _problem(source: Source, seen: Look, expected: tuple[str, ...]) -> Problem | None:
    size = f"{source.size:,} byte{'' if source.size == 1 else 's'}"
    detail: tuple[str, ...]
    advice = (
        ('torch.load advises "weights_only=False" for such a file; that cannot help and switches its safety off',)
        if _TORCH.intersection(expected) and seen.kind not in COMPRESSED
        else ()
    )
    match seen.kind:
        case "empty":
            return Problem("empty-file", "the file is empty (0 bytes)", help="copy the file again, or use another save")
        case "zeros":
            extent = "all of them" if seen.looked >= source.size else f"{seen.looked:,} of them, spread over the file,"
            detail = (f"has {size}; {extent} were looked at and are zero", "a crash before the data reached the disk?")
            return Problem(
                "zero-filled",
                "the file is filled with zeros",
                detail + advice,
                help="copy it again, or use another save",
            )
        case "git-lfs-pointer":
            return _pointer(size, seen.head, advice)
        case "html":
            words = page_words(seen.head)
            detail = (f"has {size}; it says: {words}",) if words else (f"has {size}",)
            return Problem(
                "web-page", "the file is a web page (HTML)", detail + advice, help="download the file itself again"
            )
        case "error-text":
            detail = (f"has {size}; it says: {_error_words(source, seen.head)}", *advice)
            return Problem(
                "error-text", "the file is a server's error message", detail, help="download the file itself again"
            )
        case "unknown":
            return Problem("unknown-bytes", "the file is of no kind that is known here", _first(seen, size) + advice)
        case kind if kind in COMPRESSED:
            return Problem(
                "compressed-file",
                f"the file is {describe(kind)}",
                (f"has {size}; loaders do not unpack it",),
                help=f"unpack it first: `{_UNPACK[kind]} FILE`",
            )
        case kind if expected and kind not in expected:
            return Problem("unknown-bytes", f"the file is {describe(kind)}, which is not read here", (f"has {size}",))
        case _:
            return None


_UNPACK = {
    "gzip": "gunzip",
    "zstd": "unzstd",
    "xz": "unxz",
    "bzip2": "bunzip2",
    "tar": "tar xf",
    "7z": "7z x",
    "rar": "unrar x",
}


def _pointer(size: str, head: bytes, advice: tuple[str, ...]) -> Problem:
    promised, oid = lfs_promise(head)
    lines = [
        f"has {size}; it promises {promised:,} bytes" if promised is not None else f"has {size}, and names no size"
    ]
    if oid:
        lines.append(f"the real file is {oid}")
    return Problem(
        "git-lfs-pointer",
        "the file is a git-lfs pointer, not the file it stands for",
        (*lines, *advice),
        help="`git lfs pull` fetches the real file",
    )


def _error_words(source: Source, head: bytes) -> str:
    value = error_object(source) if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else None
    for key, said in (value or {}).items():
        if key.lower() in ("error", "message", "msg", "detail") and isinstance(said, str):
            return quote(said)
    return quote(head.decode("utf-8", "replace"))


def _first(seen: Look, size: str) -> tuple[str, ...]:
    zeros = len(seen.head) - len(seen.head.lstrip(b"\0"))
    if zeros == len(seen.head):
        return (f"has {size}; begins with at least {zeros:,} zero bytes",)
    start = seen.head[:16]
    printable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in start)
    return (f"has {size}; begins with {start.hex(' ')} ({printable})",)
