"""What several files of a checkpoint hold together: tensors in pieces, and the states that go with them.

A layout whose files hold pieces names a function that makes assemblies of a view (``Layout.assemble``).  Everything in
them is lazy: what was not asked for is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckpt_tools.containers import reader
from ckpt_tools.containers.base import Content
from ckpt_tools.containers.pickle_names import several
from ckpt_tools.core.listing import Listing
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.model.checkpoint import Part, Slot
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import Box, Chunk, TensorRef
from ckpt_tools.model.tiling import fit
from ckpt_tools.model.values import Value

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View

Assemble = Callable[["View"], Iterable["Assembly"]]
"""Makes the assemblies of a checkpoint: several where a model and its optimizer lie in directories of their own."""


class Assembly:
    """The pieces of one model, of one optimizer, or of both, seen as whole.

    ``framework`` is who wrote it (``DeepSpeed``, ``FSDP``, ``torch.distributed.checkpoint``), ``place`` the directory
    inside of the checkpoint, ``""`` for the checkpoint itself.
    """

    def __init__(self, view: View, framework: str, place: str = "") -> None:
        self.view = view
        self.framework = framework
        self.place = place

    @property
    def weights(self) -> Mapping[str, TensorRef]:
        """The model's tensors by their names in the model, in as many chunks as are stored."""
        return {}

    @property
    def optimizer_tensors(self) -> Mapping[str, TensorRef]:
        """The optimizer's tensors by key path, parameters by name: ``state.<fqn>.exp_avg``."""
        return {}

    @property
    def other_tensors(self) -> Mapping[str, TensorRef]:
        """Tensors that are neither, by their stored names."""
        return {}

    @property
    def outline(self) -> Mapping[str, str]:
        """What is told of tensors that cannot be read here, by their names: type and shape in words."""
        return {}

    @property
    def optimizer(self) -> Mapping[Any, Value] | None:
        """``{"state": ..., "param_groups": [...]}`` as far as it is small; tensors are references."""
        return None

    @property
    def scheduler(self) -> Mapping[Any, Value] | None:
        return None

    @property
    def slots(self) -> Iterable[Slot]:
        """Steps, rates and world sizes that are stored in it, with the file and the key of each."""
        return ()

    @property
    def world_size(self) -> int | None:
        """The number of ranks that wrote it, None where nothing tells."""
        return None

    @property
    def described(self) -> Iterable[tuple[str, str]]:
        """``(label, text)`` for what is worth telling of the way it was saved."""
        return ()

    @property
    def reshardable(self) -> bool:
        """Whether another number of ranks than the one that wrote it can load it."""
        return True

    @property
    def problems(self) -> Iterable[tuple[str, Problem]]:
        """``(path of the file, problem)`` for pieces that do not fit together; kinds are names of rules."""
        return ()

    @property
    def left_out(self) -> Iterable[tuple[str, str]]:
        """``(code, reason)`` for what was not looked at; asked when all contents were."""
        return ()

    def learnt(self, part: Part, name: str) -> bool:
        """Say whether a tensor that ``content`` names is a weight or an optimizer's, and no counter or other state."""
        return False

    def used(self, part: Part, name: str) -> int | None:
        """Return how many elements at the beginning of a tensor that ``content`` names mean anything, None for all."""
        return None

    def content(self, part: Part, *, everything: bool = False) -> Content | None:
        """Return what a file that cannot be understood by itself holds; None where the container tells it all.

        A sample of a large file is looked at unless ``everything`` is wanted; ``facts["sampled"]`` tells how many of
        how many pieces.
        """
        return None


def beside(tensors: Mapping[str, TensorRef], adapters: Mapping[str, Mapping[str, TensorRef]]) -> dict[str, TensorRef]:
    """Return the tensors that no adapter's file has; peft puts the adapter's name into those of a model in training."""
    known = {_bare(name, adapter) for adapter, held in adapters.items() for name in held}
    names = adapters or {"": {}}
    return {name: ref for name, ref in tensors.items() if not any(_bare(name, each) in known for each in names)}


def _bare(name: str, adapter: str) -> str:
    """Return ``q_proj.lora_A`` of ``q_proj.lora_A.default.weight``, and the same of ``q_proj.lora_A.weight``."""
    dropped = {adapter or "default", "modules_to_save", "weight"}
    return ".".join(piece for piece in name.split(".") if piece not in dropped)


def hole_in(ref: TensorRef) -> Box | None:
    """Return the first place of a tensor that none of its chunks covers, None where there is none."""
    return fit(ref.shape, [chunk[:2] for chunk in ref.chunks]).hole


def stored_nowhere(tensors: Mapping[str, TensorRef], holes: Mapping[str, Box], then: str) -> Problem:
    """Return the problem of tensors with a place that no chunk covers; ``then`` is what a loader makes of it."""
    first, (at, size) = next(iter(holes.items()))
    place = f"{first} is {list(tensors[first].shape)}: {list(size)} at {list(at)} is stored nowhere"
    message = f"parts of {len(holes):,} tensor{'s' if len(holes) > 1 else ''} are stored nowhere"
    return Problem("dcp-chunks-missing", message, (place, several(holes), then), Spot(tensor=first))


def unpack(listing: Listing, tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Return the tensors with chunks that give the place of their elements, opening the files inside of files.

    A chunk that cannot be opened, or that is not what it should be, leaves its tensor without chunks.

    Raises:
        SourceError: a file could not be read.
    """
    if not any(chunk.inside for ref in tensors.values() for chunk in ref.chunks):
        return dict(tensors)
    found: dict[str, TensorRef] = {}
    with ExitStack() as stack:
        sources: dict[str, Source] = {}
        for name, ref in tensors.items():
            chunks: list[Chunk] = []
            for chunk in ref.chunks:
                path = chunk.extent.path
                if path not in sources:
                    sources[path] = stack.enter_context(listing.open(path))
                chunks += _opened(sources[path], ref, chunk)
            found[name] = replace(ref, chunks=tuple(chunks) if len(chunks) == len(ref.chunks) else ())
    return found


def _opened(source: Source, ref: TensorRef, chunk: Chunk) -> Iterator[Chunk]:
    if not chunk.inside:
        yield chunk
        return
    inner = tensor_in(source, chunk.extent)
    if inner is not None and inner.dtype == ref.dtype and inner.shape == chunk.sizes and len(inner.chunks) == 1:
        (held,) = inner.chunks
        yield chunk._replace(extent=held.extent, strides=held.strides, byteorder=held.byteorder, inside="")


def tensor_in(source: Source, extent: Extent) -> TensorRef | None:
    """Return the one tensor of a torch file at ``extent`` of ``source``, None where there is none."""
    if extent.end > source.size:
        return None
    content = reader.open(source.window(extent.offset, extent.length))
    return next(iter(content.tensors.values()), None) if len(content.tensors) == 1 else None
