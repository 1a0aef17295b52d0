"""The tensors of a TensorFlow checkpoint: described by its index, stored in its shards."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from ckpt_tools.containers.base import Content, Record
from ckpt_tools.containers.kinds import printable
from ckpt_tools.containers.tensor_bundle import OPAQUE, Entry
from ckpt_tools.core.source import Extent
from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.model.checkpoint import Part, Role, Slot
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import DTYPE_BITS, Chunk, TensorRef

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_GROUP = re.compile(r"(.+)\.(?:index|data-\d+-of-\d+)\Z")
_KERAS = re.compile(r"optimizer/(?!_trainable_variables/)")
"""Keras 3 keeps the model's weights below its optimizer too, and this shortest path names them."""

_NUMBERS = {
    "step": "step",
    "global_step": "step",
    "optimizer/_iterations": "optimizer-step",
    "optimizer/iter": "optimizer-step",
    "optimizer/_learning_rate": "lr",
    "optimizer/learning_rate": "lr",
}
_COUNTERS = frozenset({"step", "global_step", "save_counter"})
_STRING = "checksums of text tensors are over more than their bytes"


def stem(name: str) -> str | None:
    """Return the prefix of the checkpoint that a file belongs to, None for any other file."""
    match = _GROUP.match(name)
    return match.group(1) if match else None


class BundleAssembly(Assembly):
    """The tensors of an index in the shards that are there."""

    def __init__(self, view: View, content: Content) -> None:
        super().__init__(view, "TensorFlow")
        self.index = content
        self.shards = {part.shard[0]: part for part in view.checkpoint.of(Role.CHUNKS) if part.shard}

    @cached_property
    def by_shard(self) -> Mapping[int, list[Entry]]:
        found: dict[int, list[Entry]] = defaultdict(list)
        for entry in self.index.facts["entries"]:
            if not entry.slices:
                found[entry.shard].append(entry)
        return found

    @property
    def weights(self) -> Mapping[str, TensorRef]:
        return {name: ref for name, ref in self._tensors.items() if name not in _COUNTERS and not _of_optimizer(name)}

    @property
    def optimizer_tensors(self) -> Mapping[str, TensorRef]:
        return {name: ref for name, ref in self._tensors.items() if _of_optimizer(name)}

    @cached_property
    def _tensors(self) -> Mapping[str, TensorRef]:
        return {
            ref.fqn: ref
            for shard, part in self.shards.items()
            for entry in self.by_shard.get(shard, ())
            if (ref := self._tensor(entry, part)) is not None
        }

    def _tensor(self, entry: Entry, part: Part) -> TensorRef | None:
        if entry.dtype in OPAQUE:
            return None
        inside = entry.offset + entry.size <= part.stat.size
        fits = inside and _bytes(entry) == entry.size
        extent = Extent(part.path, entry.offset, entry.size)
        order = self.index.facts["byteorder"]
        chunk = Chunk((0,) * len(entry.shape), entry.shape, extent, byteorder=order)
        return TensorRef(_plain(entry.name), entry.dtype, entry.shape, (chunk,) if fits else ())

    @property
    def slots(self) -> Iterator[Slot]:
        """Under the names of Keras's optimizers; which variable holds the step is the user's choice."""
        for name, quantity in _NUMBERS.items():
            ref = self._tensors.get(name)
            if ref is not None and ref.chunks:
                part = next(part for part in self.shards.values() if part.path == ref.chunks[0].extent.path)
                yield Slot(quantity, part, name, self.view.scalar(ref), editable=False)

    def content(self, part: Part, *, everything: bool = False) -> Content | None:
        """Return what the index says of a shard: tensors, and their checksums as records."""
        if part.shard is None:
            return None
        entries = self.by_shard.get(part.shard[0], [])
        size = part.stat.size
        tensors = {ref.fqn: ref for entry in entries if (ref := self._tensor(entry, part)) is not None}
        inside = [entry for entry in entries if entry.offset + entry.size <= size]
        records = tuple(
            Record(_plain(entry.name), Extent(part.path, entry.offset, entry.size), entry.crc32c)
            for entry in inside
            if entry.dtype not in OPAQUE and entry.size
        )
        facts = {
            "checksum": "crc32c",
            "unchecked": tuple((entry.name, _STRING) for entry in inside if entry.dtype in OPAQUE),
        }
        return Content(
            "raw", size, tensors=tensors, records=records, facts=facts, problems=tuple(_short(entries, size))
        )


def _bytes(entry: Entry) -> int:
    return prod(entry.shape) * DTYPE_BITS.get(entry.dtype, 0) // 8


def _short(entries: list[Entry], size: int) -> Iterator[Problem]:
    needed = max((entry.offset + entry.size for entry in entries), default=0)
    if needed > size:
        lost = sorted((entry for entry in entries if entry.offset + entry.size > size), key=lambda entry: entry.offset)
        some = f"{len(lost):,} of {len(entries):,} tensors {'is' if len(lost) == 1 else 'are'} incomplete"
        yield Problem(
            "file-cut-short",
            "the file is cut short",
            (f"the index accounts for {needed:,} bytes, has {size:,}", f"{some}; first `{printable(lost[0].name)}`"),
            Spot(tensor=_plain(lost[0].name), offset=size),
        )
    elif needed < size and entries:
        detail = (f"the index accounts for {needed:,} bytes, the file has {size:,}", "nothing reads what follows")
        yield Problem("bundle-data-longer", "the file is longer than the index says", detail, Spot(offset=needed))


def _plain(name: str) -> str:
    """Return a variable's name without what TensorFlow appends to every one."""
    return name.removesuffix(_SUFFIX)


def _of_optimizer(name: str) -> bool:
    return _SLOT in name or _KERAS.match(name) is not None


def assemble(view: View) -> Iterator[Assembly]:
    """Yield the assembly of a prefix whose index can be read."""
    for part in view.checkpoint.of(Role.METADATA):
        content = view.content(part)
        if content is not None and content.readable and content.container == "tensor-bundle":
            yield BundleAssembly(view, content)
