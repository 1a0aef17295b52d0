"""What a ``torch_dist`` directory of Megatron-Core holds: a DCP directory whose names are Megatron's own.

``optimizer.state.exp_avg.decoder.weight`` names the moment first and the parameter after it; several optimizers are
``chained_0``, ``chained_1`` ...  Small state is in ``common.pt``, or under ``common_state`` among the chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.layouts.assembly_dcp import DcpAssembly, assemble_at
from ckpt_tools.layouts.assembly_dcp_names import Kind
from ckpt_tools.model.checkpoint import Slot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View

_OPTIMIZER = re.compile(r"(?:chained_\d+\.)?optimizer\.")
_MOMENT = re.compile(r"(?P<chain>chained_\d+\.)?optimizer\.state\.(?P<moment>[^.]+)\.(?P<parameter>.+)\Z")
_COMMON = re.compile(r"common_state/shard_\d+_\d+\Z")
_STATE = re.compile(r"(?:rng_state|common_state|rerun_state_machine\w*|opt_param_scheduler|iteration|args)(?:[/.]|\Z)")


def assemble(view: View) -> Iterator[Assembly]:
    """Yield the assembly of a checkpoint that is itself such a directory."""
    return within(view, "")


def within(view: View, directory: str) -> Iterator[Assembly]:
    """Yield the assembly of a directory of the checkpoint."""
    made = assemble_at(view, directory, "Megatron-Core", MegatronAssembly)
    if made is not None:
        yield made


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
    def common(self) -> Mapping[Any, Value]:
        """What later versions keep among the chunks instead of in ``common.pt``."""
        wanted = [piece for fqn, piece in self.items.items() if _COMMON.match(fqn)]
        return next((held for _, value in self.blobs.objects(wanted[:1]) if (held := as_mapping(value))), {})

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        name = next((fqn for fqn in self.items if _COMMON.match(fqn)), None)
        part = self.data.get(self.items[name].extent.path) if name is not None else None
        if part is None or "iteration" not in self.common:
            return ()
        return (Slot("step", part, f"{name}.iteration", self.common["iteration"], editable=False),)


def _by_parameter(fqn: str) -> str:
    """Return the name of a moment as others give it: ``state.<parameter>.<moment>``."""
    match = _MOMENT.match(fqn)
    return f"{match['chain'] or ''}state.{match['parameter']}.{match['moment']}" if match else fqn
