"""What a ``torch_dist`` directory of Megatron-Core holds: a DCP directory whose names are Megatron's own.

``optimizer.state.exp_avg.decoder.weight`` names the moment first and the parameter after it; several optimizers are
``chained_0``, ``chained_1`` ...  Small state is in ``common.pt``, or, since Megatron-Core 0.17, among the chunks under
``common_state``: as every object that is kept in pieces, a list of one.

The older format is a torch file for each tensor and pipeline rank.  Where there is one rank, it holds the whole model;
of several, each has slices of its own, and how they were cut is stored nowhere.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from ckpt_tools.containers.base import Content
from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.layouts.assembly_dcp import DcpAssembly, assemble_at
from ckpt_tools.layouts.assembly_dcp_names import Kind
from ckpt_tools.model.checkpoint import Part, Role, Slot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Value, as_mapping, lookup, whole

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View

_OPTIMIZER = re.compile(r"(?:chained_\d+\.)?optimizer\.")
_MOMENT = re.compile(r"(?P<chain>chained_\d+\.)?optimizer\.state\.(?P<moment>[^.]+)\.(?P<parameter>.+)\Z")
_COMMON = re.compile(r"common_state/shard_\d+_\d+\Z")
_LEGACY = re.compile(r"(?:model\.(?=[^.])|(?=model\d+\.))(.+)\Z")
_SHOWN = 3
_SLOTS = (
    ("step", "iteration"),
    ("lr", "optimizer.param_groups[*].lr"),
    ("lr", "optimizer.optimizer.param_groups[*].lr"),
    ("lr", "optimizer[*].optimizer.param_groups[*].lr"),
)
_STATE = re.compile(r"(?:rng_state|common_state|rerun_state_machine\w*|opt_param_scheduler|iteration|args)(?:[/.]|\Z)")


def assemble(view: View) -> Iterator[Assembly]:
    """Yield the assembly of a checkpoint that is itself such a directory."""
    return within(view, "")


def within(view: View, directory: str) -> Iterator[Assembly]:
    """Yield the assembly of a directory of the checkpoint."""
    made = assemble_at(view, directory, "Megatron-Core", MegatronAssembly)
    if made is not None:
        yield made


def arguments(common: Mapping[Any, Value]) -> Mapping[Any, Value]:
    """Return the command line that was saved: an ``argparse.Namespace``, or a mapping."""
    args = common.get("args")
    return as_mapping(args.state if isinstance(args, Opaque) else args) or {}


def degrees(common: Mapping[Any, Value]) -> tuple[int, int, int] | None:
    """Return for how many tensor, pipeline and expert ranks the model was cut; None where nothing tells."""
    args = arguments(common)
    tensor, pipeline = (whole(args.get(f"{kind}_model_parallel_size")) or 0 for kind in ("tensor", "pipeline"))
    expert = whole(args.get("expert_model_parallel_size")) or 1
    return (tensor, pipeline, expert) if min(tensor, pipeline, expert) > 0 else None


class MegatronAssembly(DcpAssembly):
    """One directory that Megatron-Core wrote."""

    def kind(self, fqn: str) -> Kind:
        if _OPTIMIZER.match(fqn):
            return Kind.OPTIMIZER
        return Kind.STATE if _STATE.match(fqn) else Kind.WEIGHTS

    @cached_property
    def weights(self) -> Mapping[str, TensorRef]:
        return {fqn: ref for fqn, ref in self.tensors.items() if self.kind(fqn) is Kind.WEIGHTS}

    @cached_property
    def optimizer_tensors(self) -> Mapping[str, TensorRef]:
        return {_by_parameter(fqn): ref for fqn, ref in self.tensors.items() if self.kind(fqn) is Kind.OPTIMIZER}

    @property
    def optimizer(self) -> Mapping[Any, Value] | None:
        """None: the groups number parameters that the state names, and nothing here says which is which."""
        return None

    @property
    def scheduler(self) -> Mapping[Any, Value] | None:
        """None: it is no scheduler of torch's, and its numbers are counts of samples."""
        return None

    @cached_property
    def stored(self) -> tuple[str, Mapping[Any, Value]]:
        """The name under which later versions keep the common state among the chunks, and that state."""
        name = next((fqn for fqn in self.items if _COMMON.match(fqn)), "")
        for _, value in self.blobs.objects([self.items[name]] if name else []):
            held = as_mapping(value[0] if isinstance(value, list) and len(value) == 1 else value)
            if held is not None:
                return name, held
        return name, {}

    @property
    def common(self) -> Mapping[Any, Value]:
        return self.stored[1]

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        name, held = self.stored
        part = self.data.get(self.items[name].extent.path) if name else None
        if part is None:
            return ()
        return tuple(
            Slot(quantity, part, f"{name}.{key}", value, editable=False)
            for quantity, path in _SLOTS
            for key, value in lookup(held, path)
        )

    @property
    def world_size(self) -> int | None:
        """That of the arguments: ranks that hold the same as others write no file."""
        common = self.view.mapping(Role.COMMON) if self.view.checkpoint.has(Role.COMMON) else self.common
        return whole(arguments(common or {}).get("world_size")) or super().world_size


def legacy(view: View) -> Iterator[Assembly]:
    """Yield the assembly of a checkpoint in the older format."""
    parts = tuple(part for part in view.checkpoint.of(Role.MODEL_STATES) if "/" in part.path)
    if parts and not view.checkpoint.is_file:
        yield LegacyRanks(view, parts)


class LegacyRanks(Assembly):
    """The model files of all ranks."""

    def __init__(self, view: View, parts: tuple[Part, ...]) -> None:
        super().__init__(view, "Megatron-LM")
        self.parts = parts

    @cached_property
    def models(self) -> Mapping[str, Content]:
        """What the ranks' files hold, by the directory of each."""
        found = ((posixpath.dirname(part.path), self.view.content(part)) for part in self.parts)
        return {rank: content for rank, content in found if content is not None and content.readable}

    @property
    def common(self) -> Mapping[Any, Value]:
        return next((held for content in self.models.values() if (held := as_mapping(content.value))), {})

    @cached_property
    def weights(self) -> Mapping[str, TensorRef]:
        """Those of the one rank that there is; slices of several cannot be put together."""
        if len(self.parts) > 1 or degrees(self.common) not in (None, (1, 1, 1)):
            return {}
        return {ref.fqn: ref for content in self.models.values() for ref in _model(content)}

    @property
    def outline(self) -> Mapping[str, str]:
        if self.weights:
            return {}
        return {
            f"{rank}/{ref.fqn}": f"{ref.dtype} {list(ref.shape)}"
            for rank, content in self.models.items()
            for ref in _model(content)
        }

    @property
    def described(self) -> Iterator[tuple[str, str]]:
        if self.weights:
            return
        held = Counter(_size(content) for content in self.models.values())
        said = (f"{ranks:,} with slices of {tensors:,} tensors" for (tensors, _), ranks in held.items())
        numbers = sum(count * ranks for (_, count), ranks in held.items())
        yield "ranks", f"{', '.join(islice(said, _SHOWN))}: {numbers:,} numbers, those of all ranks counted each time"

    @property
    def left_out(self) -> Iterator[tuple[str, str]]:
        if self.models and not self.weights:
            yield "CK3", "the slices in mp_rank_*: how they were cut is stored nowhere, they are not put together"

    @property
    def world_size(self) -> int | None:
        return whole(arguments(self.common).get("world_size"))


def _size(content: Content) -> tuple[int, int]:
    held = list(_model(content))
    return len(held), sum(ref.numel for ref in held)


def _model(content: Content) -> Iterator[TensorRef]:
    for name, ref in content.tensors.items():
        if (match := _LEGACY.match(name)) is not None:
            yield replace(ref, fqn=match[1])


def _by_parameter(fqn: str) -> str:
    """Return the name of a moment as others give it: ``state.<parameter>.<moment>``."""
    match = _MOMENT.match(fqn)
    return f"{match['chain'] or ''}state.{match['parameter']}.{match['moment']}" if match else fqn
