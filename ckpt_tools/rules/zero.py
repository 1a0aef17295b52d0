"""CK15x: DeepSpeed's files, one for each rank: those that are missing, and those that are of another save."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from itertools import islice

from ckpt_tools.layouts.assembly_zero import tag_of
from ckpt_tools.layouts.assembly_zero_census import Census, numbers
from ckpt_tools.layouts.assembly_zero_names import LATEST, parse_all, pointed
from ckpt_tools.layouts.assembly_zero_tag import MOST, Tag
from ckpt_tools.layouts.match import beside, is_file, is_newest
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME, HARMLESS, Impact, Severity, Verdict
from ckpt_tools.model.values import as_mapping
from ckpt_tools.rules.base import Context, Hit, Rule, rule, unless_dead

_SAVING = Impact(Verdict.IN_PROGRESS, Verdict.IN_PROGRESS)
_OWN = ("deepspeed", "lightning-deepspeed")  # others write something of their own after DeepSpeed
_CONVERTER = "zero_to_fp32.py counts the files and refuses to go on"


def _census(context: Context) -> Census | None:
    """Return who is there, None where there is no tag, or where only one of its files was named."""
    tag = None if is_file(context.run) else tag_of(context.view)
    return tag.census if tag is not None else None


def _lost(context: Context) -> Impact:
    """Return what it means that a part of DeepSpeed's weights is gone: a trainer may have saved them beside, too."""
    return BREAKS_RESUME if context.view.weight_parts or context.view.checkpoint.has(Role.ADAPTER) else BREAKS_ALL


def _each_slice(ranks: list[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Yield the data-parallel ranks for each model-parallel one."""
    for mp in sorted({mp for _, mp in ranks}):
        yield mp, [dp for dp, own in ranks if own == mp]


def _file(prefix: str, dp: int, mp: int) -> str:
    return f"{prefix}zero_pp_rank_{dp}_mp_rank_{mp:02d}_optim_states.pt"


@rule("CK150", "zero-partition-missing", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def partition_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Some ranks have no file with their part of the optimizer (`zero_pp_rank_N_mp_rank_NN_optim_states.pt`).

    **Why it matters.** DeepSpeed stops with `FileNotFoundError` on the rank that owns the file; the others wait for it
    until a time-out. With stage 3 the weights are in these files too, a slice of each parameter in every one.

    **How to repair.** If every node wrote to its own disk, bring the files together in one directory. Otherwise fall
    back to an older tag (`ckpt latest RUN`). Up to stage 2 the weights alone can still be loaded
    (`load_module_only=True`).

    **Known exceptions.** Optimizers without ZeRO have no such files. A file under another prefix is CK154.
    """
    census = _census(context)
    if census is None or not census.missing_partitions:
        return
    weights = census.tag.stage == 3
    for mp, ranks in _each_slice(census.missing_partitions):
        slice_ = f" of model-parallel rank {mp}" if census.slices > 1 else ""
        lost = (
            "the optimizer partition of rank {}{} is"
            if len(ranks) == 1
            else "the optimizer partitions of ranks {}{} are"
        )
        yield Hit(
            f"{lost.format(numbers(ranks), slice_)} missing",
            census.tag.folder,
            detail=(
                f"{census.partitions - len(ranks):,} of {census.partitions:,} are there; the first that is not is "
                f"{_file(census.prefix, ranks[0], mp)}",
                "DeepSpeed stops on the ranks that own them, and the others hang",
                *(("with stage 3 they hold a slice of every weight",) if weights else ()),
            ),
            impact=_lost(context) if weights else None,
        )


@rule("CK151", "zero-model-states-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def model_states_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Model states are missing: `mp_rank_NN_model_states.pt`, with stage 3 `zero_pp_rank_N_mp_rank_NN_...`.

    **Why it matters.** They hold the weights (up to stage 2), the names and shapes of all parameters, the step and the
    scheduler. Without them the partitions are flat vectors that nobody can name.

    **How to repair.** If every node wrote to its own disk, bring the files together in one directory. Otherwise fall
    back to an older tag (`ckpt latest RUN`).
    """
    census = _census(context)
    if census is None or not census.missing_models:
        return
    if not census.tag.of("model"):
        alone = ", only those of the optimizer" if census.tag.files else ", nor anything else of DeepSpeed's"
        trainer = checkpoint.layout == "hf-trainer"
        stops = ('the Trainer stops: "Can\'t find a valid checkpoint"',) if trainer and not census.tag.files else ()
        yield Hit(f"there are no model states{alone}", census.tag.folder, detail=stops, impact=_lost(context))
        return
    prefixes = [f"zero_pp_rank_{dp}_" if dp is not None else "" for dp, _ in census.missing_models]
    names = [f"{prefix}mp_rank_{mp:02d}" for prefix, (_, mp) in zip(prefixes, census.missing_models, strict=True)]
    shown = ", ".join(names[:10]) + (f" ... and {len(names) - 10} more" if len(names) > 10 else "")
    yield Hit(
        f"the model states of {len(names):,} rank{'' if len(names) == 1 else 's'} are missing",
        census.tag.folder,
        detail=(f"{shown}: no file ..._model_states.pt",),
        impact=_lost(context),
    )


@rule("CK152", "zero-saves-mixed", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def saves_mixed(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Files of one tag were written by different numbers of ranks, or with different stages of ZeRO.

    **Why it matters.** Each rank reads its own partition only. Parts that were cut for another number of ranks do not
    fit together: DeepSpeed stops, or goes on with weights and moments at the wrong places.

    **How to repair.** Copy the tag again from its source, or fall back to an older one (`ckpt latest RUN`).

    **Known exceptions.** Files of ranks beyond the number that wrote the tag last are never read (CK153).
    """
    census = _census(context)
    if census is None or census.tag.universal:
        return
    yield from _other_numbers(census)
    yield from _other_stages(census.tag)


def _other_numbers(census: Census) -> Iterator[Hit]:
    usual, extra = census.tag.data_parallel, {file.path for file in census.extra}
    wrong: dict[int, list[str]] = {}
    if usual is None:
        return
    for file, _ in census.tag.files:
        rank = (file.dp, file.mp)
        state, shard = census.tag.models.get(rank), census.tag.shards.get(rank)
        said = state.get("dp_world_size") if file.kind == "model" and state else None
        said = shard.count if file.kind == "optimizer" and shard and shard.file is file else said
        if isinstance(said, int) and said not in (usual, census.partitions) and file.path not in extra:
            wrong.setdefault(said, []).append(file.path)
    for said, paths in wrong.items():
        yield Hit(
            f"{len(paths):,} of the files were written by {said:,} ranks, the others by {usual:,}",
            paths[0],
            detail=(f"rank 0 says {usual:,}; another number: {', '.join(paths[:5])}",),
            impact=BREAKS_ALL if census.tag.stage == 3 else None,
        )


def _other_stages(tag: Tag) -> Iterator[Hit]:
    stages = {shard.file.path: shard.stage for shard in tag.shards.values() if shard.stage is not None}
    others = [path for path, stage in stages.items() if stage != tag.stage]
    if others:
        text = f"{len(others):,} of the optimizer's files are of stage {stages[others[0]]}, the others of {tag.stage}"
        yield Hit(text, others[0], impact=BREAKS_ALL if tag.stage == 3 else None)
    models = [file for file, _ in tag.of("model") if (file.dp is not None) != (tag.stage == 3)]
    if models and tag.stage is not None:
        text = f"the optimizer is of stage {tag.stage}, the name of {len(models):,} model states is that of another"
        other = len(models) == len(tag.of("model"))
        severity = None if other else Severity.WARNING
        yield Hit(text, models[0].path, severity=severity, impact=BREAKS_ALL if other else HARMLESS)


@rule("CK153", "zero-files-left-over", Severity.WARNING, Checkpoint)
def files_left_over(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The tag has files of more ranks than wrote it: an older save under the same name, by a larger number.

    **Why it matters.** DeepSpeed does not read them, but `zero_to_fp32.py` counts all and stops: `Expected 2 of
    '*_optim_states.pt' but found 4 files`.

    **How to repair.** Move the files of the surplus ranks away.
    """
    census = _census(context)
    if census is None or not census.extra:
        return
    paths = [file.path for file in census.extra]
    more = f" ... and {len(paths) - 3:,} more" if len(paths) > 3 else ""
    optimizer = any(file.kind == "optimizer" for file in census.extra)
    yield Hit(
        f"{len(paths):,} file{'' if len(paths) == 1 else 's'} beside those of the {census.tag.data_parallel:,} ranks "
        "that wrote the tag",
        paths[0],
        detail=(", ".join(paths[:3]) + more, *((_CONVERTER,) if optimizer else ())),
        impact=Impact(Verdict.READY, Verdict.DEGRADED) if optimizer and census.tag.stage == 3 else None,
    )


@rule("CK154", "zero-prefix-mixed", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def prefix_mixed(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Some optimizer files have the prefix `bf16_`, and those of other ranks do not.

    **Why it matters.** A run in bfloat16 asks for `bf16_zero_pp_rank_N_...`, every other for the name without it. The
    ranks whose file has the other name stop with `FileNotFoundError`.

    **How to repair.** If the files are of one save (a copy renamed some), give all of them the same prefix. Otherwise
    the tag is made of two saves: fall back to an older one.
    """
    census = _census(context)
    if census is None or not census.misnamed:
        return
    paths = [file.path for file in census.misnamed]
    usual, other = census.prefix or "no prefix", census.misnamed[0].prefix or "no prefix"
    yield Hit(
        f"the optimizer's files have two prefixes: most {usual}, {len(paths):,} {other}",
        paths[0],
        detail=(f"not found by their ranks: {', '.join(paths[:5])}",),
    )


@rule("CK155", "pipeline-layer-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def layer_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Layers of a pipeline have no file (`layer_NN-model_states.pt`), though they have tensors, or had one before.

    **Why it matters.** The weights of a pipeline are in these files only; a resume stops at the first that is missing.
    Where a layer lacks one of its tensor-parallel slices, DeepSpeed cuts another one up.

    **How to repair.** If every node wrote to its own disk, bring the files together. Otherwise fall back to an older
    tag (`ckpt latest RUN`).

    **Known exceptions.** Layers that are plain functions have no file, modules without tensors have an empty one, and
    the tag does not say which a layer is. A gap alone is a note: what tells are the names of parameters and buffers,
    the optimizer's number of parameters, and the other tags of the run.
    """
    census = _census(context)
    if census is None or not census.tag.of("layer"):
        return
    files = {file.layer for file, _ in census.tag.of("layer") if file.layer is not None}
    others = set(islice(_layers_beside(checkpoint, context), MOST)) if census.tag.folder == "" else set()
    missing = sorted({*census.missing_layers, *(others - files)})
    gaps = [layer for layer in range(min(files), min(max(files), MOST)) if layer not in files and layer not in missing]
    if missing:
        text = f"layer {numbers(missing)} of the pipeline is missing"
        yield Hit(text, census.tag.folder, detail=(f"no file layer_{missing[0]:02d}-model_states.pt",))
    if census.missing_slices:
        layer, which = census.missing_slices[0]
        text = f"layer {numbers([layer for layer, _ in census.missing_slices])} of the pipeline lacks slices"
        yield Hit(text, census.tag.folder, detail=(f"no file layer_{layer:02d}-model_{which:02d}-model_states.pt",))
    if gaps:
        text = f"layer {numbers(gaps)} of the pipeline has no file: it is a function, or its file is lost"
        yield Hit(text, census.tag.folder, severity=Severity.NOTE, impact=HARMLESS)


def _layers_beside(checkpoint: Checkpoint, context: Context) -> Iterator[int]:
    """Yield the layers that the other tags of the run have files of; a few are looked at."""
    for _, listing in islice(beside(context.run, checkpoint), 4):
        for file in parse_all(name for name in listing.files if "/" not in name):
            if file.kind == "layer" and file.layer is not None:
                yield file.layer


@rule("CK156", "expert-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def expert_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Experts have no file of weights (`layer_L_expert_E_...`), or their ranks none of the optimizer (`expp_rank_N_`).

    **Why it matters.** Experts are stored one by one; DeepSpeed stops at the first whose file is missing.

    **How to repair.** If every node wrote to its own disk, bring the files together. Otherwise fall back to an older
    tag (`ckpt latest RUN`).
    """
    census = _census(context)
    if census is None:
        return
    for layer in sorted({layer for layer, _ in census.missing_experts}):
        experts = [expert for own, expert in census.missing_experts if own == layer]
        yield Hit(f"expert {numbers(experts)} of layer {layer} is missing", census.tag.folder)
    if census.missing_expert_ranks:
        text = f"the optimizer's states of expert-parallel rank {numbers(census.missing_expert_ranks)} are missing"
        yield Hit(text, census.tag.folder, impact=BREAKS_RESUME)


@rule("CK157", "zero-save-in-progress", Severity.ERROR, Checkpoint, impact=_SAVING)
def zero_save_in_progress(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The newest tag is not complete, or not yet named by `latest`, and a file in it changed a moment ago.

    **Why it matters.** DeepSpeed's files have their names from the first byte and nothing marks the end of a save:
    rank 0 writes `latest` while others may still write. What is missing now may be there in a minute.

    **How to repair.** Wait, and look again. `--settle 0` looks at it as it is, `--allow-in-progress` makes this a note.

    **Known exceptions.** A fresh copy has fresh times too.
    """
    census, settings = _census(context), context.settings
    if census is None or checkpoint.layout not in _OWN or not settings.settle_ns or not _newest(checkpoint, context):
        return
    age = min((abs(settings.now_ns - each.ctime_ns) for each in checkpoint.listing.files.values()), default=None)
    ahead = _ahead(checkpoint, context)
    if age is None or age >= settings.settle_ns or (census.complete and not ahead):
        return
    said = f"{LATEST} still names {ahead}" if ahead else _unwritten(census)
    since = f"a file in it changed {age / 1e9:.0f} s ago; it counts as interrupted after "
    since += f"{settings.settle_ns / 1e9:.0f} s of quiet"
    yield Hit(
        "the tag is being written",
        census.tag.folder,
        detail=(said, since, unless_dead(context)),
        severity=Severity.NOTE if settings.allow_in_progress else None,
    )


def _unwritten(census: Census) -> str:
    """Tell what a save has yet to write."""
    cut, lacking = census.cut, len(census.lacking)
    said = [f"{lacking:,} {'file is' if lacking == 1 else 'files are'} not there yet"] if lacking else []
    said += [f"{cut[0]} is not whole" if len(cut) == 1 else f"{len(cut):,} files are not whole"] if cut else []
    return ", ".join(said)


def _newest(checkpoint: Checkpoint, context: Context) -> bool:
    return checkpoint.step is not None and is_newest(context.run, checkpoint)


def _ahead(checkpoint: Checkpoint, context: Context) -> str | None:
    """Return the tag that ``latest`` names where it is another one, which is there: the one saved before."""
    if context.run.single or checkpoint.path.endswith("_universal"):
        return None
    named = pointed(context.run.listing)
    there = named is not None and named in context.run.listing.files
    return named if there and named != checkpoint.path else None


@rule("CK158", "trainer-schedule-missing", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def trainer_schedule_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`scheduler.pt` is missing in a checkpoint of the Trainer, and DeepSpeed has no scheduler either.

    **Why it matters.** Without a `scheduler` block in DeepSpeed's configuration the Trainer makes the schedule itself,
    and its resume stops: `No such file or directory: scheduler.pt`.

    **How to repair.** Fall back to an older checkpoint (`ckpt latest RUN`).

    **Known exceptions.** With a `scheduler` block the schedule is in the model states, and there is no file.
    """
    census = _census(context)
    if census is None or checkpoint.layout != "hf-trainer" or checkpoint.has(Role.SCHEDULER):
        return
    model = census.tag.first
    configured = (as_mapping(model.get("ds_config")) or {}).get("scheduler")
    if model and model.get("lr_scheduler") is None and not configured and Role.SCHEDULER not in context.view.unwritten:
        yield Hit("scheduler.pt is missing, and DeepSpeed has no schedule of its own")


@rule("CK159", "zero-world-size", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def zero_world_size(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer was partitioned for another number of ranks than the resume is planned for (`--world-size`).

    **Why it matters.** DeepSpeed stops: `The checkpoint being loaded used a DP world size of 8 but the current world
    size is 16`. It does not cut partitions anew.

    **How to repair.** Resume with as many ranks as wrote it, or convert the tag to a universal checkpoint
    (`python -m deepspeed.checkpoint.ds_to_universal`) and resume with `"checkpoint": {"load_universal": true}`.

    **Known exceptions.** Universal checkpoints, and runs without ZeRO, can be resumed with any number.
    """
    census, wanted = _census(context), context.settings.world_size
    if census is None or wanted is None or not census.partitioned:
        return
    written = census.tag.world_size
    if written is None or written == wanted:
        return
    step = shlex.quote(os.path.normpath(os.path.join(context.run.root, checkpoint.path, census.tag.folder)))
    yield Hit(
        f"partitioned for {written:,} rank{'' if written == 1 else 's'}, planned for {wanted:,}",
        census.tag.folder,
        detail=("DeepSpeed refuses to load partitions into another number of ranks",),
        help=f"python -m deepspeed.checkpoint.ds_to_universal --input_folder {step} --output_folder {step}_universal",
    )


RULES: tuple[Rule, ...] = (
    partition_missing,
    model_states_missing,
    saves_mixed,
    files_left_over,
    prefix_mixed,
    layer_missing,
    expert_missing,
    zero_save_in_progress,
    trainer_schedule_missing,
    zero_world_size,
)
