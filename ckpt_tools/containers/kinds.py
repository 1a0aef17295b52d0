"""What a file is, told by its bytes and never by its suffix."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ckpt_tools.core.source import Source

KINDS: dict[str, str] = {
    "empty": "an empty file",
    "zeros": "a file of zero bytes only",
    "git-lfs-pointer": "a git-lfs pointer",
    "html": "a web page (HTML)",
    "error-text": "a server's error message",
    "safetensors": "a safetensors file",
    "torch-zip": "a PyTorch file (torch.save)",
    "torch-legacy": "an old PyTorch file (torch.save before 1.6)",
    "torchscript": "a TorchScript archive (torch.jit.save)",
    "npz": "a NumPy archive (.npz)",
    "zip": "a zip archive that PyTorch did not write",
    "pickle": "a Python pickle",
    "dcp": "metadata of torch.distributed.checkpoint",
    "distcp": "a data file of torch.distributed.checkpoint",
    "json": "a JSON file",
    "jsonl": "a JSON lines file",
    "text": "a text file",
    "gzip": "a gzip-compressed file",
    "zstd": "a Zstandard-compressed file",
    "xz": "an xz-compressed file",
    "bzip2": "a bzip2-compressed file",
    "tar": "a tar archive",
    "7z": "a 7-Zip archive",
    "rar": "a RAR archive",
    "hdf5": "an HDF5 file",
    "keras-zip": "a Keras archive (.keras)",
    "msgpack": "a msgpack file (Flax)",
    "ocdbt": "an OCDBT store's own file (Orbax)",
    "tensor-bundle": "the index of a TensorFlow checkpoint",
    "raw": "plain bytes of tensors",
    "gguf": "a GGUF file (llama.cpp)",
    "npy": "a NumPy array (.npy)",
    "unknown": "a file of no kind that is known here",
}
"""Every kind with what it is called in a sentence: ``this is a PyTorch file (torch.save)``."""

COMPRESSED = frozenset({"gzip", "zstd", "xz", "bzip2", "tar", "7z", "rar"})
TEXTUAL = ("json", "jsonl", "text")

PAGE = 4096
ZERO_WHOLE = 1 << 20
"""Files up to this size are read wholly before they are called zero-filled; of larger ones, pages are looked at."""

HEADER_LIMIT = 100_000_000

_MAGIC: tuple[tuple[str, bytes], ...] = (
    ("torch-zip", b"PK\x03\x04"),
    ("torch-zip", b"PK\x05\x06"),
    ("gzip", b"\x1f\x8b"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
    ("xz", b"\xfd7zXZ\x00"),
    ("7z", b"7z\xbc\xaf\x27\x1c"),
    ("rar", b"Rar!\x1a\x07"),
    ("hdf5", b"\x89HDF\r\n\x1a\n"),
    ("ocdbt", b"\x0c\xdb\x3a\x2a"),
    ("npy", b"\x93NUMPY"),
)
_OCDBT_NODE = b"\x0c\xdb\x20\xde"
_BUNDLE_END = bytes.fromhex("57fb808b247547db")
_MSGPACK = re.compile(
    rb"(?:[\x81-\x8f]|\xde..|\xdf.{4})"  # a map with something in it ...
    rb"(?:[\xa4-\xbf]|\xd9.)[A-Za-z_]{4}",  # ... whose first key is a name
    re.DOTALL,
)
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90|\Z)")
_LEGACY = re.compile(
    rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\x0a\x6c\xfc\x9c\x46"
    rb"|\x80.\x8a\x0a.{10}\.\x80"  # a damaged magic number: no pickle but torch's is one integer of ten bytes
    rb"|.{1,40}?\.\x80\x02M\xe9\x03\.",
    re.DOTALL,
)
_DCP = re.compile(
    rb"\x80[\x02-\x05](?:\x95.{8})?"
    rb"(?:\x8c.torch\.distributed\.checkpoint\.metadata\x94\x8c\x08Metadata|ctorch\.distributed\.checkpoint\.metadata\nMetadata\n"
    rb"|\x8c.megatron\.core\.dist_checkpointing\.strategies\.torch\x94\x8c\x0dMCoreMetadata)",
    re.DOTALL,
)
_LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46"
_LFS = re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/|version http://git-media\.io/v/")
_HTML = re.compile(r"<(?:!doctype\s+html|html|head|body|title|meta|script|style|div|h[1-6]|p|center)\b", re.IGNORECASE)
_WEB_PAGE = re.compile(rb"\s*<!doctype html\b", re.IGNORECASE)
_XML_PROLOGUE = re.compile(r"(?:\s*(?:<\?[^>]*\?>|<!--.*?-->))*\s*", re.DOTALL)
_XML_ERROR = re.compile(r"<(?:\w+:)?(?:Error|ErrorResponse|ListBucketResult)\b")
_ERROR_KEYS = frozenset(
    {
        *("error", "errors", "error_code", "error_description", "errorcode", "errormessage", "message", "msg"),
        *("status", "status_code", "statuscode", "code", "detail", "details", "title", "type", "success"),
        *("documentation_url", "url", "path", "timestamp", "request_id", "requestid", "traceid"),
    }
)
_JSON = re.compile(r'\{\s*(?:["}]|\Z)|\[\s*(?:[\[{"\d\]-]|true\b|false\b|null\b|NaN\b|\Z)')
_PHRASES = re.compile(
    r"(?:entry|file|page|repository|repo|revision|object|model)?\s*not found\b|access (?:to .{1,200} )?(?:is )?"
    r"(?:denied|restricted)|forbidden\b|unauthori[sz]ed|invalid (?:username|credentials|token|rev)|[45]\d\d[ :]|"
    r"(?:http|server) error|error\b|internal (?:server )?error|(?:bad|too many) (?:gateway|requests?)|"
    r"service unavailable|no such (?:key|file)|rate limit|request (?:has )?expired|gateway time-?out",
    re.IGNORECASE,
)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_ERROR_TEXT_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class Look:
    """What a first look at a file gave: its kind, its first bytes, and what they say of themselves.

    ``looked`` counts the bytes behind the verdict ``zeros``.
    """

    kind: str
    head: bytes = b""
    looked: int = 0


def describe(kind: str) -> str:
    """Return what a kind is called in a sentence: ``a PyTorch file (torch.save)``."""
    return KINDS.get(kind, f"a {kind} file")


def identify(source: Source, expected: tuple[str, ...] = ()) -> str:
    """Return the kind of ``source`` (see ``KINDS``) from its first bytes.

    ``expected`` are the containers that loaders read under the file's name.  It breaks ties only: whether a short
    text is an error message, and whether bytes too damaged to tell were meant to be safetensors or text.
    """
    return look(source, expected).kind


def look(source: Source, expected: tuple[str, ...] = ()) -> Look:
    """Identify ``source`` and keep the bytes that were read for it."""
    head = source.read(0, PAGE)
    if not head:
        return Look("empty")
    if "raw" in expected:
        return _raw(source, head, expected)
    if not head.strip(b"\0"):
        looked = _zeros(source)
        if looked:
            return Look("zeros", head, looked)
    kind = _by_magic(head, source.size, expected) or _by_text(source, head, expected)
    if kind == "unknown":
        kind = "tensor-bundle" if _is_bundle(source, expected) else kind
    if kind in COMPRESSED and "distcp" in expected:
        kind = "distcp"  # a save may compress each piece by itself
    return Look(kind, head)


def _raw(source: Source, head: bytes, expected: tuple[str, ...]) -> Look:
    """Tensors may be all zero, but for those of an OCDBT store, which are compressed; few beginnings tell the rest."""
    looked = _zeros(source) if "ocdbt" in expected and not head.strip(b"\0") else 0
    if looked:
        return Look("zeros", head, looked)
    if head.startswith(_OCDBT_NODE):
        return Look("ocdbt", head)
    return Look("git-lfs-pointer" if _LFS.match(head) else "html" if _WEB_PAGE.match(head) else "raw", head)


def _is_bundle(source: Source, expected: tuple[str, ...]) -> bool:
    """The index of a TensorFlow checkpoint is told by its end, which a cut one has not."""
    return "tensor-bundle" in expected or source.read(max(0, source.size - 8), 8) == _BUNDLE_END


def _zeros(source: Source) -> int:
    """Return the number of bytes looked at when all of them are zero, else 0."""
    if source.size <= ZERO_WHOLE:
        return source.size if all(piece == bytes(len(piece)) for piece in source.chunks()) else 0
    places = [source.size - PAGE, *(source.size * part // 8 for part in range(1, 8))]
    for place in places:
        if source.read(place, PAGE).strip(b"\0"):
            return 0
    return PAGE * (len(places) + 1)


def _by_magic(head: bytes, size: int, expected: tuple[str, ...]) -> str | None:
    # First of all: a header's length may look like anything, 1,152 bytes like a pickle of protocol 4.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER_LIMIT:
        return "safetensors"
    for kind, magic in _MAGIC:
        if head.startswith(magic):
            return "keras-zip" if kind == "torch-zip" and "keras-zip" in expected else kind
    if _is_msgpack(head, expected):
        return "msgpack"
    if _LEGACY.match(head):
        return "torch-legacy"
    if head[0] == 0x80 and (size == 1 or 2 <= head[1] <= 5) and (size > 1 or "pickle" in expected):
        if "dcp" in expected or _DCP.match(head):
            return "dcp"
        return "torch-legacy" if size < 8 and size > 2 and _LEGACY_START.startswith(head) else "pickle"
    if _BZIP2.match(head):
        return "bzip2"
    if head.startswith(b"GGUF") and (size < 8 or head[4:8].count(0) >= 2):
        return "gguf"
    if head[257:262] == b"ustar":
        return "tar"
    if size < 4 and b"PK\x03\x04".startswith(head) and "torch-zip" in expected:
        return "torch-zip"
    return "safetensors" if _is_safetensors(head, size, expected) else None


def _is_msgpack(head: bytes, expected: tuple[str, ...]) -> bool:
    if "msgpack" in expected and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return True
    return _MSGPACK.match(head) is not None


def _is_safetensors(head: bytes, size: int, expected: tuple[str, ...]) -> bool:
    hoped = "safetensors" in expected
    if size < 8:
        return hoped and as_text(head, more=False) is None
    length = int.from_bytes(head[:8], "little")
    opening = head[8:].lstrip(b" \t\r\n")
    if length <= HEADER_LIMIT:
        return opening.startswith(b"{") or hoped
    return re.match(rb'\{\s*"', opening) is not None and (_CONTROL.search(head[:8]) is not None or max(head[:8]) > 0x7F)


def _by_text(source: Source, head: bytes, expected: tuple[str, ...]) -> str:
    hoped = next((kind for kind in expected if kind in TEXTUAL), None)
    text = as_text(head, source.size > len(head))
    if text is None:
        return hoped or "unknown"
    if _LFS.match(head):
        return "git-lfs-pointer"
    if hoped == "text":
        return hoped
    bare = text.lstrip()
    if bare.startswith("<"):
        return _markup(bare, expected)
    if _JSON.match(bare):
        return _json(source, bare, hoped, expected)
    if hoped:
        return hoped
    if source.size <= _ERROR_TEXT_LIMIT and (expected or _PHRASES.match(bare)):
        return "error-text"
    return "text"


def as_text(head: bytes, more: bool) -> str | None:
    """Return the first bytes of a file as text, None when they are none; ``more`` says that the file goes on."""
    if _CONTROL.search(head):
        return None
    try:
        return head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if more and error.start >= len(head) - 3:
            return head[: error.start].decode("utf-8-sig")
    return None


def _markup(bare: str, expected: tuple[str, ...]) -> str:
    prologue = _XML_PROLOGUE.match(bare)
    body = bare[prologue.end() :] if prologue else bare
    if _HTML.match(body):
        return "html"
    if _XML_ERROR.match(body):
        return "error-text"
    return "html" if expected and re.search(r"<(?:html|head|body)\b", body, re.IGNORECASE) else "text"


def _json(source: Source, bare: str, hoped: str | None, expected: tuple[str, ...]) -> str:
    if bare.startswith("{") and source.size <= _ERROR_TEXT_LIMIT and error_object(source) is not None:
        return "error-text"
    if hoped and not {"json", "jsonl"} <= set(expected):
        return hoped
    line, newline, rest = bare.partition("\n")
    if newline and rest.strip():
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return "json"
        return "jsonl"
    return "json"


def error_object(source: Source) -> dict[str, Any] | None:
    """Return the JSON object of a server's error answer, None when the file is none."""
    try:
        value = json.loads(source.read(0, _ERROR_TEXT_LIMIT))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not {key.lower() for key in value} <= _ERROR_KEYS:
        return None
    says = any(key.lower() in ("error", "errors", "message", "msg", "detail") for key in value)
    return value if says else None


def lfs_promise(head: bytes) -> tuple[int | None, str | None]:
    """Return the size and the object id (``sha256:...``) that a git-lfs pointer promises."""
    size = re.search(rb"^size (\d{1,20})\s*$", head, re.MULTILINE)
    oid = re.search(rb"^oid (sha256:[0-9a-f]{64})\s*$", head, re.MULTILINE)
    return (int(size[1]) if size else None), (oid[1].decode() if oid else None)


def page_words(head: bytes, limit: int = 80) -> str:
    """Return a web page's title, or its first words."""
    text = head.decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
    if title and title[1].strip():
        return quote(title[1], limit)
    text = re.sub(r"(?is)<(script|style)\b.*?(?:</\1>|\Z)", " ", text)
    return quote(re.sub(r"<[^>]*(?:>|\Z)", " ", text), limit)


def quote(text: str, limit: int = 80) -> str:
    """Return text of a file fit for a message: one line, printable, and not long."""
    line = " ".join(text.split())
    line = "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in line[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit]}..."


def printable(text: str, limit: int = 200) -> str:
    """Return a name or a value of a file as one line that can be told apart: what cannot be printed is escaped."""
    short = text if len(text) <= limit else f"{text[:limit]}..."
    return short if short.isprintable() else short.encode("unicode_escape").decode("ascii")


def typed(value: Any) -> str:
    """Say what a JSON value is, with the value where it is short."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return f"the number {clipped(value)}"
        case float():
            return f"the number {value!r}"
        case str():
            return f'the text "{printable(value, 40)}"'
        case list():
            return "a list"
        case _:
            return "an object"


def clipped(number: int) -> str:
    """Return a number with separators, or how long it is when nobody would read it."""
    return f"{number:,}" if abs(number) < 10**30 else "a number of more than 30 digits"
