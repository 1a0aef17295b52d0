"""What a directory of torch.distributed.checkpoint holds: FSDP's, torchtitan's, Megatron's and others' alike.

The metadata says which bytes of which data file every chunk is.  What is what, is told by the path of a name in the
nested dictionary that was saved (``planner_data``): ``("optimizer", "param_groups", 0, "lr")``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ckpt_tools.containers.base import Content
from ckpt_tools.layouts import assembly_dcp_fit as fit
from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.layouts.assembly_dcp_blobs import Blobs, Piece
from ckpt_tools.layouts.assembly_dcp_names import Keys, Kind, nested
from ckpt_tools.model.checkpoint import Part, Role, Slot
from ckpt_tools.model.findings import Impact
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping, lookup

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View

TORCH_DCP = "torch.distributed.checkpoint"

MAX_STEPS = 64
"""So many of the optimizer's 0-dim steps are looked at: each lies in a file within a file."""

RUN = 8
"""So many of these lie beside each other in the model: what differs within a layer shows in them."""

MAX_ITEMS = 512
"""So many objects of an optimizer are decoded; the rest of a larger set (a rate for each parameter) is sampled."""

_STEP = {"step": "step", "global_step": "step", "iteration": "step", "epoch": "epoch", "current_epoch": "epoch"}
_RATES = {"lr": "lr", "initial_lr": "initial-lr"}
_SCHEDULED = (("scheduler-step", "last_epoch"), ("base-lr", "base_lrs[*]"), ("last-lr", "_last_lr[*]"))
_DATA = re.compile(r".*__(\d+)_\d+\.distcp\Z")


def assemble(view: View) -> Iterator[Assembly]:
    """Yield the assembly of a checkpoint that is itself such a directory."""
    made = assemble_at(view, "")
    if made is not None:
        yield made


def assemble_at(
    view: View, directory: str, framework: str = TORCH_DCP, made: type[DcpAssembly] | None = None
) -> DcpAssembly | None:
    """Return the assembly of a directory of the checkpoint (``""`` for itself), None where it has no file of DCP.

    ``made`` is what to make of it, where a framework has names of its own.
    """
    mine = [part for part in view.checkpoint.parts if posixpath.dirname(part.path) == directory and part.stat.is_file]
    metadata = [part for part in mine if part.role is Role.METADATA]
    data = [part for part in mine if part.role is Role.CHUNKS]
    return (made or DcpAssembly)(view, framework, directory, metadata, data) if metadata or data else None


class DcpAssembly(Assembly):
    """One such directory.  ``data`` are its data files, ``metadata`` the metadata files that a loader reads."""

    def __init__(self, view: View, framework: str, place: str, metadata: list[Part], data: list[Part]) -> None:
        super().__init__(view, framework, place)
        whole = [part for part in metadata if part.path.endswith(".metadata") and part.rank is None]
        self.rank_local = not whole
        self.metadata = tuple(whole[:1] or metadata)
        self.data = {part.path: part for part in data}
        self.blobs = Blobs(view.listing)

    @cached_property
    def readable(self) -> tuple[tuple[Part, Content], ...]:
        """The metadata files that could be read."""
        found = ((part, self.view.content(part)) for part in self.metadata)
        return tuple((part, content) for part, content in found if content is not None and content.readable)

    @cached_property
    def tensors(self) -> Mapping[str, TensorRef]:
        """Every tensor by its name in the metadata, with the chunks of all ranks."""
        if len(self.readable) == 1:
            found = self.readable[0][1].tensors
        else:
            found = fit.joined(content.tensors for _, content in self.readable)
        return {fqn: self._placed(ref) for fqn, ref in found.items()} if self.packed else found

    def _placed(self, ref: TensorRef) -> TensorRef:
        """Return a tensor with the places of its elements, where a data file keeps them in the form of safetensors."""
        chunks = []
        for chunk in ref.chunks:
            packed = self.packed.get(chunk.extent.path)
            inner = packed.tensors.get(ref.fqn) if packed is not None else None
            if inner is not None and inner.shape == chunk.sizes and inner.dtype == ref.dtype and inner.chunks:
                chunk = chunk._replace(extent=inner.chunks[0].extent, inside="")
            chunks.append(chunk)
        return replace(ref, chunks=tuple(chunks))

    @cached_property
    def packed(self) -> Mapping[str, Content]:
        """The data files that hold all of their tensors as one safetensors file, behind the other objects."""
        found = {}
        for path, pieces in self.pieces.items():
            several = [piece for piece in pieces if piece.chunk is not None]
            if several and path in self.data and len({piece.extent.offset for piece in several}) == 1:
                content = self.blobs.packed(path, several[0].extent.offset)
                if content is not None:
                    found[path] = content
        return found

    @cached_property
    def items(self) -> Mapping[str, Piece]:
        """Where every object that is no tensor lies; of one that several ranks stored, the first."""
        found: dict[str, Piece] = {}
        for _, content in self.readable:
            changed = content.facts["changed"]
            for fqn, extent in content.facts["items"].items():
                found.setdefault(fqn, Piece(extent, fqn, transform=changed.get(fqn, "")))
        return found

    @cached_property
    def keys(self) -> Keys:
        planner: dict[str, tuple[Value, ...]] = {}
        for _, content in self.readable:
            planner.update(content.facts["planner"] or {})
        return Keys(planner, (*self.tensors, *self.items))

    @cached_property
    def pieces(self) -> Mapping[str, list[Piece]]:
        """What lies in every data file, by position."""
        found: dict[str, list[Piece]] = {}
        for _, content in self.readable:
            for fqn, extent in content.facts["items"].items():
                transform = content.facts["changed"].get(fqn, "")
                found.setdefault(extent.path, []).append(Piece(extent, fqn, transform=transform))
            for fqn, ref in content.tensors.items():
                for chunk in ref.chunks:
                    transform = "" if chunk.inside == "torch-zip" else chunk.inside
                    piece = Piece(chunk.extent, fqn, chunk, ref.dtype, transform)
                    found.setdefault(chunk.extent.path, []).append(piece)
        for listed in found.values():
            listed.sort(key=lambda piece: piece.extent.offset)
        return found

    def kind(self, fqn: str) -> Kind:
        """Return what a name stands for: weights, optimizer, scheduler, counters, or anything else."""
        return self.keys.kind(fqn)

    @cached_property
    def weights(self) -> Mapping[str, TensorRef]:
        keys = self.keys
        mine = ((keys.rest(fqn), ref) for fqn, ref in self.tensors.items() if keys.kind(fqn) is Kind.WEIGHTS)
        return {name: ref if name == ref.fqn else replace(ref, fqn=name) for name, ref in mine}

    @cached_property
    def optimizer_tensors(self) -> Mapping[str, TensorRef]:
        keys = self.keys
        return {keys.rest(fqn): ref for fqn, ref in self.tensors.items() if keys.kind(fqn) is Kind.OPTIMIZER}

    @cached_property
    def other_tensors(self) -> Mapping[str, TensorRef]:
        told = (Kind.WEIGHTS, Kind.OPTIMIZER)
        return {fqn: ref for fqn, ref in self.tensors.items() if self.keys.kind(fqn) not in told}

    @cached_property
    def optimizer(self) -> Mapping[Any, Value] | None:
        """``state`` by parameter name; a group for each parameter where rates are kept in this way."""
        keys = self.keys
        state: dict[str, dict[str, Value]] = {}
        groups: dict[str | int, dict[str, Value]] = {}
        for fqn, ref in self.tensors.items():
            if keys.kind(fqn) is Kind.OPTIMIZER:
                owner, name = keys.state_of(fqn)
                if owner is not None:
                    state.setdefault(owner, {})[name] = ref
        wanted = [fqn for fqn in (*self.items, *self.tensors) if keys.kind(fqn) is Kind.OPTIMIZER]
        places = {fqn: place for fqn in wanted if (place := keys.group_of(fqn)) is not None}
        for fqn, value in self._values(self._sampled(places)).items():
            group, name = places[fqn]
            groups.setdefault(group, {})[name] = value
        if not state and not groups:
            return None
        if all(isinstance(group, int) for group in groups):
            return {"state": state, "param_groups": list(groups.values())}
        return {"state": state, **self._gathered({str(group): values for group, values in groups.items()})}

    def _gathered(self, groups: Mapping[str, dict[str, Value]]) -> dict[str, Value]:
        """Return groups of what was saved parameter by parameter: those with the same values, as one.

        How many there were is stored nowhere; where the schedule knows of more, they cannot be told apart.
        """
        alike: dict[str, dict[str, Value]] = {}
        common = sorted(set.intersection(*(set(values) for values in groups.values()))) if groups else []
        for parameter, values in groups.items():
            mark = repr([values[name] for name in common])
            alike.setdefault(mark, {**values, "params": []})["params"].append(parameter)
        rates = (self.scheduler or {}).get("base_lrs")
        return {} if isinstance(rates, list) and len(rates) > len(alike) else {"param_groups": list(alike.values())}

    def _sampled(self, places: Mapping[str, tuple[str | int, str]]) -> list[str]:
        """Return the names to read: all of some groups, where there are too many groups."""
        groups = list(dict.fromkeys(group for group, _ in places.values()))
        stride = max(1, -(-len(places) // MAX_ITEMS))
        taken = frozenset(groups[::stride])
        return [fqn for fqn, (group, _) in places.items() if group in taken]

    def _values(self, names: list[str]) -> dict[str, Value]:
        """Decode objects and 0-dim tensors; what cannot be read is left out."""
        wanted = [self.items[fqn] for fqn in names if fqn in self.items]
        found = {piece.fqn: value for piece, value in self.blobs.objects(wanted)}
        small = [fqn for fqn in names if fqn in self.tensors]
        found |= {fqn: value for fqn in small if (value := self._scalar(self.tensors[fqn])) is not None}
        return {fqn: found[fqn] for fqn in names if fqn in found}

    def _scalar(self, ref: TensorRef) -> Value:
        if ref.numel != 1 or len(ref.chunks) != 1:
            return ref if ref.numel != 1 else None
        chunk = ref.chunks[0]
        if not chunk.inside:
            return self.view.scalar(ref)
        inner = self.blobs.tensor(Piece(chunk.extent, ref.fqn, chunk, ref.dtype))
        return self.view.scalar(inner) if inner is not None else None

    @cached_property
    def scheduler(self) -> Mapping[Any, Value] | None:
        names = [fqn for fqn in (*self.items, *self.tensors) if self.keys.kind(fqn) is Kind.SCHEDULER]
        values = self._values(names[:MAX_ITEMS])
        made = as_mapping(nested((self.keys.below(fqn), value) for fqn, value in values.items()))
        if made and "last_epoch" not in made and "_last_lr" not in made:  # {"0": {...}}, or a list of them
            made = next((inner for each in made.values() if (inner := as_mapping(each)) is not None), made)
        return made or None

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(self._slots())

    def _slots(self) -> Iterator[Slot]:
        keys = self.keys
        counters = {fqn: name for fqn in (*self.items, *self.tensors) if (name := _STEP.get(keys.counter(fqn) or ""))}
        yield from self._told(dict(list(counters.items())[:MAX_STEPS]))
        rates: dict[str, str] = {}
        steps: list[str] = []
        for fqn in (*self.items, *self.tensors):
            if keys.kind(fqn) is Kind.OPTIMIZER:
                place = keys.group_of(fqn)
                if place is not None and place[1] in _RATES:
                    rates[fqn] = _RATES[place[1]]
                elif place is None and fqn in self.tensors and keys.state_of(fqn)[1] == "step":
                    steps.append(fqn)
        stride = max(1, -(-len(rates) // MAX_ITEMS))
        yield from self._told({fqn: rates[fqn] for fqn in list(rates)[::stride]})
        yield from self._told(dict.fromkeys(_in_runs(steps), "optimizer-step"))
        scheduler = self.scheduler or {}
        for quantity, key in _SCHEDULED:
            for found, value in lookup(scheduler, key):
                yield Slot(quantity, self._scheduler_part, found, value, editable=False)

    def _told(self, quantities: Mapping[str, str]) -> Iterator[Slot]:
        for fqn, value in self._values(list(quantities)).items():
            part = self.data.get(self._where(fqn))
            if part is not None:
                yield Slot(quantities[fqn], part, fqn, value, editable=False)

    def _where(self, fqn: str) -> str:
        piece = self.items.get(fqn)
        return piece.extent.path if piece is not None else self.tensors[fqn].chunks[0].extent.path

    @cached_property
    def _scheduler_part(self) -> Part:
        mine = (piece.extent.path for fqn, piece in self.items.items() if self.kind(fqn) is Kind.SCHEDULER)
        held = (self.data.get(path) for path in mine)
        return next((part for part in held if part is not None), self.metadata[0])

    @property
    def world_size(self) -> int | None:
        """The ranks that data files are named for, of those that are referred to: at least so many wrote it."""
        ranks = {int(match[1]) for path in self.pieces if (match := _DATA.match(path))}
        return max(ranks) + 1 if ranks else None

    @property
    def reshardable(self) -> bool:
        """Metadata of each rank's own chunks is read by that rank alone."""
        return not self.rank_local

    @cached_property
    def misfits(self) -> tuple[fit.Misfit, ...]:
        return tuple(fit.misfits(self))

    @property
    def problems(self) -> Iterator[tuple[str, Any]]:
        return ((misfit.path, misfit.problem) for misfit in self.misfits)

    def impact(self, part: Part, kind: str) -> Impact:
        """Return what it means that pieces of a data file are damaged in this way."""
        content = self.view.content(part)
        hurt = content.facts.get("refused", {}).get(kind) if content is not None else None
        return fit.impact_of(self, hurt or {piece.fqn for piece in self.pieces.get(part.path, ())})

    def learnt(self, part: Part, name: str) -> bool:
        fqn = name if name in self.tensors else name.rpartition("[")[0]
        return part.path in self.data and self.kind(fqn) in (Kind.WEIGHTS, Kind.OPTIMIZER)

    @property
    def left_out(self) -> Iterator[tuple[str, str]]:
        place = f" of {self.place}" if self.place else ""
        contents = [content for part in self.data.values() if (content := self.view.content(part)) is not None]
        if self.data and not self.metadata:
            files = f"{len(self.data):,} data file{'' if len(self.data) == 1 else 's'}"
            yield "CK29", f"what lies in {files}{place}: only the metadata tells"
        counts = [content.facts["sampled"] for content in contents if "sampled" in content.facts]
        looked, total = sum(pair[0] for pair in counts), sum(pair[1] for pair in counts)
        if looked < total:
            yield "CK29", f"{total - looked:,} of {total:,} pieces{place}: only a sample was opened; --deep opens all"
        reasons: dict[str, int] = {}
        for content in contents:
            for reason, number in content.facts.get("unreadable", {}).items():
                reasons[reason] = reasons.get(reason, 0) + number
        for reason, number in reasons.items():
            yield "CK29", f"{number:,} pieces{place}: {reason}"

    def content(self, part: Part, *, everything: bool = False) -> Content | None:
        if part.path not in self.data:
            return None
        packed = self.packed.get(part.path)
        if packed is not None:
            return replace(packed, container="distcp", size=part.stat.size)
        total = sum(map(len, self.pieces.values()))
        return self.blobs.content(part, self.pieces.get(part.path, []), total, len(self.pieces), everything)


def _in_runs(names: list[str]) -> list[str]:
    """Return some of the names, in runs of neighbours from all over the model."""
    stride = RUN * max(1, -(-len(names) // MAX_STEPS))
    return [name for start in range(0, len(names), stride) for name in names[start : start + RUN]]
