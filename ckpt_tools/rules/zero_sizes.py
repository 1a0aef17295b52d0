"""CK37x: the vectors of ZeRO's partitions against the names and shapes of the parameters that they were cut from."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ckpt_tools.layouts.assembly_zero import tag_of
from ckpt_tools.layouts.assembly_zero_census import numbers
from ckpt_tools.layouts.assembly_zero_tag import Shard, Tag
from ckpt_tools.layouts.match import is_file
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import (
    BREAKS_ALL,
    BREAKS_INFERENCE,
    BREAKS_RESUME,
    DEGRADES_ALL,
    DEGRADES_RESUME,
    HARMLESS,
    Impact,
    Severity,
    Verdict,
)
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, as_mapping, whole
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_ADAM = {"exp_avg", "exp_avg_sq"}
_NOT_WHOLE = Impact(Verdict.READY, Verdict.DEGRADED)


def _tag(context: Context) -> Tag | None:
    """Return a tag of which all partitions are there, and of one save: nothing else can be added up."""
    tag = None if is_file(context.run) else tag_of(context.view)
    if tag is None or tag.universal or tag.offloaded or not tag.shards or not tag.models:
        return None
    census = tag.census
    count = census.partitions * census.slices
    own = [shard for (dp, mp), shard in tag.shards.items() if (dp or 0) < census.partitions and mp < census.slices]
    fitting = {(shard.count, shard.stage) for shard in own} == {(census.partitions, tag.stage)}
    return tag if len(own) == count and fitting else None


def _ranks(tag: Tag, mp: int) -> list[tuple[int, Shard]]:
    limit = tag.census.partitions
    found = [(dp, shard) for (dp, own), shard in tag.shards.items() if own == mp and dp is not None and dp < limit]
    return sorted(found, key=lambda each: each[0])


def _aligned(count: int, world: int) -> int:
    """Round up to a multiple of twice the ranks: what paddings may add, as zero_to_fp32.py allows it."""
    step = 2 * world
    return -(-count // step) * step


@rule("CK370", "zero-partition-size", Severity.ERROR, Checkpoint, impact=DEGRADES_ALL)
def partition_size(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The flat vectors of a group have more or fewer elements than its parameters (ZeRO 1 and 2).

    **Why it matters.** The vectors have no names in them: one element too many or too few moves every parameter that
    comes after it. DeepSpeed fills a short one with zeros and goes on; `zero_to_fp32.py` stops (`something is wrong`).

    **How to repair.** Model states or partitions are of another model: copy the tag again from its source.

    **Known exceptions.** Paddings, up to a multiple of twice the number of ranks.
    """
    tag = _tag(context)
    if tag is None or tag.stage == 3:
        return
    for mp in tag.parallel:
        ranks = _ranks(tag, mp)
        for group in range(len(tag.shapes(mp))):
            sets = tag.experts(mp, group)
            parameters = tag.layout(mp, group)
            wanted = parameters[-1].start + parameters[-1].numel if parameters else 0
            for which in range(sets):
                own = [shard for _, shard in ranks][which::sets]
                held = sum(shard.flat[group].numel for shard in own if group < len(shard.flat))
                if any(group >= len(shard.flat) for shard in own) or _off(held, wanted, len(own)):
                    yield Hit(
                        f"group {group} has {held:,} elements over all ranks, its parameters {wanted:,}",
                        tag.folder,
                        detail=(f"{len(parameters):,} parameters",),
                    )


def _off(held: int, wanted: int, world: int) -> bool:
    return held < wanted or _aligned(held, world) != _aligned(wanted, world)


@rule("CK371", "zero-slices-differ", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def slices_differ(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """With ZeRO 3 a rank holds more or fewer elements than its slices of all parameters.

    **Why it matters.** Every rank holds as much as every other: a slice of each parameter, rounded up. Where that
    does not fit, the weights cannot be put together.

    **How to repair.** The partition is of another model or number of ranks: copy the tag again from its source.
    """
    tag = _tag(context)
    if tag is None or tag.stage != 3:
        return
    for mp in tag.parallel:
        ranks = _ranks(tag, mp)
        shapes = [shape for group in tag.shapes(mp) for shape in group.values()]
        wanted = sum(-(-prod(shape) // len(ranks)) for shape in shapes)
        wrong = [(rank, held) for rank, shard in ranks if (held := sum(ref.numel for ref in shard.flat)) != wanted]
        if wrong:
            yield Hit(
                f"rank {numbers([rank for rank, _ in wrong])} does not hold one slice of every parameter",
                tag.folder,
                detail=(f"{wrong[0][1]:,} elements, {len(shapes):,} parameters need {wanted:,} on each rank",),
            )


@rule("CK372", "zero-moments-differ", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def moments_differ(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The moments (`exp_avg`, `exp_avg_sq`) of a group are not as long on one rank as on the others.

    **Why it matters.** They are cut like the weights: DeepSpeed stops, or the first step does.

    **How to repair.** Copy the tag again from its source, or fall back to an older one (`ckpt latest RUN`).

    **Known exceptions.** Weights without the padding at their end, moments with it; in older versions both without.
    """
    tag = _tag(context)
    for mp in tag.parallel if tag is not None else ():
        found: dict[tuple[int, str], dict[int, list[str]]] = {}
        for _, shard in _ranks(tag, mp) if tag is not None else ():
            for group, (ref, state) in enumerate(zip(shard.flat, shard.moments, strict=False)):
                for key in ("exp_avg", "exp_avg_sq"):
                    held = state.get(key)
                    if isinstance(held, TensorRef):
                        if not shard.elastic:
                            found.setdefault((group, key), {}).setdefault(held.numel, []).append(shard.file.path)
                        if held.numel < ref.numel:
                            text = f"{key} of group {group} is shorter than its weights: {held.numel:,}, {ref.numel:,}"
                            yield Hit(text, shard.file.path)
        for (group, key), lengths in found.items():
            if len(lengths) > 1:
                few = min(lengths.values(), key=len)
                said = ", ".join(f"{length:,} in {len(paths):,}" for length, paths in sorted(lengths.items()))
                yield Hit(f"{key} of group {group} has different lengths: {said} files", few[0])


@rule("CK373", "zero-slice-mappings", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def slice_mappings(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The places that the ranks state for their piece of a parameter do not add up to the parameter.

    **Why it matters.** They say where in its vector each rank has which parameter, for conversions
    (`ds_to_universal`). Where they do not add up, a partition is of another save.

    **How to repair.** Copy the tag again from its source, or fall back to an older one (`ckpt latest RUN`).
    """
    tag = _tag(context)
    if tag is None or tag.stage == 3:
        return
    for mp in tag.parallel:
        for group, shapes in enumerate(tag.shapes(mp)):
            held, sets = _mapped(tag, mp, group), tag.experts(mp, group)
            wrong = [name for name, shape in shapes.items() if held and held.get(name, 0) != sets * prod(shape)]
            if wrong:
                said = f"{wrong[0]}: {held.get(wrong[0], 0):,} of {sets * prod(shapes[wrong[0]]):,} elements"
                text = f"the pieces of {len(wrong):,} parameter{'' if len(wrong) == 1 else 's'} do not add up"
                yield Hit(text, tag.folder, detail=(said,))


def _mapped(tag: Tag, mp: int, group: int) -> dict[str, int]:
    """Return how many elements of each parameter all ranks state; empty where one states nothing."""
    found: dict[str, int] = {}
    for _, shard in _ranks(tag, mp):
        said = shard.state.get("param_slice_mappings")
        if not isinstance(said, list | tuple) or group >= len(said):
            return {}
        for name, fragment in (as_mapping(said[group]) or {}).items():
            place = as_mapping(fragment.state) if isinstance(fragment, Opaque) else as_mapping(fragment)
            found[name] = found.get(name, 0) + (whole((place or {}).get("numel")) or 0)
    return found


@rule("CK374", "zero-weights-incomplete", Severity.ERROR, Checkpoint, impact=BREAKS_INFERENCE)
def weights_incomplete(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """With ZeRO 3 a partition cannot be read, and with it a slice of every weight is gone.

    **Why it matters.** The model states of stage 3 have placeholders without elements. The weights are in the
    optimizer's files, and no converter works without one of them.

    **How to repair.** Fall back to an older tag (`ckpt latest RUN`).

    **Known exceptions.** Weights that the trainer gathered and saved beside them.
    """
    tag = None if is_file(context.run) else tag_of(context.view)
    if tag is None or tag.stage != 3 or tag.universal or tag.offloaded:
        return
    if context.view.weight_parts or checkpoint.has(Role.ADAPTER):
        return
    unread = [file.path for file, part in tag.of("optimizer") if not tag.intact(part)]
    if unread:
        text = f"{len(unread):,} of {len(tag.of('optimizer')):,} partitions of the weights cannot be read"
        yield Hit(text, unread[0], detail=("a slice of every weight is in each of them",))


@rule("CK375", "universal-pieces-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def universal_pieces_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A universal checkpoint lacks the weights or the moments of some parameters, or its conversion was cut.

    **Why it matters.** Every parameter has a directory below `zero/`; DeepSpeed stops at the first that is missing.

    **How to repair.** Convert the tag again (`python -m deepspeed.checkpoint.ds_to_universal`).

    **Known exceptions.** Frozen parameters and buffers have weights alone, and other optimizers other moments. Of stage
    3 no step is stored; where one parameter of a group has a `step.pt`, all of them need it.
    """
    tag = None if is_file(context.run) else tag_of(context.view)
    if tag is None or not tag.universal:
        return
    pieces: dict[str, set[str]] = {}
    for file, _ in tag.of("piece"):
        pieces.setdefault(file.name, set()).add(file.prefix)
    trained = [name for mp in tag.parallel for group in tag.shapes(mp) for name in group]
    moments = any(held - {"fp32", "step"} for held in pieces.values())
    stepped = {
        name
        for mp in tag.parallel
        for group in tag.shapes(mp)
        for name in (group if any("step" in pieces.get(each, ()) for each in group) else ())
    }
    wanted = {name: {"fp32", "step"} if name in stepped else {"fp32"} for name in trained}
    lacking = {
        name: what for name in trained if (what := _lacking(pieces.get(name, set()), wanted[name], moments=moments))
    }
    if lacking:
        name, what = next(iter(lacking.items()))
        weights = any("fp32" in each for each in lacking.values())
        yield Hit(
            f"{len(lacking):,} of {len(trained):,} parameters are not complete",
            tag.folder,
            detail=(f"{name} lacks {', '.join(f'{each}.pt' for each in what)}",),
            impact=None if weights else BREAKS_RESUME,
        )
    prefix = f"{tag.folder}/" if tag.folder else ""
    if f"{prefix}zero/optimizer_state.pt" not in checkpoint.listing.files:
        detail = ('DeepSpeed stops: "containing optimizer global state is missing! Cannot proceed."',)
        yield Hit("zero/optimizer_state.pt is missing", tag.folder, detail=detail, impact=BREAKS_RESUME)
    if any(path.startswith(f"{prefix}tmp/") for path in checkpoint.listing.files):
        text = "a directory of the conversion was left over: it did not end"
        yield Hit(text, f"{prefix}tmp", severity=Severity.WARNING, impact=HARMLESS)


def _lacking(held: set[str], wanted: set[str], *, moments: bool) -> list[str]:
    """Return what a parameter lacks of ``wanted`` and of the moments, where others have some; Adam's are a pair."""
    if moments and (held & _ADAM or not held - {"fp32", "step"}):
        wanted = wanted | _ADAM
    return sorted(wanted - held)


@rule("CK376", "zero-shape-mismatch", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def shape_mismatch(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A weight in the model states has another shape than the optimizer's list of parameters says.

    **Why it matters.** The file was put together from two models: the optimizer trains what the model does not have.
    The layers of a pipeline, in files of their own, must have all of their parameters, too.

    **How to repair.** Take the model states, or the layer, from another tag of the run.

    **Known exceptions.** Stage 3, whose model states have placeholders, and experts with files of their own.
    """
    tag = None if is_file(context.run) else tag_of(context.view)
    if tag is None or tag.universal or tag.stage == 3:
        return
    if tag.of("layer"):
        yield from _layers(tag)
        return
    for (_, mp), state in tag.models.items():
        module = as_mapping(state.get("module")) or {}
        for group in tag.shapes(mp) if module else ():
            for name, shape in group.items():
                held = module.get(name)
                if isinstance(held, TensorRef) and held.shape != shape:
                    text = f"{name} has the shape {list(held.shape)}, the optimizer's parameter {list(shape)}"
                    yield Hit(text, next(f.path for f, _ in tag.of("model") if f.mp == mp))


def _layers(tag: Tag) -> Iterator[Hit]:
    """Yield the files of layers that are those of others by their names or shapes; each slice may have its own."""
    wanted: dict[str, set[tuple[int, ...]]] = {}
    for mp in tag.parallel:
        for group in tag.shapes(mp):
            for name, shape in group.items():
                wanted.setdefault(name, set()).add(shape)
    for file, part in tag.of("layer"):
        held = tag.read(part)
        mine = ((name, shapes) for name, shapes in wanted.items() if name.startswith(f"{file.layer}."))
        for name, shapes in mine if held is not None else ():
            ref = (held or {}).get(name.partition(".")[2])
            if not isinstance(ref, TensorRef) or ref.shape not in shapes:
                has = f"has the shape {list(ref.shape)}" if isinstance(ref, TensorRef) else "is not in it"
                text = f"{name} {has}, the optimizer's parameter {list(min(shapes))}"
                yield Hit(text, file.path, impact=BREAKS_ALL)
                break


@rule("CK379", "zero-frozen-left-out", Severity.NOTE, Checkpoint, impact=_NOT_WHOLE)
def frozen_left_out(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Saved without the frozen parameters (`save_checkpoint(..., exclude_frozen_parameters=True)`), with ZeRO 2 or 3.

    **Why it matters.** What was not trained is not in the checkpoint: the model is whole only together with the weights
    that it began with. `load_checkpoint` stops (`Missing key(s) in state_dict`) unless it is called with
    `load_module_strict=False`.

    **How to repair.** Nothing is broken: load the base weights first. To have all in one checkpoint, save without that
    argument.

    **Known exceptions.** An adapter, or gathered weights, that lie beside it. Of stages 0 and 1 nothing tells.
    """
    tag = None if is_file(context.run) else tag_of(context.view)
    if tag is None or not tag.unfrozen or context.view.weight_parts or checkpoint.has(Role.ADAPTER):
        return
    yield Hit(
        "saved without the frozen parameters (exclude_frozen_parameters)",
        tag.folder,
        detail=(f"{len(context.view.weights):,} tensors are here: what is trained, and buffers",),
        help="load the base weights first, then `load_checkpoint(..., load_module_strict=False)`",
    )


RULES: tuple[Rule, ...] = (
    partition_size,
    slices_differ,
    moments_differ,
    slice_mappings,
    weights_incomplete,
    universal_pieces_missing,
    shape_mismatch,
    frozen_left_out,
)
