"""CK125 and CK126: files that every other checkpoint of the run has and this one has not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts import by_name
from ckpt_tools.layouts.match import beside, has_role, is_export, is_file, is_oldest
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import BREAKS_INFERENCE, HARMLESS, Fix, Impact, Severity, Verdict
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_LOOKED_AT = 16
_COST = {
    Role.TOKENIZER: "the tokenizer cannot be loaded from this checkpoint, or is another one",
    Role.GENERATION_CONFIG: "generate() would take default settings",
    Role.TRAINING_ARGS: "a resume does not read it; it is the record of how the run was made",
}
_EVIDENCE = {
    Role.TOKENIZER: Role.TOKENIZER,
    Role.GENERATION_CONFIG: Role.CONFIG,
    Role.TRAINING_ARGS: Role.TRAINING_ARGS,
}


@rule("CK125", "common-file-missing", Severity.WARNING, Checkpoint)
def common_file_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A tokenizer file, the generation config or the training arguments are missing, and every other checkpoint of
    the run has them.

    **Why it matters.** The Trainer writes them into every checkpoint, so this one lost them: a copy was not complete,
    or something was deleted. Without a tokenizer `from_pretrained` on the checkpoint fails; without the generation
    config the model generates with default settings.

    **How to repair.** `ckpt repair --write` copies them from another checkpoint of the run, where they are the same.

    **Known exceptions.** Missing training arguments are a note: nothing reads them. So is anything that the oldest
    checkpoint lacks, for a resume may have added it. A version that writes other files is told by the sizes of those
    that both have.
    """
    if checkpoint.layout != "hf-trainer" or is_file(context.run) or is_export(context.run, checkpoint):
        return
    model = checkpoint.has(Role.WEIGHTS, Role.ADAPTER)
    if not model and not context.view.elsewhere:
        return
    few = islice(beside(context.run, checkpoint), _LOOKED_AT)
    others = [
        (name, listing)
        for name, listing in few
        if has_role(listing, checkpoint.layout, Role.WEIGHTS, Role.ADAPTER) == model
        and (model or has_role(listing, checkpoint.layout, Role.TRAINER_STATE))
    ]
    for role, cost in _COST.items():
        if not others or {role, _EVIDENCE[role]} & context.view.unwritten:
            continue
        for path in _common(others, checkpoint.layout, role):
            if path not in checkpoint.listing.files and _alike(checkpoint, others, _EVIDENCE[role]):
                note = role is Role.TRAINING_ARGS or is_oldest(context.run, checkpoint)
                which = f"{others[-1][0]} has one" if len(others) == 1 else f"all of {len(others)} others have one"
                yield Hit(
                    f"{path} is missing",
                    detail=(which, cost),
                    fix=Fix("copy it from another checkpoint of the run", True, "copy-beside", {"name": path}),
                    severity=Severity.NOTE if note else None,
                    impact=HARMLESS if note else Impact(Verdict.READY, Verdict.DEGRADED),
                )


def _common(others: list[tuple[str, Listing]], layout: str, role: Role) -> Iterator[str]:
    """Yield the names of a role that all of the others have."""
    patterns = [pattern.expression for pattern in by_name(layout).parts if pattern.role is role]
    for path, entry in others[-1][1].files.items():
        named = entry.is_file and any(pattern.match(path) for pattern in patterns)
        if named and all(path in listing.files for _, listing in others):
            yield path


def _alike(checkpoint: Checkpoint, others: list[tuple[str, Listing]], role: Role) -> bool:
    """Whether the files of a role that are here have the sizes of those beside: one program wrote them all."""
    return all(
        listing.files[part.path].size == part.stat.size
        for part in checkpoint.of(role)
        for _, listing in others
        if part.path in listing.files
    )


@rule("CK126", "model-file-missing", Severity.WARNING, Checkpoint, impact=BREAKS_INFERENCE)
def model_file_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A checkpoint of DeepSpeed under the Trainer lacks the `model.safetensors` that others of the run have.

    **Why it matters.** A resume takes the weights of the framework. `from_pretrained` does not know these, and fails.

    **How to repair.** `ckpt merge` puts the weights of the framework together into such a file.
    """
    if checkpoint.layout != "hf-trainer" or is_file(context.run) or is_export(context.run, checkpoint):
        return
    if checkpoint.has(Role.WEIGHTS, Role.INDEX, Role.ADAPTER) or context.view.elsewhere != "DeepSpeed":
        return
    if Role.WEIGHTS in context.view.unwritten:
        return
    few = islice(beside(context.run, checkpoint), _LOOKED_AT)
    alike = ((name, listing) for name, listing in few if "latest" in listing.files)
    other = next((name for name, listing in alike if has_role(listing, checkpoint.layout, Role.WEIGHTS)), None)
    if other is not None:
        detail = f"{other} has one; a resume takes the weights of DeepSpeed"
        yield Hit("the model's own file with the weights is missing", detail=(detail,))


RULES: tuple[Rule, ...] = (common_file_missing, model_file_missing)
