"""CK378: files of DeepSpeed's ranks that lie in the place of those of other ranks."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from ckpt_tools.layouts.assembly_zero import tag_of
from ckpt_tools.layouts.assembly_zero_names import RankFile
from ckpt_tools.layouts.assembly_zero_origin import Origin, Origins
from ckpt_tools.layouts.assembly_zero_tag import Tag
from ckpt_tools.layouts.match import is_file
from ckpt_tools.model.checkpoint import Checkpoint
from ckpt_tools.model.findings import (
    BREAKS_ALL,
    BREAKS_RESUME,
    DEGRADES_ALL,
    DEGRADES_RESUME,
    HARMLESS,
    Impact,
    Severity,
)
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_LOADED = "DeepSpeed loads it without a word, and goes on with"
_PARTITION = (DEGRADES_ALL, f"{_LOADED} weights and moments of other parameters")
_EXPERTS = (DEGRADES_RESUME, f"{_LOADED} the moments of other experts")
_LAYER = (BREAKS_ALL, "DeepSpeed stops where the shapes differ, and else loads the one layer as the other")
_EXPERT = (BREAKS_ALL, "DeepSpeed does not find this expert, and stops: Missing key(s) in state_dict")
_FROZEN = (DEGRADES_ALL, f"{_LOADED} another rank's slices of the frozen parameters")
_MODULE = (BREAKS_ALL, "it holds another part of the model")
_STATES = (BREAKS_RESUME, "it holds the optimizer of another part of the model")
_PIECE = (DEGRADES_RESUME, f"{_LOADED} one of the moments in the place of another")
_WEIGHTS = (BREAKS_ALL, f"{_LOADED} something else in the place of weights")
_COUNTS = (HARMLESS, "DeepSpeed takes from it what all ranks say alike; what a loop kept for each rank is another's")


@rule("CK378", "zero-rank-misplaced", Severity.ERROR, Checkpoint, impact=DEGRADES_ALL)
def rank_misplaced(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A file of one rank, layer, expert or moment is that of another: swapped, or copied one over the other.

    **Why it matters.** Partitions have no names in them, and those of all ranks are as long. DeepSpeed loads what lies
    under a rank's name, and trains the weights and the moments of other parameters without a word.

    **How to repair.** Copy the tag again from its source. Where two files were swapped, give them their names back: the
    finding says what each was written as.

    **Known exceptions.** What tells is the name that `torch.save` puts into its archive and, up to stage 2, the
    places of the parameters that each partition states. Archives that were written to a stream have no name. The model
    states of other ranks are a warning where they hold what all ranks say alike. A layer that was copied over another
    one, to make a model deeper, is no fault; experts of rank 0 come out right from each other's files (CK587).
    """
    tag = None if is_file(context.run) else tag_of(context.view)
    if tag is None:
        return
    found: dict[tuple[Impact, str], list[Origin]] = {}
    origins, unread = Origins(tag), {file.path for file in tag.census.extra}
    for origin in origins.strange.values():
        effect = _effect(tag, origins, origin) if origin.file.path not in unread else None
        if effect is not None:
            found.setdefault(effect, []).append(origin)
    for (impact, meaning), several in found.items():
        first = several[0].file
        noun = {"layer": "layer", "expert": "expert", "piece": "kind"}.get(first.kind, "rank")
        written = [f"{_name(each.file)} was written as {_name(each.was)}: {each.told}" for each in several[:10]]
        more = len(several) - len(written)
        yield Hit(
            f"a file is that of another {noun}"
            if len(several) == 1
            else f"{len(several):,} files are those of other {noun}s",
            first.path,
            detail=(*written, *((f"... and {more:,} more",) if more else ()), meaning),
            severity=Severity.WARNING if impact is HARMLESS else None,
            impact=impact,
        )


def _name(file: RankFile) -> str:
    return f"{file.name}/{file.prefix}.pt" if file.kind == "piece" else posixpath.basename(file.path)


def _effect(tag: Tag, origins: Origins, origin: Origin) -> tuple[Impact, str] | None:
    """Return what it means that a file lies in the place of another one, None where it means nothing."""
    file, was = origin.file, origin.was
    if file.kind == "layer":
        return _LAYER if origins.swapped(origin) else None
    if file.kind == "expert":
        return None if origins.swapped(origin) and origins.together(file, was) else _EXPERT
    if file.kind == "piece":
        return _WEIGHTS if "fp32" in (file.prefix, was.prefix) else _PIECE
    if file.kind != "model":
        return _PARTITION if file.kind == "optimizer" else _EXPERTS
    if tag.universal:
        return None
    state = tag.models.get((file.dp, file.mp), {})
    if file.mp == was.mp:
        return _FROZEN if state.get("frozen_param_fragments") else _COUNTS
    return _MODULE if state.get("module") else _STATES if state.get("optimizer") else _COUNTS


RULES: tuple[Rule, ...] = (rank_misplaced,)
