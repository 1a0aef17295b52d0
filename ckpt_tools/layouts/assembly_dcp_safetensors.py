"""Tensors whose pieces lie in the safetensors files of many ranks, each header saying where its pieces belong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ckpt_tools.layouts.assembly import Assembly, hole_in, stored_nowhere
from ckpt_tools.layouts.assembly_dcp_fit import SILENT
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import Problem
from ckpt_tools.model.tensors import Chunk, TensorRef

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View


def assemble(view: View) -> Iterator[Assembly]:
    """Yield the assembly of a directory of such files."""
    if view.checkpoint.has(Role.CHUNKS):
        yield ShardedSafetensors(view, "torch.distributed.checkpoint")


class ShardedSafetensors(Assembly):
    """The pieces in such files; the whole shape of a tensor is as far as its pieces reach."""

    @cached_property
    def _pieces(self) -> Mapping[str, list[tuple[str, Chunk, str]]]:
        found: dict[str, list[tuple[str, Chunk, str]]] = {}
        for part in self.view.checkpoint.of(Role.CHUNKS):
            content = self.view.content(part)
            if content is None or not content.readable:
                continue
            places = _places(content.facts.get("metadata") or {})
            for name, ref in content.tensors.items():
                for chunk in ref.chunks:
                    offsets = places.get(name, (0,) * len(ref.shape))
                    if len(offsets) == len(ref.shape):
                        found.setdefault(name, []).append((part.path, chunk._replace(offsets=offsets), ref.dtype))
        return found

    @cached_property
    def weights(self) -> Mapping[str, TensorRef]:
        made: dict[str, TensorRef] = {}
        for name, pieces in self._pieces.items():
            ranks = {len(chunk.sizes) for _, chunk, _ in pieces}
            if len(ranks) == 1:
                ends = [map(sum, zip(chunk.offsets, chunk.sizes, strict=True)) for _, chunk, _ in pieces]
                shape = tuple(max(column) for column in zip(*ends, strict=True))
                chunks = {(chunk.offsets, chunk.sizes): chunk for _, chunk, _ in pieces}
                made[name] = TensorRef(name, pieces[0][2], shape, tuple(chunks.values()))
        return made

    @property
    def world_size(self) -> int | None:
        """The highest number in the names of the files: a rank that had nothing left none."""
        return max((part.rank for part in self.view.checkpoint.of(Role.CHUNKS) if part.rank), default=None)

    @property
    def problems(self) -> Iterator[tuple[str, Problem]]:
        holes = {name: hole for name, ref in self.weights.items() if (hole := hole_in(ref)) is not None}
        if holes:
            yield "", stored_nowhere(self.weights, holes, f"a rank's file is missing; {SILENT}")

    def learnt(self, part: Part, name: str) -> bool:
        return name in self._pieces

    @property
    def left_out(self) -> Iterator[tuple[str, str]]:
        yield "CK362", "whether the last ranks' files are all there: nothing in them says how many there were"


def _places(metadata: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return where the pieces of a file begin, as its header tells; nothing where it does not."""
    try:
        told = json.loads(metadata.get("DCP_SHARDING_INFO", "{}"))
    except (ValueError, RecursionError):
        return {}
    found: dict[str, tuple[int, ...]] = {}
    for name, entry in told.items() if isinstance(told, dict) else ():
        offsets = entry.get("saved_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list) and all(type(at) is int and 0 <= at < 1 << 62 for at in offsets):
            found[name] = tuple(offsets)
    return found
