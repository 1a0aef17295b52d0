"""The arrays of an Orbax item: named in ``_METADATA``, described further where each has a directory; not read."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from ckpt_tools.containers import array_chunk, reader
from ckpt_tools.containers.base import Content
from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.tensors import DTYPE_BITS
from ckpt_tools.model.values import Value, as_mapping

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View

PIECES = "in pieces of"
_ARRAYS = ("jax.Array", "np.ndarray", "scalar")
_DTYPE = re.compile(r"[<>|]([a-z])(\d{1,2})\Z")
_KINDS = {"f": "float", "i": "int", "u": "uint", "b": "bool", "c": "complex"}


class OrbaxAssembly(Assembly):
    """One item; ``tree`` is what its ``_METADATA`` says."""

    def __init__(self, view: View, place: str, tree: Mapping[str, Value]) -> None:
        super().__init__(view, "Orbax", place)
        self.tree = tree
        self.parts = {part.path: part for part in view.checkpoint.parts}

    @cached_property
    def outline(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for leaf in (as_mapping(self.tree.get("tree_metadata")) or {}).values():
            fields = as_mapping(leaf) or {}
            keys, value = fields.get("key_metadata"), as_mapping(fields.get("value_metadata")) or {}
            if value.get("value_type") in _ARRAYS and isinstance(keys, list):
                name = ".".join(str((as_mapping(key) or {}).get("key")) for key in keys)
                found[name] = self._described(name, value)
        return found

    def _described(self, name: str, value: Mapping[str, Value]) -> str:
        """Say type and shape, or where only the arrays' store knows them the shape of the pieces that were written."""
        array = self._array(posixpath.join(self.place, name))
        if array is not None:
            return f"{_dtype(array) or array.get('dtype', array.get('data_type'))} {array.get('shape')}"
        pieces = value.get("write_shape")
        return f"{PIECES} {pieces}" if pieces else str(value.get("value_type"))

    @property
    def described(self) -> Iterator[tuple[str, str]]:
        if self.outline:
            yield (
                f"arrays of {self.place}" if self.place else "arrays",
                f"{len(self.outline):,}, with values not read here",
            )

    @property
    def left_out(self) -> Iterator[tuple[str, str]]:
        if self.outline and self.view.data is not None:
            yield "CK4", f"{len(self.outline):,} arrays of {self.place or 'Orbax'}: they are compressed, and not read"

    def content(self, part: Part, *, everything: bool = False) -> Content | None:
        """Return a chunk of an array that has a directory; data files of OCDBT tell themselves what they are."""
        home, name = posixpath.split(part.path)
        array = self._array(home) if posixpath.dirname(home) == self.place else None
        if array is None or array.get("zarr_format") != 2 or not name[:1].isdigit():
            return None
        bits, sizes = DTYPE_BITS.get(_dtype(array) or ""), array.get("chunks")
        whole = isinstance(sizes, list) and all(type(size) is int and size >= 0 for size in sizes)
        expected = (
            prod(sizes) * bits // 8 if isinstance(sizes, list) and whole and bits and not array.get("filters") else None
        )
        compressor = as_mapping(array.get("compressor"))
        kind = None if compressor is None else str(compressor.get("id"))
        with self.view.listing.open(part.path) as source:
            found = reader.open(source, part.containers)
            if found.problems:
                return found
            wrong = array_chunk.problem(source, kind, expected, everything=everything)
        return Content("raw", part.stat.size, readable=wrong is None, problems=() if wrong is None else (wrong,))

    def _array(self, home: str) -> Mapping[str, Value] | None:
        for name in (".zarray", "zarr.json"):
            part = self.parts.get(f"{home}/{name}")
            content = self.view.content(part) if part is not None else None
            if content is not None and content.readable:
                return as_mapping(content.value)
        return None


def _dtype(array: Mapping[str, Value]) -> str | None:
    """Return the type as torch names it, None where that is not known."""
    stated = str(array.get("dtype", array.get("data_type")))
    match = _DTYPE.match(stated)
    if match is None:
        return stated if stated in DTYPE_BITS else None
    kind, size = _KINDS.get(match[1]), int(match[2])
    name = "bool" if kind == "bool" else f"{kind}{8 * size}"
    return name if name in DTYPE_BITS else None


def assemble(view: View) -> Iterator[Assembly]:
    """Yield an assembly for each item with a tree."""
    for part in view.checkpoint.of(Role.METADATA):
        home, name = posixpath.split(part.path)
        content = view.content(part) if name == "_METADATA" else None
        tree = as_mapping(content.value) if content is not None and content.readable else None
        if tree is not None:
            yield OrbaxAssembly(view, home, tree)
