"""What has to be whole before weights are merged, and what stays behind when they are."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.listing import SIDECAR
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import Finding, Severity, Verdict
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.numerics.assembled import problem
from ckpt_tools.ops import engine, safetensors_file
from ckpt_tools.ops.diff_targets import Target
from ckpt_tools.ops.unpacked import unpacked
from ckpt_tools.reports.merge import LeftOut
from ckpt_tools.reports.units import first_names
from ckpt_tools.rules.base import Settings

_ASIDE = frozenset({Role.CONFIG, Role.GENERATION_CONFIG, Role.TOKENIZER})
"""Parts without which a model does not load, and its weights are whole all the same."""

_TENSORS = frozenset({Role.WEIGHTS, Role.INDEX, Role.CHUNKS, Role.METADATA, Role.MODEL_STATES, Role.SIDECAR})
"""Files of which the report speaks as tensors."""

_READ_HERE = frozenset({"dcp-not-loadable"})
"""Why torch itself does not load a checkpoint that is whole, and is read here."""

_FLAT = (
    ": the ranks' files hold pieces of FSDP's flat parameters (LOCAL_STATE_DICT), whose shapes are stored nowhere",
    "load it in the training that wrote it, and save with SHARDED_STATE_DICT or FULL_STATE_DICT",
)
_UNREAD = {
    "keras": (
        ": Keras keeps them in HDF5, which is not read by this version",
        "load it with keras and save the weights",
    ),
    "megatron-torch": (
        ": each file holds the slices of its rank, and how they were cut is not stored",
        "Megatron-LM's tools/checkpoint/convert.py puts them together",
    ),
    "orbax": (": the arrays of Orbax are not read by this version", "restore it with orbax.checkpoint"),
}
"""Layouts whose weights are not read here: why, and what reads them."""


def refuse_damaged(target: Target) -> None:
    """Look at the structure of a checkpoint as ``verify`` does.

    Raises:
        EditRefusedError: its weights would not load, or it is being saved.
    """
    view = target.view
    findings = engine.check(target.run, view.checkpoint, view, Settings(time.time_ns()))
    roles = {view.checkpoint.place(part.path): part.role for part in view.checkpoint.parts}
    bad = [finding for finding in findings if _hurts(finding) and roles.get(finding.path) not in _ASIDE]
    if bad:
        worst = max(bad, key=lambda finding: finding.severity)
        more = f" and {len(bad) - 1:,} more" if len(bad) > 1 else ""
        place = target.path if worst.path == "." else worst.path
        raise EditRefusedError(
            f"{place}: {worst.message} [{worst.code}]{more}", hint=f"`ckpt verify {target.path}` says more"
        )


def _hurts(finding: Finding) -> bool:
    broken = finding.impact.inference in (Verdict.BROKEN, Verdict.IN_PROGRESS)
    told = finding.code.startswith("CK7") or finding.name in _READ_HERE
    return broken and finding.severity >= Severity.ERROR and not told


def whole(view: View) -> dict[str, TensorRef]:
    """Return the weights with the places of their elements; those without bytes in the checkpoint as they are.

    Raises:
        EditRefusedError: there are none, or some cannot be read or written.
    """
    said = dict(view.weights)
    stored = {name: ref for name, ref in said.items() if ref.chunks or not ref.numel}
    if not stored:
        why, hint = _elsewhere(view)
        raise EditRefusedError(f"the checkpoint holds no weights that could be put together{why}", hint=hint)
    bad: dict[str, str] = {}
    found: dict[str, TensorRef] = dict(said)
    for name, ref in unpacked(view.listing, stored).items():
        why = ref if isinstance(ref, str) else problem(ref)
        if not why and said[name].dtype not in safetensors_file.NAMES:
            why = f"safetensors has no type for {said[name].dtype}"
        if why:
            bad[name] = why
        elif isinstance(ref, TensorRef):
            found[name] = ref
    if bad:
        name, why = next(iter(bad.items()))
        more = f"; so are {first_names(list(bad)[1:], 3)}" if len(bad) > 1 else ""
        raise EditRefusedError(f"the weights are not whole: {name}: {why}{more}")
    return found


def _elsewhere(view: View) -> tuple[str, str | None]:
    """Return why no weights were found, as far as that is known, and what to do instead."""
    if view.errors:
        return f": {next(iter(view.errors.values()))}", None
    if view.adapters():
        return ": it is an adapter's, which peft merges into its base model", None
    checkpoint = view.checkpoint
    if "fsdp" in checkpoint.layouts and checkpoint.has(Role.MODEL_STATES):
        return _FLAT
    return next((_UNREAD[layout] for layout in checkpoint.layouts if layout in _UNREAD), ("", None))


# What stays behind -----------------------------------------------------------------------------------------


def left_out(view: View, weights: Mapping[str, TensorRef], copied: Iterable[Part]) -> Iterator[LeftOut]:
    """Yield what the checkpoint holds beside what was written."""
    empty = [name for name, ref in weights.items() if not ref.chunks and ref.numel]
    if empty:
        yield LeftOut("tensors without bytes", first_names(empty, 5))
    moments = view.optimizer_tensors
    if moments:
        yield LeftOut("optimizer state", f"{len(moments):,} tensors", sum(ref.nbytes for ref in moments.values()))
    checkpoint = view.checkpoint
    if view.scheduler is not None and not checkpoint.has(Role.SCHEDULER):
        yield LeftOut("scheduler", "its state")
    kept = {part.path for part in copied} | {part.path for part in view.weight_parts}
    roles: dict[str, list[Part]] = {}
    for part in checkpoint.parts:
        beside = part.role not in _TENSORS or (part.role is Role.WEIGHTS and not view.assemblies)
        told = part.role in (Role.OPTIMIZER, Role.OPTIMIZER_STATES) and moments
        if beside and not told and part.path not in kept and part.stat.is_file:
            roles.setdefault(part.role.value, []).append(part)
    for role, parts in roles.items():
        yield LeftOut(role, first_names([part.path for part in parts], 3), sum(part.stat.size for part in parts))
    others = [path for path in checkpoint.unclaimed if not path.startswith(SIDECAR)]
    if others:
        yield LeftOut(
            "other files", first_names(others, 3), sum(checkpoint.listing.files[path].size for path in others)
        )


def notes(target: Target) -> Iterator[str]:
    """Yield what may not be what the user had in mind."""
    view = target.view
    if view.checkpoint.layout == "hf-trainer" and not view.checkpoint.has(Role.CONFIG):
        yield "no config.json is in the checkpoint: copy the model's own, and its tokenizer, for from_pretrained"
    for assembly in view.assemblies:
        if assembly.place and view.weight_parts and assembly.weights:
            dtypes = " and ".join(sorted({ref.dtype for ref in assembly.weights.values()}))
            yield (
                f"these are the weights that lie beside it; {assembly.framework}'s own ({dtypes}) are in "
                f"{assembly.place}: `ckpt merge {target.path}/{assembly.place} OUT`"
            )
