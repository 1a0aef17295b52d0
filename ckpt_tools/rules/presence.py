"""CK1xx: parts of a checkpoint that are missing, and names that mislead a loader."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ckpt_tools.containers.pickle_names import several
from ckpt_tools.core.listing import Kind, Listing
from ckpt_tools.layouts import by_name
from ckpt_tools.layouts.match import beside, is_export, is_file, others_have, weights_only
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import (
    BREAKS_ALL,
    BREAKS_INFERENCE,
    BREAKS_RESUME,
    DEGRADES_RESUME,
    HARMLESS,
    Fix,
    Impact,
    Severity,
    Verdict,
)
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_STATES = (Role.OPTIMIZER, Role.SCHEDULER, Role.RNG)
_LIKE_WEIGHTS = re.compile(
    r"(?:^|/)(?!optim)[^/]+(?<!optimizer)\.(?:safetensors|bin|pt|pth|ckpt|msgpack|h5|gguf|npz)\Z"
)
_BOTH = "a resume loads optimizer and scheduler only if both are there; now it starts both afresh without a word"
_COST = "the moments are lost and the learning rate starts again at step 0, warm-up included"


def _saved_to_resume(checkpoint: Checkpoint, context: Context) -> bool:
    """Return whether a trainer wrote this directory, and wrote more than weights into it."""
    if checkpoint.layout not in ("hf-trainer", "accelerate") or is_file(context.run) or context.view.empty:
        return False
    return not is_export(context.run, checkpoint) and checkpoint.has(*_STATES)


def _lacks(checkpoint: Checkpoint, context: Context, role: Role) -> bool:
    """Return whether a file is missing that the save had already come past."""
    return not checkpoint.has(role) and role not in context.view.unwritten


def _directories(listing: Listing) -> Iterator[str]:
    return (name for name in listing.names() if listing.files[name].kind is Kind.DIRECTORY)


def _misleading(checkpoint: Checkpoint, context: Context) -> str | None:
    """Return a directory that makes the Trainer believe that there is an optimizer."""
    if checkpoint.layout != "hf-trainer" or checkpoint.has(Role.OPTIMIZER) or context.view.elsewhere:
        return None
    return next((name for name in _directories(checkpoint.listing) if "optimizer" in name), None)


@rule("CK102", "weights-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def weights_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """There are no weights: neither a model nor an adapter, in one file or in shards.

    **Why it matters.** The Trainer stops with `Can't find a valid checkpoint`; there is nothing to run a model with.

    **How to repair.** Weights cannot be made from other files. Fall back to an older checkpoint (`ckpt latest RUN`).

    **Known exceptions.** FSDP and DeepSpeed keep weights in directories of their own. A named adapter in a
    sub-directory counts. Weights under a name that this tool does not know are a note, or a warning where it is
    certain that the Trainer does not know it either.
    """
    if checkpoint.layout not in ("hf-trainer", "accelerate", "peft", "llama-recipes") or is_file(context.run):
        return
    if context.view.empty or checkpoint.has(Role.WEIGHTS, Role.ADAPTER, Role.INDEX) or context.view.elsewhere:
        return
    others = [path for path in checkpoint.unclaimed if _LIKE_WEIGHTS.search(path)]
    if not others:
        only = checkpoint.first(Role.ADAPTER_CONFIG)
        yield Hit(f"the adapter's weights are missing, {only.path} is here" if only else "the weights are missing")
        return
    certain = checkpoint.has(Role.TRAINER_STATE) and not any("/" in path for path in others)
    yield Hit(
        "no weights under a name that is known here",
        detail=(f"not looked at: {several(others)}",),
        severity=Severity.WARNING if certain else Severity.NOTE,
        impact=BREAKS_RESUME if certain else HARMLESS,
    )


@rule("CK103", "optimizer-missing", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def optimizer_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer's state is missing although other parts of the training state are there.

    **Why it matters.** The Trainer loads optimizer and scheduler only if *both* files exist. If one is missing it
    starts both afresh and says nothing: the loss jumps and the learning rate warms up again. accelerate stops with an
    error.

    **How to repair.** The moments cannot be made again. Fall back to an older checkpoint (`ckpt latest RUN`), or accept
    the fresh start. Weights and inference are not affected.

    **Known exceptions.** Optimizer, scheduler and random state all missing is a choice (CK116). FSDP and DeepSpeed
    keep the optimizer in directories of their own, other frameworks under names with `optim` in them.
    """
    if not _saved_to_resume(checkpoint, context) or not _lacks(checkpoint, context, Role.OPTIMIZER):
        return
    if context.view.elsewhere or "fsdp" in checkpoint.layouts or _misleading(checkpoint, context):
        return
    if any("optim" in path.lower() for path in checkpoint.unclaimed):
        return
    name = by_name(checkpoint.layout).usual(Role.OPTIMIZER)
    if checkpoint.layout == "hf-trainer":
        yield Hit(f"{name} is missing", detail=(_BOTH, _COST))
    elif checkpoint.has(Role.SCHEDULER) or others_have(context.run, checkpoint, Role.OPTIMIZER):
        yield Hit(f"{name} is missing", detail=(f"load_state would stop: no such file {name}",), impact=BREAKS_RESUME)


@rule("CK104", "scheduler-missing", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def scheduler_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The scheduler's state is missing although other parts of the training state are there.

    **Why it matters.** As with the optimizer (CK103): the Trainer then loads neither, so that the moments are lost too
    although `optimizer.pt` is there.

    **How to repair.** Fall back to an older checkpoint (`ckpt latest RUN`).

    **Known exceptions.** DeepSpeed may own the scheduler. With accelerate a loop need not have one; only its presence
    in another checkpoint of the run tells that it is missing.
    """
    if not _saved_to_resume(checkpoint, context) or not _lacks(checkpoint, context, Role.SCHEDULER):
        return
    if context.view.elsewhere not in (None, "FSDP"):
        return
    name = by_name(checkpoint.layout).usual(Role.SCHEDULER)
    other = others_have(context.run, checkpoint, Role.SCHEDULER)
    if checkpoint.layout == "hf-trainer":
        yield Hit(f"{name} is missing", detail=(_BOTH, _COST))
    elif other:
        detail = (f"{other} has one", f"load_state would stop: no such file {name}")
        yield Hit(f"{name} is missing", detail=detail, impact=BREAKS_RESUME)


@rule("CK105", "rng-missing", Severity.WARNING, Checkpoint, impact=DEGRADES_RESUME)
def rng_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The state of the random number generators is missing.

    **Why it matters.** A resume works, and dropout and the order of the data differ from what they would have been.
    The trainer says so in its log at most.

    **How to repair.** Nothing needs to be done unless the run has to be reproducible.

    **Known exceptions.** A checkpoint saved without any training state (CK116).
    """
    if _saved_to_resume(checkpoint, context) and _lacks(checkpoint, context, Role.RNG):
        name = by_name(checkpoint.layout).usual(Role.RNG)
        yield Hit(f"{name} is missing: a resume works, and randomness differs")


@rule("CK116", "saved-without-optimizer", Severity.NOTE, Checkpoint, impact=BREAKS_RESUME)
def saved_without_optimizer(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Weights without any training state: good to run the model, not to go on with the training.

    **Why it matters.** `save_only_model`, the export of a finished run, and a downloaded model look like this, so it is
    no fault. A trainer pointed at it starts optimizer, schedule and randomness afresh, or refuses it.

    **How to repair.** To resume, take a checkpoint that has an optimizer (`ckpt latest RUN`).
    """
    view = context.view
    if checkpoint.layout == "plain" or is_file(context.run) or view.empty or view.elsewhere:
        return
    if not checkpoint.has(Role.WEIGHTS, Role.ADAPTER, Role.INDEX):
        return
    if checkpoint.has(Role.OPTIMIZER, Role.SCHEDULER, Role.COMBINED):
        return
    if any("optim" in path.lower() for path in checkpoint.listing.files):
        return
    if is_export(context.run, checkpoint):
        yield Hit("the model that the run left at its end: nothing here to resume from")
    elif checkpoint.layout not in ("hf-trainer", "accelerate") or weights_only(context.run, checkpoint):
        yield Hit("weights alone: nothing here to resume from")
    elif not checkpoint.has(Role.RNG) and checkpoint.has(Role.TRAINER_STATE):
        yield Hit("saved without optimizer, scheduler and random state (save_only_model)")
    elif checkpoint.layout == "accelerate" and not others_have(context.run, checkpoint, Role.OPTIMIZER):
        yield Hit("saved without optimizer and scheduler")


@rule("CK117", "config-missing", Severity.WARNING, Checkpoint, impact=BREAKS_INFERENCE)
def config_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A Trainer checkpoint has the weights of a model and no `config.json`.

    **Why it matters.** A resume works with the live model's configuration; `from_pretrained` on the checkpoint fails.

    **How to repair.** Copy `config.json` from another checkpoint of the same run.

    **Known exceptions.** The Trainer writes none for a model that is not of transformers: where nothing tells that it
    ever had one, this is a note.
    """
    if checkpoint.layout != "hf-trainer" or is_file(context.run):
        return
    model = checkpoint.has(Role.WEIGHTS) or context.view.elsewhere
    if not model or not _lacks(checkpoint, context, Role.CONFIG) or checkpoint.has(Role.ADAPTER):
        return
    other = None if is_export(context.run, checkpoint) else others_have(context.run, checkpoint, Role.CONFIG)
    if other:
        fix = Fix(f"copy it from {other}", True, "copy-beside", {"name": "config.json", "from": other})
        yield Hit("config.json is missing", detail=(f"{other} has one",), fix=fix)
    elif checkpoint.has(Role.GENERATION_CONFIG):
        yield Hit("config.json is missing", detail=("generation_config.json is there",))
    elif checkpoint.has(Role.WEIGHTS):  # the pieces of FSDP come without
        degraded = Impact(Verdict.READY, Verdict.DEGRADED)
        yield Hit("no config.json: from_pretrained cannot load it", severity=Severity.NOTE, impact=degraded)


@rule("CK118", "adapter-config-missing", Severity.ERROR, Checkpoint, impact=BREAKS_INFERENCE)
def adapter_config_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """An adapter's weights are there and its `adapter_config.json` is not.

    **Why it matters.** PEFT needs it to know the kind, rank and target modules of the adapter. The Trainer resumes
    without it, from the live configuration.

    **How to repair.** Copy `adapter_config.json` from another checkpoint of the same run.
    """
    if is_file(context.run):
        return
    configured = {part.adapter for part in checkpoint.of(Role.ADAPTER_CONFIG)}
    for part in checkpoint.of(Role.ADAPTER):
        if part.adapter not in configured:
            configured.add(part.adapter)
            name = f"{part.adapter}/adapter_config.json" if part.adapter else "adapter_config.json"
            found = (other for other, listing in beside(context.run, checkpoint) if name in listing.files)
            other = next(found, None) if not is_export(context.run, checkpoint) else None
            params = {"name": name, "from": other}
            fix = Fix(f"copy it from {other}", True, "copy-beside", params) if other else None
            yield Hit(f"{name} is missing", detail=(f"{other} has one",) if other else (), fix=fix)


@rule("CK119", "scaler-missing", Severity.WARNING, Checkpoint, impact=DEGRADES_RESUME)
def scaler_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The state of the gradient scaler of an fp16 run is missing.

    **Why it matters.** The scale starts at 65536 again, and some steps are skipped until it has found its place.

    **How to repair.** Nothing needs to be done unless the run has to be reproducible.

    **Known exceptions.** bf16 needs no scaler, and on a CPU none is saved. It is called missing only where another
    checkpoint of the run has one, or where the arguments say fp16 and the random state is that of a GPU.
    """
    arguments = context.view.training_args
    if checkpoint.layout != "hf-trainer" or not _saved_to_resume(checkpoint, context) or context.view.elsewhere:
        return
    if not _lacks(checkpoint, context, Role.SCALER) or arguments.get("bf16") is True or arguments.get("deepspeed"):
        return
    half = arguments.get("fp16") is True and arguments.get("half_precision_backend") != "apex"
    other = others_have(context.run, checkpoint, Role.SCALER)
    if other:
        severity = Severity.ERROR if half else None
        yield Hit("scaler.pt is missing", detail=(f"{other} has one",), severity=severity)
    elif half and "cuda" in (context.view.mapping(Role.RNG) or {}):
        yield Hit("scaler.pt is missing", detail=("the arguments say fp16, and the run was on a GPU",))


@rule("CK124", "misleading-entry", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def misleading_entry(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A stray entry has a name by which the Trainer takes this for another kind of checkpoint.

    **Why it matters.** Any sub-directory with `optimizer` in its name counts as a saved optimizer, and the resume then
    stops because `optimizer.pt` is not there. `pytorch_model_fsdp` makes it refuse a checkpoint outside of FSDP.

    **How to repair.** Move the entry out of the checkpoint.

    **Known exceptions.** FSDP's own directories, told by what is in them and by `optimizer.pt` being absent.
    """
    name = _misleading(checkpoint, context)
    if name and checkpoint.has(Role.SCHEDULER) and not is_file(context.run):
        yield Hit("taken for the saved optimizer: the resume would stop", name, detail=("optimizer.pt is missing",))
    if checkpoint.layout != "hf-trainer" or "optimizer.pt" not in checkpoint.listing.files:
        return
    for path in checkpoint.listing.names():
        kind = checkpoint.listing.files[path].kind
        if (kind is Kind.DIRECTORY and "pytorch_model_fsdp" in path) or path == "pytorch_model_fsdp.bin":
            yield Hit("taken for a checkpoint of FSDP: the resume would be refused without it", path)


RULES: tuple[Rule, ...] = (
    weights_missing,
    optimizer_missing,
    scheduler_missing,
    rng_missing,
    saved_without_optimizer,
    config_missing,
    adapter_config_missing,
    scaler_missing,
    misleading_entry,
)
