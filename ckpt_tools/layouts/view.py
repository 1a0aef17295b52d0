"""A checkpoint's contents by meaning: the trainer's state, the optimizer, the weights, wherever the layout keeps them.

Files are read on first use, each once, and a file that does not decode is simply absent here: the container's
problems are reported by rules that look at the part itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any

from ckpt_tools.containers import reader
from ckpt_tools.containers.base import Content
from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import SIDECAR, Kind, Listing
from ckpt_tools.core.source import Source
from ckpt_tools.layouts import by_name, plain
from ckpt_tools.layouts.assembly import beside
from ckpt_tools.layouts.base import Need
from ckpt_tools.model import scalars
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role, Slot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Value, as_mapping, lookup

if TYPE_CHECKING:
    from ckpt_tools.layouts.assembly import Assembly
    from ckpt_tools.model.manifest import Seal
    from ckpt_tools.model.summaries import DataSummary

MAX_SCALARS = 2048
"""So many 0-dim tensors are read from one file at the most; the rest of a larger set is sampled evenly."""


_DEEPSPEED = (
    r"global_step\d+(/|\Z)|(?:.*/)?[^/]*mp_rank_\d+_(?:model|optim)_?states\.pt\Z|(?:zero_to_fp32\.py|latest)\Z"
)
_ELSEWHERE = (
    ("DeepSpeed", re.compile(_DEEPSPEED)),
    ("FSDP", re.compile(r"(?:pytorch_model_fsdp|optimizer)(?:_\d+/|(?:_\d+)?_rank\d+\.bin)")),
    ("torch.distributed.checkpoint", re.compile(r".*\.distcp\Z|(?:__\d+)?\.metadata\Z")),
)


class View:
    """One checkpoint, opened lazily."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.errors: dict[str, SourceError] = {}
        self.data: DataSummary | None = None  # what a deep look found, once there was one
        self.beside: tuple[DataSummary, ...] = ()  # what sealed neighbours were, for one that is looked at alone
        self.seal: Seal | None = None  # its manifest and what differs from it, once that was looked at
        self.crashes: dict[str, Exception] = {}
        self.pending: tuple[str, ...] = ()
        self.edited: frozenset[str] = frozenset()  # files that edits in its journal changed
        self.everything = False  # whether files of many pieces are looked into as a whole, not by a sample
        self._contents: dict[str, Content | None] = {}
        self._source: Source | None = None

    @property
    def listing(self) -> Listing:
        return self.checkpoint.listing

    def content(self, part: Part) -> Content | None:
        """Return the decoded file, None when it is no readable regular file (``errors`` then tells why)."""
        if part.path not in self._contents:
            self._contents[part.path] = self._assembled(part) or self._read(part)
        return self._contents[part.path]

    def look_at_everything(self) -> None:
        """Forget the contents of which a sample was looked at, and sample no more."""
        if not self.everything:
            self.everything = True
            for part in self.checkpoint.of(Role.CHUNKS):
                self._contents.pop(part.path, None)

    def _assembled(self, part: Part) -> Content | None:
        """Return what an assembly knows of a file that does not say by itself what it holds."""
        content: Content | None = None
        if part.role is Role.CHUNKS and part.stat.is_file:
            with self._guarded(part.path):
                found = (assembly.content(part, everything=self.everything) for assembly in self.assemblies)
                content = next((each for each in found if each is not None), None)
        return content

    @cached_property
    def assemblies(self) -> tuple[Assembly, ...]:
        """What the files of the checkpoint hold together, where a layout stores tensors in pieces."""
        found: list[Assembly] = []
        for name in self.checkpoint.layouts:
            assemble = by_name(name).assemble
            if assemble is not None:
                with self._guarded():
                    found += assemble(self)
        return tuple(found)

    def _read(self, part: Part) -> Content | None:
        content: Content | None = None
        if part.stat.is_file:
            with self._guarded(part.path), self.listing.open(part.path) as source:
                content = reader.open(source, part.containers)
        return content

    @contextmanager
    def _guarded(self, path: str = "") -> Iterator[None]:
        """Note what keeps a file from being read, or what keeps the files from being put together."""
        try:
            yield
        except SourceError as error:
            self.errors[path or error.path] = error
        except Exception as error:  # noqa: BLE001 - a fault of ours, which the engine reports as CK001
            self.crashes[path] = error

    def need(self, role: Role) -> Need:
        """Return what the first of the checkpoint's layouts that knows ``role`` says it is needed for."""
        for name in self.checkpoint.layouts:
            needs = by_name(name).needs
            if role in needs:
                return needs[role]
        return Need()

    def values(self, *roles: Role) -> Iterator[tuple[Part, Value]]:
        """Yield the decoded tree of every part with one of ``roles`` that has one."""
        for part in self.checkpoint.of(*roles):
            content = self.content(part)
            if content is not None and content.readable and content.value is not None:
                yield part, content.value

    def mapping(self, role: Role) -> Mapping[Any, Value] | None:
        """Return the first part of a role as a mapping, None when it is absent or something else."""
        for _, value in self.values(role):
            return as_mapping(value)
        return None

    @cached_property
    def state(self) -> Mapping[Any, Value] | None:
        """``trainer_state.json``."""
        return self.mapping(Role.TRAINER_STATE)

    @cached_property
    def config(self) -> Mapping[Any, Value] | None:
        return self.mapping(Role.CONFIG)

    @cached_property
    def optimizer(self) -> Mapping[Any, Value] | None:
        """A torch optimizer's ``state_dict``, from its own file or from inside a combined one."""
        return (
            self.mapping(Role.OPTIMIZER)
            or self._inside(plain.OPTIMIZERS, "param_groups")
            or next((found for each in self.assemblies if (found := each.optimizer) is not None), None)
        )

    @cached_property
    def scheduler(self) -> Mapping[Any, Value] | None:
        return (
            self.mapping(Role.SCHEDULER)
            or self._inside(plain.SCHEDULERS, "_last_lr")
            or next((found for each in self.assemblies if (found := each.scheduler) is not None), None)
        )

    def _inside(self, keys: tuple[str, ...], wanted: str) -> Mapping[Any, Value] | None:
        combined = self.mapping(Role.COMBINED) or {}
        return next((found for _, found in plain.inside(combined, keys, wanted)), None)

    @cached_property
    def training_args(self) -> Mapping[str, Value]:
        """The fields of the pickled training arguments, empty when they are not there."""
        for _, value in self.values(Role.TRAINING_ARGS):
            if isinstance(value, Opaque) and isinstance(value.state, dict):
                return {str(key): _plain(item) for key, item in value.state.items()}
        return {}

    @cached_property
    def weight_parts(self) -> tuple[Part, ...]:
        """The weights files that a loader takes: a single file outranks shards, safetensors outranks ``.bin``."""
        parts = list(self.checkpoint.of(Role.WEIGHTS))
        single = [part for part in parts if part.shard is None]
        for group in (single, parts):
            for ending in (".safetensors", ".bin"):
                chosen = [part for part in group if part.path.endswith(ending)]
                if chosen:
                    return tuple(chosen)
        return tuple(parts)

    @cached_property
    def weights(self) -> Mapping[str, TensorRef]:
        """The model's tensors by name, over all shards; empty when there are none or none is readable."""
        found: dict[str, TensorRef] = {}
        for part in self.weight_parts:
            content = self.content(part)
            if content is not None:
                found.update(content.tensors)
        return found or self._in_pieces or self._combined_weights

    @property
    def _in_pieces(self) -> Mapping[str, TensorRef]:
        """The weights that assemblies know; what an adapter's own file has is that one's, and no weight once more."""
        weights = self._merged("weights")
        return beside(weights, self.adapters()) if weights and self.checkpoint.has(Role.ADAPTER) else weights

    def _merged(self, what: str) -> Mapping[str, TensorRef]:
        """Return the tensors of all assemblies; most often one of them has any."""
        filled = [tensors for each in self.assemblies if (tensors := getattr(each, what))]
        return filled[0] if len(filled) == 1 else {name: ref for tensors in filled for name, ref in tensors.items()}

    @property
    def _combined(self) -> Content | None:
        part = self.checkpoint.first(Role.COMBINED)
        return self.content(part) if part is not None else None

    @cached_property
    def _combined_weights(self) -> Mapping[str, TensorRef]:
        content = self._combined
        if content is None:
            return {}
        for key in plain.WEIGHTS_KEYS:
            inside = _below(content.tensors, key)
            if inside and as_mapping((as_mapping(content.value) or {}).get(key)) is not None:
                return inside
        return content.tensors if self.optimizer is None else {}

    def adapters(self) -> dict[str, Mapping[str, TensorRef]]:
        """Return the tensors of every readable adapter by the adapter's name, ``""`` for the one at the top."""
        found: dict[str, Mapping[str, TensorRef]] = {}
        for part in self.checkpoint.of(Role.ADAPTER):
            content = self.content(part)
            if content is not None and content.readable and part.adapter not in found:
                found[part.adapter] = content.tensors
        return found

    @cached_property
    def optimizer_tensors(self) -> Mapping[str, TensorRef]:
        """The optimizer's tensors by key path (``state.0.exp_avg``)."""
        for part in self.checkpoint.of(Role.OPTIMIZER):
            content = self.content(part)
            if content is not None:
                return content.tensors
        content = self._combined
        if content is None:
            return self._merged("optimizer_tensors")
        for key in (*plain.OPTIMIZER_KEYS, "optimizer_states.0"):
            inside = _below(content.tensors, key)
            if inside:
                return inside
        of_optax = {name: ref for name, ref in content.tensors.items() if name.startswith("opt_state.")}
        return of_optax or self._merged("optimizer_tensors")

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every stored number that the layouts know of, 0-dim tensors read from their bytes."""
        found: list[Slot] = []
        for name in self.checkpoint.layouts:
            for spec in by_name(name).slots:
                for part, value in self.values(spec.role):
                    places = list(lookup(value, spec.key))
                    stride = max(1, -(-len(places) // MAX_SCALARS))
                    found += (
                        Slot(spec.quantity, part, key, self._number(part, place), spec.editable)
                        for key, place in places[::stride]
                    )
        found += (slot for assembly in self.assemblies for slot in assembly.slots)
        return tuple(found)

    def numbers(self, quantity: str) -> list[float]:
        """Return the numeric values stored for ``quantity``, in the order of the layout's table."""
        return [slot.value for slot in self.slots if slot.quantity == quantity and _is_number(slot.value)]

    def number(self, quantity: str) -> float | None:
        return next(iter(self.numbers(quantity)), None)

    def _number(self, part: Part, value: Value) -> Value:
        if not isinstance(value, TensorRef):
            from ckpt_tools.containers import torch_values

            number = torch_values.numpy_scalar_value(value) if isinstance(value, Opaque) else None
            return value if number is None else number
        try:
            return self.scalar(value)
        except SourceError as error:
            self.errors.setdefault(part.path, error)
            return None

    def scalar(self, ref: TensorRef) -> float | int | bool | None:
        """Return the one element of ``ref``, None where it is no single number or its bytes are not there."""
        if ref.numel != 1 or len(ref.chunks) != 1 or not scalars.known(ref.dtype):
            return None
        chunk = ref.chunks[0]
        data = self._opened(chunk.extent.path).read(chunk.extent.offset, chunk.extent.length)
        return scalars.decoded(data, ref.dtype, chunk.byteorder)

    def _opened(self, path: str) -> Source:
        if self._source is None or self._source.name != path:
            self.close()
            self._source = self.listing.open(path)
        return self._source

    def close(self) -> None:
        """Close the file that scalars are read from."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def release(self) -> None:
        """Forget everything big that was decoded; JSON files, the step and errors stay."""
        self.close()
        _ = self.step, self.state, self.training_args
        for name in (
            "optimizer",
            "scheduler",
            "weights",
            "_combined_weights",
            "optimizer_tensors",
            "slots",
            "assemblies",
        ):
            self.__dict__.pop(name, None)
        kept = {path for path, content in self._contents.items() if content and content.container == "json"}
        self._contents = {path: content for path, content in self._contents.items() if path in kept}

    @cached_property
    def step(self) -> int | None:
        """The step that the checkpoint itself states, its name's number when it states none and that is no epoch."""
        stated = self.number("step")
        if stated is not None and isfinite(stated):
            return int(stated)
        return None if counts_epochs(self.checkpoint) else self.checkpoint.step

    @cached_property
    def elsewhere(self) -> str | None:
        """The framework whose own directories hold weights or optimizer here, None when there is none."""
        for framework, expression in _ELSEWHERE:
            if any(expression.match(path) for path in self.listing.files):
                return framework
        return None

    @cached_property
    def empty(self) -> bool:
        """Whether the checkpoint has no file at all."""
        return all(
            entry.kind is Kind.DIRECTORY or path.startswith(f"{SIDECAR}/") for path, entry in self.listing.files.items()
        )

    @cached_property
    def unwritten(self) -> frozenset[Role]:
        """The roles that a save did not come to: those after the last one present, by the layout's order of writing.

        Empty when the part that is written last is there.
        """
        layout = by_name(self.checkpoint.layout)
        present = [place for place, role in enumerate(layout.order) if self.checkpoint.has(role)]
        rest = frozenset(layout.order[max(present, default=-1) + 1 :])
        return rest if layout.commit in rest else frozenset()


def _below(tensors: Mapping[str, TensorRef], key: str) -> dict[str, TensorRef]:
    """Return the tensors inside ``key`` by the rest of their names."""
    prefix = f"{key}."
    return {name.removeprefix(prefix): ref for name, ref in tensors.items() if name.startswith(prefix)}


def counts_epochs(checkpoint: Checkpoint) -> bool:
    """Return whether the number that tells a checkpoint from others of its run is that of an epoch."""
    place = checkpoint.path if checkpoint.path != "." else os.path.abspath(checkpoint.listing.root)
    if checkpoint.is_file and checkpoint.path == ".":
        place = next(iter(checkpoint.listing.files), "")
    return by_name(checkpoint.layout).counts_epochs(os.path.basename(place))


def _is_number(value: Value) -> bool:
    """Whether ``value`` is a real number that fits a float: a pickle's integers may have thousands of digits."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 64)


def _plain(value: Value) -> Value:
    """Return an enumeration member of the arguments as the text or number it stands for."""
    if isinstance(value, Opaque) and len(value.args) == 1 and isinstance(value.args[0], str | int):
        return value.args[0]
    return value
