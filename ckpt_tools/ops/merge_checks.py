"""What has to be whole before weights are merged, and what stays behind when they are."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping

from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.listing import SIDECAR, scan
from ckpt_tools.layouts.assembly_zero import tag_of
from ckpt_tools.layouts.match import holder, is_prefix
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import Finding, Severity, Verdict
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import as_mapping
from ckpt_tools.numerics.assembled import problem
from ckpt_tools.ops import describe, engine, safetensors_file, unread
from ckpt_tools.ops.diff_targets import Target
from ckpt_tools.ops.unpacked import unpacked
from ckpt_tools.reports.merge import LeftOut
from ckpt_tools.reports.units import first_names
from ckpt_tools.rules.base import Settings

_ASIDE = frozenset({Role.CONFIG, Role.GENERATION_CONFIG, Role.TOKENIZER})
"""Parts without which a model does not load, and its weights are whole all the same."""

_TENSORS = frozenset({Role.WEIGHTS, Role.INDEX, Role.CHUNKS, Role.METADATA, Role.MODEL_STATES, Role.SIDECAR})
"""Files of which the report speaks as tensors."""

_PIECES = (Role.CHUNKS, Role.METADATA, Role.OPTIMIZER_STATES, Role.INDEX)
"""Files that hold weights, or tell where they are, only together with others."""

_SHARD = re.compile(r"-\d{5}-of-(?!00001\b)\d{5}\.\w+\Z")

_OF_RANK = re.compile(r"mp_rank_\d{2,3}(?:_\d{3})?\Z")
"""The directory of one rank of Megatron-LM."""

_BUNDLED = re.compile(r"\.(?:index|data-\d{5}-of-\d{5})\Z")
"""What TensorFlow puts behind the name of a checkpoint."""

_READ_HERE = frozenset({"dcp-not-loadable"})
"""Why torch itself does not load a checkpoint that is whole, and is read here."""


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
            f"{place}: {worst.message} [{worst.code}]{more}", hint=f"`ckpt verify {shlex.quote(target.path)}` says more"
        )


def refuse_inside(target: Target, out: str) -> None:
    """Require that the output lies beside the checkpoint, and would not become a part of it.

    Raises:
        EditRefusedError: it lies inside.
    """
    around, made = os.path.realpath(target.path), os.path.realpath(out)
    if os.path.isdir(around) and made.startswith(os.path.join(around, "")):
        raise EditRefusedError(f"{out}: lies inside of {target.path}, which it would be a part of")


def refuse_piece(target: Target) -> None:
    """Require that a single file is not one of several that only together hold the weights.

    Raises:
        EditRefusedError: it is; the hint names the directory.
    """
    checkpoint, weights = target.view.checkpoint, target.view.weights
    if not target.file or checkpoint.together:
        return
    shard = any(_SHARD.search(part.path) for part in checkpoint.of(Role.WEIGHTS))
    around = holder(target.path)
    place = os.path.dirname(target.path) or "."
    if checkpoint.has(Role.MODEL_STATES):
        beside = around is not None and len(list(around.of(Role.MODEL_STATES))) > 1
        piece = beside or any(not ref.chunks and ref.numel for ref in weights.values())
    elif _OF_RANK.match(os.path.basename(os.path.abspath(place))):
        place = os.path.dirname(os.path.abspath(place))
        piece = sum(bool(_OF_RANK.match(name)) for name in scan(place, depth=1).names()) > 1
    else:
        piece = shard or checkpoint.has(*_PIECES) or (around is not None and not weights)
    bundle = _BUNDLED.sub("", target.path)
    if bundle != target.path and is_prefix(bundle):
        place, piece = bundle, True
    if piece:
        raise EditRefusedError(
            f"{target.path}: is one file of a checkpoint, and the weights are not all in it",
            hint=f"name {shlex.quote(place)}",
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
    if not stored or (view.adapters() and not view.weight_parts):
        why, hint = _elsewhere(view)
        raise EditRefusedError(f"the checkpoint holds no weights that could be put together{why}", hint=hint)
    inside = {chunk.inside for ref in stored.values() for chunk in ref.chunks}
    coded = ", ".join(sorted(each for each in inside if each.startswith("stream.")))
    if coded:
        raise EditRefusedError(
            f"the weights went through {coded} when they were saved, which is not read by this version",
            hint="load and save it once without that extension",
        )
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
        more = f"; nor can {first_names(list(bad)[1:], 3)}" if len(bad) > 1 else ""
        raise EditRefusedError(f"not every tensor can be written: {name}: {why}{more}")
    return found


def _elsewhere(view: View) -> tuple[str, str | None]:
    """Return why no weights were found, as far as that is known, and what to do instead."""
    if view.errors:
        return f": {next(iter(view.errors.values()))}", None
    if view.adapters():
        path = repr(view.listing.root)
        hint = f"AutoPeftModel.from_pretrained({path}).merge_and_unload().save_pretrained('OUT')"
        return ": it is an adapter's, which peft merges into its base model", hint
    checkpoint = view.checkpoint
    opaque = {name: 1 for part in checkpoint.of(Role.COMBINED) if (held := view.content(part)) for name in held.globals}
    odd = describe.foreign(opaque)
    if odd:
        told = f": they are inside of objects of {first_names(odd, 3)}, which are not made here"
        return told, "load it in the program that wrote it, and save the model's state_dict()"
    found = unread.why(view)
    if found:
        return f": {found[0]}", found[1]
    alone = checkpoint.has(Role.OPTIMIZER, Role.OPTIMIZER_STATES) or view.optimizer_tensors
    return (": it holds the state of an optimizer, and no model" if alone else ""), None


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
        alone = part.role is Role.COMBINED and not _holds_more(view, part)
        if beside and not told and not alone and part.path not in kept and part.stat.is_file:
            roles.setdefault(part.role.value, []).append(part)
    for part in roles.pop(Role.COMBINED.value, []):
        yield LeftOut("what else is in the file", part.path)
    for role, parts in roles.items():
        yield LeftOut(role, first_names([part.path for part in parts], 3), sum(part.stat.size for part in parts))
    others = [path for path in checkpoint.unclaimed if not path.startswith(SIDECAR)]
    if others:
        yield LeftOut(
            "other files", first_names(others, 3), sum(checkpoint.listing.files[path].size for path in others)
        )


def _holds_more(view: View, part: Part) -> bool:
    """Return whether there is something beside the model in a file that may hold everything."""
    content = view.content(part)
    value = as_mapping(content.value) if content is not None else None
    return value is None or (len(value) > 1 and not all(isinstance(each, TensorRef) for each in value.values()))


def notes(target: Target) -> Iterator[str]:
    """Yield what may not be what the user had in mind."""
    view = target.view
    if view.checkpoint.layout == "hf-trainer" and not view.checkpoint.has(Role.CONFIG):
        yield "no config.json is in the checkpoint: copy the model's own, and its tokenizer, for from_pretrained"
    if view.checkpoint.layout == "tensorflow":
        yield "the names are the paths of TensorFlow's objects, without `/.ATTRIBUTES/VARIABLE_VALUE`"
    tag = None if view.weight_parts else tag_of(view)
    if tag is not None and tag.unfrozen:
        yield "the frozen parameters are not in the checkpoint (exclude_frozen_parameters): the base model has them"
    for assembly in view.assemblies:
        if assembly.place and view.weight_parts and assembly.weights:
            dtypes = " and ".join(sorted({ref.dtype for ref in assembly.weights.values()}))
            yield (
                f"these are the weights that lie beside it; {assembly.framework}'s own ({dtypes}) are in "
                f"{assembly.place}: `ckpt merge {target.path}/{assembly.place} OUT`"
            )
