"""CK57x: what the ranks of DeepSpeed say of step, rates and versions, against each other and the trainer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from math import isclose

from ckpt_tools.containers import reader
from ckpt_tools.core.errors import SourceError
from ckpt_tools.layouts.assembly_zero import tag_of
from ckpt_tools.layouts.assembly_zero_names import parse_all
from ckpt_tools.layouts.assembly_zero_tag import State, Tag
from ckpt_tools.layouts.base import TORCH
from ckpt_tools.layouts.match import beside, is_file
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME, DEGRADES_ALL, DEGRADES_RESUME, Severity, Spot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping, real, whole
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_LOOKED_AT = 4
_NAME = re.compile(r"global_step(\d{1,18})(?:_universal)?\Z")

_ONE_COUNTER = "after a universal resume all sub-groups of stage 3 share one counter, which each of them advances"


def _tag(context: Context) -> Tag | None:
    return None if is_file(context.run) else tag_of(context.view)


def _models(tag: Tag) -> Iterator[tuple[str, State]]:
    """Yield path and content of the model states of the ranks that wrote the tag."""
    extra = {file.path for file in tag.census.extra}
    for file, part in tag.of("model"):
        state = tag.read(part)
        if state is not None and file.path not in extra:
            yield file.path, state


def _differing(tag: Tag, key: str) -> dict[str, list[str]]:
    """Return the values of a key of the model states, as text, with the files that have each; the rarest first."""
    found: dict[str, list[str]] = {}
    for path, state in _models(tag):
        if key in state:
            found.setdefault(repr(_plain(state[key]))[:400], []).append(path)
    return dict(sorted(found.items(), key=lambda each: len(each[1]))) if len(found) > 1 else {}


def _plain(value: Value) -> Value:
    """Return a value without places in files, which differ from one to the other."""
    if isinstance(value, TensorRef):
        return value.dtype, value.shape
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _step(tag: Tag) -> int | None:
    return whole(tag.first.get("global_steps"))


@rule("CK570", "ranks-at-different-steps", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def ranks_at_different_steps(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The model states of the ranks are of different steps (`global_steps`).

    **Why it matters.** Files of two tags are in one directory. Each rank goes on from its own: with stage 3 or a
    pipeline the weights themselves are of different times, and nothing says so.

    **How to repair.** Copy the tag again from its source, or fall back to another one (`ckpt latest RUN`).
    """
    tag = _tag(context)
    steps = _differing(tag, "global_steps") if tag is not None else {}
    if tag is not None and steps:
        said = (f"step {step}: {', '.join(paths[:3])}" for step, paths in steps.items())
        parts = tag.stage == 3 or bool(tag.of("layer")) or len(tag.parallel) > 1
        text = f"the ranks are at different steps: {', '.join(sorted(steps))}"
        path = next(iter(steps.values()))[0]
        yield Hit(text, path, detail=tuple(said), impact=DEGRADES_ALL if parts else None)


@rule("CK571", "partitions-at-different-steps", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def partitions_at_different_steps(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer's partitions are of different steps.

    **Why it matters.** All ranks step together. A partition of another step has weights (float32) and moments of
    another time for its share of the model; DeepSpeed loads it without a word.

    **How to repair.** Copy the tag again from its source, or fall back to another one (`ckpt latest RUN`).
    """
    tag = _tag(context)
    if tag is None:
        return
    groups: dict[tuple[int, int], dict[int, list[str]]] = {}
    for path, mp, group, step in _optimizer_steps(tag, context.view):
        groups.setdefault((mp, group), {}).setdefault(step, []).append(path)
    wrong = next((steps for steps in groups.values() if len(steps) > 1), None)
    if wrong is not None:
        few = min(wrong.values(), key=len)
        said = (f"step {step:,}: {', '.join(paths[:3])}" for step, paths in sorted(wrong.items()))
        yield Hit("the optimizer's partitions are of different steps", few[0], detail=tuple(said), impact=DEGRADES_ALL)


def _optimizer_steps(tag: Tag, view: View) -> Iterator[tuple[str, int, int, int]]:
    """Yield ``(file, model-parallel rank, group, step)`` of every partition of the ranks that wrote the tag."""
    extra = {file.path for file in tag.census.extra}
    for (_, mp), shard in tag.shards.items():
        for group, state in enumerate(shard.moments if shard.file.path not in extra else ()):
            step = whole(_number(view, state.get("step")))
            if step is not None:
                yield shard.file.path, mp, group, step


def _number(view: View, value: Value) -> Value:
    if not isinstance(value, TensorRef):
        return value
    try:
        return view.scalar(value)
    except SourceError:
        return None


@rule("CK572", "zero-step-mismatch", Severity.WARNING, Checkpoint)
def zero_step_mismatch(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer's own step is above `global_steps`, or below it by more than the steps that were skipped.

    **Why it matters.** Partitions and model states may be of different tags: weights of one time, moments of another.

    **How to repair.** Compare with other tags of the run (`ckpt diff`); fall back to one whose files agree.

    **Known exceptions.** Steps that float16 skipped (`skipped_steps`). An optimizer that was started afresh on the
    way lags for ever. A run of stage 3 that went on from a universal checkpoint counts every step once for each of its
    sub-groups (DeepSpeed gives all of them one counter): a note.
    """
    tag = _tag(context)
    step = _step(tag) if tag is not None else None
    if tag is None or step is None:
        return
    found = {own for *_, own in _optimizer_steps(tag, context.view)}
    if len(found) != 1:
        return
    (own,) = found
    if own > step or own < step - tag.skipped - 1:
        counted = _counted_often(tag, own, step)
        yield Hit(
            f"the optimizer is at step {own:,}, the model states at {step:,}",
            tag.folder,
            detail=(_ONE_COUNTER if counted else f"{tag.skipped:,} steps were skipped",),
            severity=Severity.NOTE if counted else None,
        )


def _counted_often(tag: Tag, own: int, step: int) -> bool:
    """Whether sub-groups of stage 3 share a counter, as after a universal resume, which also gives all one decay."""
    shard = next(iter(tag.shards.values()))
    times, decays = len(shard.flat), {group.get("weight_decay") for group in shard.groups}
    return (
        tag.stage == 3
        and times > 1
        and len(decays) < 2
        and step < own <= times * step
        and not (own - step) % (times - 1)
    )


@rule("CK573", "trainer-step-mismatch", Severity.WARNING, Checkpoint)
def trainer_step_mismatch(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`global_steps` of DeepSpeed is not `global_step` of the Trainer.

    **Why it matters.** The Trainer goes on from its own count, DeepSpeed's scheduler from the other. One of the two
    may be of another checkpoint.

    **How to repair.** If the tag is that of another checkpoint, copy it again.

    **Known exceptions.** A difference of one step, and of the steps that float16 skipped.
    """
    tag = _tag(context)
    step, trainer = _step(tag) if tag is not None else None, whole((context.view.state or {}).get("global_step"))
    if tag is None or step is None or trainer is None:
        return
    slack = 1 + tag.skipped
    if abs(step - trainer) > slack:
        path = next((path for path, _ in _models(tag)), tag.folder)
        yield Hit(f"the tag is of step {step:,}, the trainer's state of {trainer:,}", path)


@rule("CK574", "ranks-disagree", Severity.WARNING, Checkpoint)
def ranks_disagree(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The model states of the ranks do not say the same of the scheduler, or of the version that wrote them.

    **Why it matters.** All ranks write the same. Different schedulers give the ranks different learning rates, and
    their weights drift apart.

    **How to repair.** Copy the tag again from its source; after an edit of one file, make the same in all.
    """
    tag = _tag(context)
    if tag is None:
        return
    for key, what in (("lr_scheduler", "scheduler"), ("ds_version", "version of DeepSpeed")):
        values = _differing(tag, key)
        if values and not _differing(tag, "global_steps"):  # which CK570 tells
            worse = key == "lr_scheduler"
            yield Hit(
                f"the ranks do not have the same {what}",
                next(iter(values.values()))[0],
                detail=tuple(f"{', '.join(paths[:3])}: {value[:120]}" for value, paths in values.items()),
                severity=Severity.ERROR if worse else None,
                impact=DEGRADES_RESUME if worse else None,
            )


@rule("CK575", "rates-differ-between-ranks", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def rates_differ(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The learning rates of a group are not the same in the files of all ranks.

    **Why it matters.** Each rank trains its share of the weights with the rate in its own file, and nothing says that
    they differ. An edit of one file alone does this.

    **How to repair.** Take the edit of the one file back, or copy the file again from its source; then `ckpt set-lr`
    changes all of them.

    **Known exceptions.** Partitions of different steps, which CK571 tells, and pipelines.
    """
    tag = _tag(context)
    if tag is None or len({step for *_, step in _optimizer_steps(tag, context.view)}) > 1:
        return
    extra = {file.path for file in tag.census.extra}
    shards = [shard for shard in tag.shards.values() if shard.file.path not in extra]
    for key in ("lr", "initial_lr"):
        for place in range(max((len(shard.groups) for shard in shards), default=0)):
            rates = {s.file.path: _rate(s.groups[place], key) for s in shards if place < len(s.groups)}
            known = {path: rate for path, rate in rates.items() if rate is not None}
            usual = max(known.values(), key=list(known.values()).count, default=0.0)
            wrong = [path for path, rate in known.items() if not isclose(rate, usual, rel_tol=1e-6, abs_tol=1e-30)]
            if wrong and len(tag.parallel) == 1:
                few = f"{key} of group {place} is {known[wrong[0]]:g} in {len(wrong):,} of {len(known):,} files"
                yield Hit(f"{few}, {usual:g} in the others", wrong[0])


def _rate(group: Mapping[object, Value], key: str) -> float | None:
    return real(group.get(key))


@rule("CK576", "tag-name-mismatch", Severity.NOTE, Checkpoint)
def tag_name_mismatch(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The tag is named for another step than its model states say.

    **Why it matters.** DeepSpeed names a tag for the step. A renamed directory, or one with the files of another tag,
    is chosen as the wrong one. Where the other tags of the run have the names of their steps, it is a warning.

    **How to repair.** Compare it with the tag whose step it says; rename it, and set `latest`.

    **Known exceptions.** Tags that a loop names itself: those beside it do not fit either. Lightning counts by itself.
    """
    tag = _tag(context)
    name = (tag.folder or checkpoint.path.rpartition("/")[2]) if tag is not None else ""
    if name in ("", "."):
        name = context.run.root.rstrip("/").rpartition("/")[2]
    match, step = _NAME.match(name), _step(tag) if tag is not None else None
    if tag is not None and match and step is not None and int(match[1]) != step:
        text = f"the tag is named for step {int(match[1]):,}, its model states say {step:,}"
        severity = Severity.WARNING if _others_fit(checkpoint, context) else None
        yield Hit(text, next((path for path, _ in _models(tag)), tag.folder), severity=severity)


def _others_fit(checkpoint: Checkpoint, context: Context) -> bool:
    """Return whether the tags beside are named for their steps; a few are looked at."""
    told = islice(_steps_beside(checkpoint, context), _LOOKED_AT)
    fitting = [named == step for named, step in told]
    return bool(fitting) and all(fitting)


def _steps_beside(checkpoint: Checkpoint, context: Context) -> Iterator[tuple[int, int]]:
    """Yield the step in the name, and the one inside, of the other tags of the run."""
    for name, listing in beside(context.run, checkpoint):
        match = _NAME.match(name)
        files = (file.path for file in parse_all(sorted(listing.files)) if file.kind == "model" and not file.folder)
        path = next(files, None)
        if match is None or path is None or not listing.files[path].is_file:
            continue
        try:
            with listing.open(path) as source:
                state = as_mapping(reader.open(source, TORCH).value) or {}
        except SourceError:
            continue
        step = whole(state.get("global_steps"))
        if step is not None:
            yield int(match[1]), step


@rule("CK577", "zero-states-unusable", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def states_unusable(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A file with the name of DeepSpeed's states holds something else.

    **Why it matters.** DeepSpeed looks for `module` and `dp_world_size` in model states and for
    `optimizer_state_dict` in those of the optimizer, and stops with a `KeyError`.

    **How to repair.** Copy the file again from its source.
    """
    tag = _tag(context)
    needed = {"model": ("module", "dp_world_size", "global_steps"), "optimizer": ("optimizer_state_dict",)}
    for file, part in tag.files if tag is not None else ():
        content = context.content(part) if file.kind in needed else None
        if content is None or not content.readable or content.container not in part.containers:
            continue
        state = as_mapping(content.value)
        lacking = [key for key in needed[file.kind] if key not in (state or {})]
        odd = [
            key for key in ("dp_world_size", "global_steps") if key in (state or {}) and not _counts((state or {})[key])
        ]
        if lacking:
            impact = None if file.kind == "model" else context.damaged(part)
            yield Hit(f"it lacks {', '.join(lacking)}: no states of DeepSpeed's", file.path, impact=impact)
        elif odd and file.kind == "model":
            yield Hit(f"{odd[0]} is no count", file.path, Spot(key=odd[0]), impact=BREAKS_RESUME)


def _counts(value: Value) -> bool:
    number = whole(value)
    return number is not None and number >= 0


RULES: tuple[Rule, ...] = (
    ranks_at_different_steps,
    partitions_at_different_steps,
    zero_step_mismatch,
    trainer_step_mismatch,
    ranks_disagree,
    rates_differ,
    tag_name_mismatch,
    states_unusable,
)
