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
from ckpt_tools.containers.tensor_bundle import OPAQUE, STRING, Entry, varint
from ckpt_tools.core.crc32c import POLYNOMIAL, crc32c
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
_OPTIMIZER = re.compile(r"((?:.+/)?[^/]+)/(?:_iterations|iter)\Z")
"""What every optimizer of Keras has, under the name that the user gave it."""

_WEIGHTS = "_trainable_variables/"
"""Keras 3 keeps the model's weights below its optimizer too, and this shortest path names them."""

_STEPS = ("step", "global_step")
_NUMBERS = {"_iterations": "optimizer-step", "iter": "optimizer-step", "_learning_rate": "lr", "learning_rate": "lr"}
_COUNTED = ("int32", "int64")
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_COUNTER = f"save_counter{_SUFFIX}"
_OTHER = "how the checksum of such a tensor is made is not known here"
_LONGEST = (1 << 64) - 1
_MOST_TEXTS = 1 << 16
"""Texts of one tensor whose lengths are read, since the checksum is over these too."""


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
        return {name: ref for name, ref in self._tensors.items() if not (self._of_optimizer(name) or _is_counter(ref))}

    @property
    def optimizer_tensors(self) -> Mapping[str, TensorRef]:
        return {name: ref for name, ref in self._tensors.items() if self._of_optimizer(name)}

    @property
    def other_tensors(self) -> Mapping[str, TensorRef]:
        known = self._tensors.items()
        return {name: ref for name, ref in known if _is_counter(ref) and not self._of_optimizer(name)}

    @cached_property
    def _optimizers(self) -> tuple[str, ...]:
        """The names of the optimizers, each with what ends it."""
        found = (_OPTIMIZER.match(name) for name, ref in self._tensors.items() if _is_counter(ref))
        return tuple(f"{match[1]}/" for match in found if match)

    def _of_optimizer(self, name: str) -> bool:
        owners = (owner for owner in self._optimizers if name.startswith(owner))
        return _SLOT in name or any(not name.removeprefix(owner).startswith(_WEIGHTS) for owner in owners)

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
        of_optimizers = ((owner + name, quantity) for owner in self._optimizers for name, quantity in _NUMBERS.items())
        for name, quantity in (*((name, "step") for name in _STEPS), *of_optimizers):
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
        texts = [self._text(entry, part) for entry in inside if entry.dtype in OPAQUE] if everything else []
        records += tuple(each for each in texts if isinstance(each, Record))
        unchecked = tuple((each.name, _OTHER) for each in texts if isinstance(each, Entry))
        facts = {"checksum": "crc32c", "unchecked": unchecked}
        return Content(
            "raw", size, tensors=tensors, records=records, facts=facts, problems=tuple(_short(entries, size))
        )

    def _text(self, entry: Entry, part: Part) -> Record | Entry:
        """Return the bytes of a tensor of texts as a record, the entry itself where the checksum cannot be told.

        There are the lengths, their own checksum, and the texts.  The stored checksum is over the lengths as numbers of
        a fixed width and over the rest as it is, so that the one of this rest follows from it.
        """
        count = prod(entry.shape)
        if entry.dtype != STRING or count > _MOST_TEXTS or not entry.size:
            return entry
        from ckpt_tools.numerics.crc import combine

        with self.view.listing.open(part.path) as source:
            raw = source.read(entry.offset, min(entry.size, 10 * count))
        order = self.index.facts["byteorder"]
        at, lengths = 0, bytearray()
        for _ in range(count):
            try:
                length, at = varint(raw, at)
            except ValueError:
                break
            lengths += (length & _LONGEST).to_bytes(4 if length < 1 << 32 else 8, order)
        rest = Extent(part.path, entry.offset + at, entry.size - at)
        before = combine(crc32c(lengths), 0, rest.length, POLYNOMIAL)
        return Record(_plain(entry.name), rest, entry.crc32c ^ before)


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


def _is_counter(ref: TensorRef) -> bool:
    """A lone whole number counts something: steps, epochs, saves."""
    return ref.shape == () and ref.dtype in _COUNTED


def saved_with_tracker(view: View) -> bool:
    """Say whether a save wrote it that also names it in ``checkpoint``, which ``tf.train.Checkpoint.write`` does not.

    Such saves count themselves; the ``Saver`` of TensorFlow 1, which has no graph of objects, always names them.
    """
    names = {each.name for part in view.checkpoint.of(Role.METADATA) for each in _entries(view.content(part))}
    return bool(names) and (_COUNTER in names or _GRAPH not in names)


def _entries(content: Content | None) -> tuple[Entry, ...]:
    return content.facts.get("entries", ()) if content is not None and content.readable else ()


def assemble(view: View) -> Iterator[Assembly]:
    """Yield the assembly of a prefix whose index can be read."""
    for part in view.checkpoint.of(Role.METADATA):
        content = view.content(part)
        if content is not None and content.readable and content.container == "tensor-bundle":
            yield BundleAssembly(view, content)
