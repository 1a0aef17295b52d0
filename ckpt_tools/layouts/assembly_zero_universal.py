"""Universal checkpoints of DeepSpeed: every parameter in a directory of its own, ``zero/<name>/fp32.pt``.

``deepspeed/checkpoint/ds_to_universal.py`` makes them; they can be resumed with any number of ranks.  Of stage 3 they
have flat vectors, whose shapes are in the model states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from ckpt_tools.layouts.assembly_zero_cut import Piece, named, tensor
from ckpt_tools.layouts.assembly_zero_ranks import ZeroAssembly
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping

_SHARED = "zero/optimizer_state.pt"
_WEIGHTS = "fp32"


class UniversalAssembly(ZeroAssembly):
    """The tensors of a universal checkpoint; buffers and all else come from the model states beside them."""

    @property
    def world_size(self) -> int | None:
        return None

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        groups = (group for mp in self.tag.parallel[:1] for group in self.tag.shapes(mp))
        return {name: shape for group in groups for name, shape in group.items()}

    def _pieces(self) -> Iterator[tuple[str, str, TensorRef]]:
        """Yield ``(parameter, what of it, tensor)``."""
        for file, part in self.tag.of("piece"):
            content = self.view.content(part)
            if content is None or not content.readable:
                continue
            value = content.value
            held = value if isinstance(value, TensorRef) else (as_mapping(value) or {}).get("param")
            if isinstance(held, TensorRef):
                yield file.name, file.prefix, self._shaped(file.name, held)

    def _shaped(self, name: str, ref: TensorRef) -> TensorRef:
        shape = self._shapes.get(name)
        if shape is None or len(ref.shape) != 1 or shape == ref.shape:
            return ref
        made = tensor(name, shape, [Piece(0, ref.numel, ref, 0)])
        return made if made is not None and made.chunks else ref

    @cached_property
    def weights(self) -> Mapping[str, TensorRef]:
        whole = {name: named(ref, name) for name, what, ref in self._pieces() if what == _WEIGHTS}
        slices = {f"mp_rank_{mp:02d}.{name}" for mp in self.tag.parallel for name in whole}
        return {name: ref for name, ref in super().weights.items() if name not in slices} | whole

    @cached_property
    def optimizer_tensors(self) -> Mapping[str, TensorRef]:
        moments = ((f"state.{name}.{what}", ref) for name, what, ref in self._pieces() if what != _WEIGHTS)
        return {name: named(ref, name) for name, ref in moments}

    @cached_property
    def optimizer(self) -> Mapping[Any, Value] | None:
        state: dict[str, dict[str, TensorRef]] = {}
        for name, what, ref in self._pieces():
            if what != _WEIGHTS:
                state.setdefault(name, {})[what] = ref
        shared = (self.tag.read(part) for part in self.view.checkpoint.parts if part.path.endswith(_SHARED))
        groups = next((found["param_groups"] for found in shared if found and "param_groups" in found), None)
        if not isinstance(groups, list | tuple):
            return None
        names = [list(shapes) for mp in self.tag.parallel[:1] for shapes in self.tag.shapes(mp)]
        own = [{**(as_mapping(group) or {}), "params": each} for group, each in zip(groups, names, strict=False)]
        return {"state": state, "param_groups": own}
