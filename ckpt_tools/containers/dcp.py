"""Metadata of torch.distributed.checkpoint: which bytes of which data file every tensor and object is.

``.metadata`` is a pickle of one ``Metadata`` object, ``__<rank>.metadata`` the same for the chunks of one rank (saved
with ``use_collectives=False``).  torch loads both with plain ``pickle.load``; here nothing of them is built.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ckpt_tools.containers import pickle_stream
from ckpt_tools.containers.base import Content, FormatError, no_collection
from ckpt_tools.containers.pickle_dcp import BlockMeta, IndexMeta, PropertiesMeta, Shortcut, StorageMeta
from ckpt_tools.containers.pickle_names import several
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import Chunk, TensorRef
from ckpt_tools.model.values import Opaque, Pairs, Value, as_mapping

_LOCAL = re.compile(r"__(\d+)\.metadata\Z")
_OUTSIDE = re.compile(r"[/\\~]|[A-Za-z]:|.*(?:^|[/\\])\.\.(?:[/\\]|\Z)|.*\x00", re.DOTALL)
_OWN = ("state_dict_metadata", "planner_data", "storage_data", "storage_meta", "version")
_ROOTS = ("Metadata", "MCoreMetadata")
MAX_NUMBER = 1 << 62


def read(source: Source) -> Content:
    """Return what a metadata file says; bad bytes are problems, never an exception.

    ``tensors`` have one chunk for each stored block; an extent is that of a whole blob in a data file.  Of ``facts``,
    ``items`` gives the extents of objects that are no tensors by FQN, ``planner`` the path of every FQN in the nested
    dictionary (None where it was not flattened), ``transforms`` the descriptors of what blobs went through with the
    number of blobs, ``changed`` those of objects by FQN, ``unplaced`` the tensors with chunks that lie nowhere,
    ``rank`` the rank whose chunks alone these are, ``extra`` the attributes that torch does not know.

    Raises:
        SourceError: the file could not be read.
    """
    size = source.size
    large = pickle_stream.too_large(size)
    if large is not None:
        return Content("dcp", size, readable=False, problems=(large,))
    with no_collection():
        try:
            result = _decoded(source.read(0, size))
        except FormatError as error:
            return Content("dcp", size, readable=False, problems=(_unread(error, source),))
        found = _Metadata(source.name)
        facts: dict[str, Any] = {"protocol": result.protocol}
        root = result.value
        state = as_mapping(root.state) if isinstance(root, Opaque) else None
        if state is None or not isinstance(root, Opaque) or root.qualname.rpartition(".")[2] not in _ROOTS:
            what = root.qualname if isinstance(root, Opaque) else f"a value of type {type(root).__name__}"
            lines = (f"it is {what}", "torch.distributed.checkpoint asks it for state_dict_metadata, and stops")
            invalid = Problem("dcp-metadata-invalid", "the pickle holds no metadata of a checkpoint", lines)
            problems = (invalid, *result.problems)
            return Content("dcp", size, False, root, globals=result.globals, facts=facts, problems=problems)
        found.fill(state)
        facts |= found.facts
        rank = _LOCAL.search(source.name)
        facts["rank"] = int(rank[1]) if rank else None
        problems = (*result.problems, *found.problems())
        value = {"version": facts["version"], "storage_meta": state.get("storage_meta")}
        return Content("dcp", size, True, value, found.tensors, (), result.globals, facts, problems)


def _decoded(data: bytes) -> pickle_stream.PickleResult:
    try:
        return pickle_stream.read(data, shortcut=Shortcut())
    except FormatError:
        return pickle_stream.read(data)  # what is damaged, or refers to what the short cut left out


def _unread(error: FormatError, source: Source) -> Problem:
    if isinstance(error, pickle_stream.CutError):
        cut = (f"has {source.size:,} bytes, and the pickle goes on", 'torch stops with "pickle data was truncated"')
        return Problem("file-cut-short", "the file is cut short", cut, error.problem.at)
    return replace(error.problem, at=Spot(offset=source.base + (error.problem.at.offset or 0)))


class _Metadata:
    """The two maps of a metadata file, while they are being joined."""

    def __init__(self, path: str) -> None:
        self.home = posixpath.dirname(path)
        self.facts: dict[str, Any] = {}
        self.tensors: dict[str, TensorRef] = {}
        self.items: dict[str, Extent] = {}
        self.stored: dict[tuple[str, tuple[int, ...] | None], StorageMeta] = {}
        self.transforms: dict[str, int] = {}
        self.changed: dict[str, str] = {}
        self.unplaced: set[str] = set()
        self.outside: dict[str, None] = {}
        self.invalid: list[str] = []
        self.twice: list[str] = []
        self.unstored: list[str] = []
        self.stray: list[str] = []

    def fill(self, state: Mapping[Any, Value]) -> None:
        """Join what is described with where it is stored."""
        described, stored = _pairs(state.get("state_dict_metadata")), _pairs(state.get("storage_data"))
        if described is None or stored is None:
            lost = "state_dict_metadata" if described is None else "storage_data"
            self.invalid.append(f"{lost} is no dictionary")
        self._index(stored or ())
        for fqn, value in described or ():
            if isinstance(fqn, str):
                self._describe(fqn, value)
            else:
                self.invalid.append("a name is no text")
        self.stray += sorted({fqn for fqn, _ in self.stored})
        planner = as_mapping(state.get("planner_data"))
        version = state.get("version")
        self.facts |= {
            "items": self.items,
            "planner": {key: path for key, path in planner.items() if _is_path(path)} if planner else None,
            "version": version if isinstance(version, str) else None,
            "transforms": self.transforms,
            "changed": self.changed,
            "unplaced": self.unplaced,
            "extra": tuple(str(key) for key in state if key not in _OWN),
            **_meta(state.get("storage_meta")),
        }

    def _index(self, pairs: Iterator[tuple[Value, Value]] | tuple[()]) -> None:
        stored = self.stored
        for key, value in pairs:
            index = key if type(key) is IndexMeta else _index_of(key)
            info = value if type(value) is StorageMeta else _storage_of(value)
            if index is None or info is None:
                self.invalid.append("an entry of storage_data has another form")
                continue
            place = (index.fqn, index.offsets)
            if place in stored:
                self.twice.append(index.fqn)
            stored[place] = info

    def _describe(self, fqn: str, value: Value) -> None:
        kind = value.qualname.rpartition(".")[2] if isinstance(value, Opaque) else ""
        if kind == "BytesStorageMetadata":
            info = self.stored.pop((fqn, None), None)
            extent = self._extent(info) if info is not None else None
            if extent is not None and info is not None:
                self.items[fqn] = extent
                if info.transforms:
                    self.changed[fqn] = info.transforms[0]
            elif info is None:
                self.unstored.append(fqn)
            return
        fields = as_mapping(value.state) if kind == "TensorStorageMetadata" else None
        shape, blocks = _whole_numbers((fields or {}).get("size")), (fields or {}).get("chunks")
        dtype = _dtype_of((fields or {}).get("properties"))
        if fields is None or shape is None or dtype is None or not isinstance(blocks, list):
            self.invalid.append(f"the entry of {fqn} has another form")
            return
        chunks: list[Chunk] = []
        missing = False
        for block in blocks:
            made = block if type(block) is BlockMeta else _block_of(block)
            if made is None or len(made.offsets) != len(shape) or len(made.sizes) != len(shape):
                self.invalid.append(f"a chunk of {fqn} has another form")
                continue
            info = self.stored.pop((fqn, made.offsets), None)
            if info is None:
                missing = True
                continue
            extent = self._extent(info)
            if extent is None:
                self.unplaced.add(fqn)
            else:
                inside = info.transforms[0] if info.transforms else "torch-zip"
                chunks.append(Chunk(made.offsets, made.sizes, extent, inside=inside))
        if missing:
            self.unstored.append(fqn)
            self.unplaced.add(fqn)
        self.tensors[fqn] = TensorRef(fqn, dtype, shape, tuple(chunks))

    def _extent(self, info: StorageMeta) -> Extent | None:
        if _OUTSIDE.match(info.path):
            self.outside[info.path] = None
            return None
        for name in info.transforms:
            self.transforms[name] = self.transforms.get(name, 0) + 1
        path = posixpath.join(self.home, posixpath.normpath(info.path)) if self.home else posixpath.normpath(info.path)
        return Extent(path, info.offset, info.length)

    def problems(self) -> Iterator[Problem]:
        """Yield what makes no sense in the file by itself."""
        stops = "torch.distributed.checkpoint stops at it"
        if self.invalid:
            kinds = list(dict.fromkeys(self.invalid))
            yield Problem("dcp-metadata-invalid", "parts of the metadata have another form", (several(kinds), stops))
        if self.unstored:
            detail = (several(self.unstored), "a load stops at them")
            message = f"{_some(self.unstored)} described, and no data file is named for all of it"
            yield Problem("dcp-maps-differ", message, detail, Spot(tensor=self.unstored[0]))
        if self.stray:
            detail = (
                several(self.stray),
                "they are in storage_data and not in state_dict_metadata; no load finds them",
            )
            message = f"{_some(self.stray)} stored, and not described as that"
            yield Problem("dcp-maps-differ", message, detail, Spot(tensor=self.stray[0]))
        if self.twice:
            detail = (several(self.twice), "torch reads one of them")
            yield Problem("dcp-maps-differ", "pieces are stored twice", detail, Spot(tensor=self.twice[0]))
        if self.outside:
            detail = (several(repr(path)[:200] for path in self.outside), "nothing outside was opened")
            message = "the metadata names files outside of the directory"
            yield Problem("dcp-path-outside", message, detail)


def _is_path(value: Value) -> bool:
    return isinstance(value, tuple) and all(type(step) in (str, int) for step in value)


def _some(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{len(names):,} names are"


def _pairs(value: Value) -> Iterator[tuple[Value, Value]] | None:
    if isinstance(value, Pairs):
        return iter(value.pairs)
    found = as_mapping(value)
    return iter(found.items()) if found is not None else None


def _state(value: Value, name: str) -> Mapping[Any, Value] | None:
    if isinstance(value, Opaque) and value.qualname.rpartition(".")[2] == name:
        return as_mapping(value.state)
    return None


def _whole_numbers(value: Value) -> tuple[int, ...] | None:
    if not isinstance(value, tuple | list) or len(value) > 64:
        return None
    return tuple(value) if all(type(size) is int and 0 <= size < MAX_NUMBER for size in value) else None


def _block_of(value: Value) -> BlockMeta | None:
    state = _state(value, "ChunkStorageMetadata") or {}
    offsets, sizes = _whole_numbers(state.get("offsets")), _whole_numbers(state.get("sizes"))
    return BlockMeta(offsets, sizes) if offsets is not None and sizes is not None else None


def _index_of(value: Value) -> IndexMeta | None:
    state = _state(value, "MetadataIndex") or {}
    fqn, offset = state.get("fqn"), state.get("offset")
    offsets = None if offset is None else _whole_numbers(offset)
    if not isinstance(fqn, str) or (offset is not None and offsets is None):
        return None
    return IndexMeta(fqn, offsets)


def _storage_of(value: Value) -> StorageMeta | None:
    state = _state(value, "_StorageInfo") or {}
    path, offset, length = state.get("relative_path"), state.get("offset"), state.get("length")
    if not isinstance(path, str) or not path or _whole_numbers((offset, length)) is None:
        return None
    transforms = state.get("transform_descriptors")
    names = tuple(str(name) for name in transforms) if isinstance(transforms, list | tuple) else ()
    return StorageMeta(path, int(offset or 0), int(length or 0), names)


def _dtype_of(value: Value) -> str | None:
    if type(value) is PropertiesMeta:
        return value.dtype
    state = value.state if isinstance(value, Opaque) else None
    first = state[0] if isinstance(state, tuple) and state else (as_mapping(state) or {}).get("dtype")
    return first.qualname.removeprefix("torch.") if isinstance(first, Opaque) else None


def _meta(value: Value) -> dict[str, str | None]:
    """Return who and where the save was, as far as it is told; the place is stale once the directory was moved."""
    state = _state(value, "StorageMeta") or {}
    save, place = state.get("save_id"), state.get("checkpoint_id")
    if isinstance(place, Opaque):
        place = posixpath.join(*(part for part in place.args if isinstance(part, str)), "").rstrip("/")
    return {
        "save_id": save if isinstance(save, str) else None,
        "checkpoint_id": place if isinstance(place, str) else None,
    }
