"""Tensors whose pieces lie in a file of each rank, pickled as ``DTensor``: every file tells where its own belong.

accelerate ``utils/fsdp_utils.py`` with ``use_dcp=False``.  ``LOCAL_STATE_DICT`` gives flat pieces of flattened
parameters, whose shapes are stored nowhere, and FSDP1 pickles ``ShardedTensor``, which accelerate itself refuses to
load; these are not put together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ckpt_tools.containers.base import Content
from ckpt_tools.layouts.assembly import Assembly, hole_in
from ckpt_tools.layouts.base import TORCH_STATE_SLOTS
from ckpt_tools.model.checkpoint import Part, Role, Slot
from ckpt_tools.model.tensors import Box, Chunk, TensorRef
from ckpt_tools.model.values import Value, as_mapping, lookup

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View

_KIND = ".DTensor"
_RANK = re.compile(r"_rank\d+\.bin\Z")
_STEP = re.compile(r"state\..+\.step\Z")
_FLAT = re.compile(r"(?:.*\.)?_?flat_param(?:_\d+)?\Z")

FLAT = (
    "the ranks' files hold pieces of FSDP's flat parameters (LOCAL_STATE_DICT), whose shapes are stored nowhere",
    "load it in the training that wrote it, and save with SHARDED_STATE_DICT or FULL_STATE_DICT",
)
OF_FSDP1 = (
    "the ranks' files hold FSDP1's pieces as ShardedTensor (use_dcp=False), which accelerate does not load either",
    "torch.load(..., weights_only=False) on every rank that wrote it, and save with SHARDED_STATE_DICT in directories",
)


def assemble(view: View, framework: str) -> Iterator[Assembly]:
    """Yield an assembly for each model and each optimizer that was saved in this way."""
    for role in (Role.MODEL_STATES, Role.OPTIMIZER_STATES):
        found: dict[str, list[Part]] = {}
        for part in view.checkpoint.of(role):
            if part.rank is not None and _RANK.search(part.path):
                found.setdefault(_RANK.sub("", part.path), []).append(part)
        for parts in found.values():
            yield RankFiles(view, framework, role, sorted(parts, key=lambda part: part.rank or 0))


class RankFiles(Assembly):
    """The files of one model, or of one optimizer."""

    def __init__(self, view: View, framework: str, role: Role, parts: list[Part]) -> None:
        super().__init__(view, framework)
        self.role = role
        self.parts = parts

    @cached_property
    def readable(self) -> tuple[tuple[Part, Content], ...]:
        found = ((part, self.view.content(part)) for part in self.parts)
        return tuple((part, content) for part, content in found if content is not None and content.readable)

    @cached_property
    def placed(self) -> bool:
        """Whether any file says where its pieces belong; else what looks whole may be a piece too.

        One file that is looked at alone is what it is.
        """
        return not self.view.checkpoint.is_file and any(content.facts.get("pieces") for _, content in self.readable)

    @cached_property
    def tensors(self) -> Mapping[str, TensorRef]:
        """The tensors by name, each block once; what is the same on all ranks is that of the first."""
        found: dict[str, TensorRef] = {}
        chunks: dict[str, dict[Any, Chunk]] = {}
        for _, content in self.readable if self.placed else ():
            pieces = content.facts.get("pieces", {})
            for name, ref in content.tensors.items():
                shape, offsets = pieces.get(name, (ref.shape, None))
                whole = found.setdefault(name, replace(ref, shape=shape, chunks=(), storage_id=None, kind=""))
                blocks = chunks.setdefault(name, {})
                told = offsets is not None or not ref.kind.endswith(_KIND)
                if told and len(ref.chunks) == 1 and (shape, ref.dtype) == (whole.shape, whole.dtype):
                    chunk = ref.chunks[0]._replace(offsets=offsets or ref.chunks[0].offsets)
                    if 0 not in chunk.sizes:
                        blocks.setdefault((chunk.offsets, chunk.sizes), chunk)
        return {name: replace(ref, chunks=tuple(chunks[name].values())) for name, ref in found.items()}

    @property
    def weights(self) -> Mapping[str, TensorRef]:
        return self.tensors if self.role is Role.MODEL_STATES else {}

    @property
    def optimizer_tensors(self) -> Mapping[str, TensorRef]:
        return self.tensors if self.role is Role.OPTIMIZER_STATES else {}

    def _state_dict(self, content: Content) -> Mapping[Any, Value] | None:
        held = as_mapping(content.value) if self.role is Role.OPTIMIZER_STATES else None
        return held if held is not None and "param_groups" in held else None

    @cached_property
    def optimizer(self) -> Mapping[Any, Value] | None:
        """That of the first rank, with the tensors of all."""
        held = next((each for _, content in self.readable[:1] if (each := self._state_dict(content))), None)
        if held is None:
            return None
        state: dict[Any, dict[Any, Value]] = {}
        for owner, values in (as_mapping(held.get("state")) or {}).items():
            own = as_mapping(values) or {}
            state[owner] = {key: self.tensors.get(f"state.{owner}.{key}", value) for key, value in own.items()}
        return {**held, "state": state}

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(slot for part, content in self.readable[:1] for slot in self.told(part, content))

    def told(self, part: Part, content: Content) -> Iterator[Slot]:
        """Yield the numbers that one rank's file holds."""
        held = self._state_dict(content)
        for spec in TORCH_STATE_SLOTS if held is not None else ():
            if spec.role is Role.OPTIMIZER:
                for key, value in lookup(held, spec.key):
                    number = self.view.scalar(value) if isinstance(value, TensorRef) else value
                    yield Slot(spec.quantity, part, key, number)

    @property
    def world_size(self) -> int | None:
        """The highest number in the names of the files."""
        return max((part.rank for part in self.parts if part.rank is not None), default=-1) + 1 or None

    @property
    def reshardable(self) -> bool:
        return False

    @cached_property
    def holes(self) -> Mapping[str, Box]:
        """The first place of each tensor that is in no file, where no file is damaged."""
        if len(self.readable) < len(self.parts) or any(content.problems for _, content in self.readable):
            return {}
        held = ((name, hole_in(ref)) for name, ref in self.tensors.items() if ref.chunks)
        return {name: hole for name, hole in held if hole is not None}

    def learnt(self, part: Part, name: str) -> bool:
        return part in self.parts and not _STEP.match(name) and (self.role is Role.MODEL_STATES or "state." in name)

    @property
    def unplaced(self) -> tuple[str, str] | None:
        """Why the pieces cannot be put together, and what to do then; None where they are."""
        if self.placed or not self.readable:
            return None
        kinds = [(name, ref.kind) for _, content in self.readable for name, ref in content.tensors.items()]
        sharded = any(kind.endswith(".ShardedTensor") and not _FLAT.match(name) for name, kind in kinds)
        return OF_FSDP1 if sharded else FLAT

    @property
    def left_out(self) -> Iterator[tuple[str, str]]:
        if not self.readable or self.view.checkpoint.is_file:
            return
        name = _RANK.sub("_rank*.bin", self.parts[0].path)
        if not self.placed:
            of_fsdp1 = "they are ShardedTensor objects of FSDP1, which are not put together"
            flat = "their shapes and places are stored nowhere, they are not put together"
            yield "CK3", f"the pieces in {name}: {of_fsdp1 if self.unplaced == OF_FSDP1 else flat}"
            return
        unplaced = sum(not ref.chunks and bool(ref.numel) for ref in self.tensors.values())
        if unplaced:
            yield "CK3", f"{unplaced:,} tensors in {name}, placed in a way that is not followed"
