"""CK17x and CK27x: checkpoints of TensorFlow, an index and its shards, and what its saves leave behind."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.layouts import by_name
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role, Run
from ckpt_tools.model.findings import BREAKS_ALL, HARMLESS, Impact, Severity, Verdict
from ckpt_tools.rules.base import Context, Hit, Rule, relay, rule, unless_dead

_STAGED = frozenset({"tensorflow", "orbax", "flax", "timm", "fairseq", "olmo-core"})
_SHOWN = 10
_SAVING = Impact(Verdict.IN_PROGRESS, Verdict.IN_PROGRESS)


@rule("CK170", "bundle-shard-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def bundle_shard_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A `.data-` file of a TensorFlow checkpoint is missing, by what its index says.

    **Why it matters.** A restore stops with `NotFoundError` at the first variable in it.

    **How to repair.** Copy the file from where the checkpoint was written; otherwise take another checkpoint.
    """
    if checkpoint.layout != "tensorflow" or checkpoint.is_file:
        return
    for part in checkpoint.of(Role.METADATA):
        content = context.content(part)
        stem = part.path.removesuffix(".index")
        shards = content.facts.get("shards", 0) if content is not None and content.readable else 0
        needed = {each.shard for each in content.facts["entries"]} if content is not None and shards else set()
        there = {each.shard[0] for each in checkpoint.of(Role.CHUNKS) if each.shard and each.shard[1] == shards}
        lost = sorted(number for number in needed - there if number < shards)
        if lost:
            names = [f"{stem}.data-{number:05d}-of-{shards:05d}" for number in lost[:_SHOWN]]
            rest = [f"... and {len(lost) - _SHOWN:,} more"] if len(lost) > _SHOWN else []
            some = names[0] if len(lost) == 1 else f"{len(lost):,} of {shards:,} shards"
            detail = (*(names if len(lost) > 1 else ()), *rest, 'a restore stops with "NotFoundError"')
            yield Hit(f"{some} {'is' if len(lost) == 1 else 'are'} missing", part.path, detail=detail)


@rule("CK171", "bundle-index-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def bundle_index_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Shards of a TensorFlow checkpoint are there and their `.index` is not.

    **Why it matters.** The index is written last and deleted first, so this is a save or a deletion that did not end.
    TensorFlow takes it for no checkpoint: `latest_checkpoint` gives None if it is the newest.

    **How to repair.** Take another checkpoint; the shards cannot be read without their index.
    """
    if checkpoint.layout != "tensorflow" or checkpoint.is_file or checkpoint.has(Role.METADATA):
        return
    shard = checkpoint.first(Role.CHUNKS)
    if shard is None:
        return
    times = [part.stat.ctime_ns for part in checkpoint.parts]
    recent = min(abs(context.settings.now_ns - time) for time in times) < context.settings.settle_ns
    name = shard.path.rpartition(".data-")[0] + ".index"
    ends = "it is written last and deleted first: a save or a deletion did not end"
    yield Hit(
        f"{name} is missing" if not recent else f"{name}, which is written last, is not there yet",
        detail=(ends, unless_dead(context)) if recent else (ends,),
        impact=_SAVING if recent else None,
    )


@rule("CK172", "save-left-over", Severity.WARNING, Run)
def save_left_over(run: Run, context: Context) -> Iterator[Hit]:
    """A file or directory under a temporary name was left by a save that did not end.

    **Why it matters.** Loaders pass over it, and it takes space: `10.orbax-checkpoint-tmp`, `ckpt-3_temp`,
    `checkpoint.tmp...` of TensorFlow, `tmp.pth.tar` of timm, `checkpoint_last.pt.tmp` of fairseq, `step100-tmp` of
    OLMo-core. For timm it may be all that is left: it removes `last.pth.tar` before it renames the new one.

    **How to repair.** Remove it when no save is running. A whole `tmp.pth.tar` beside no `last.pth.tar` can be renamed.
    """
    if run.single:
        return
    layouts = {each.layout for each in run.checkpoints} & _STAGED
    expressions = [expression for name in layouts for expression in by_name(name).staging_expressions]
    known = {stray.path for stray in run.strays if stray.why == "staging"}
    for name in run.listing.names():
        if name in known or not any(expression.match(name) for expression in expressions):
            continue
        entry = run.listing.files[name]
        if abs(context.settings.now_ns - entry.ctime_ns) < context.settings.settle_ns:
            yield Hit("a save seems to be in progress here", name, severity=Severity.NOTE)
        elif name == "tmp.pth.tar" and "last.pth.tar" not in run.listing.files:
            detail = ("timm removes last.pth.tar before it renames this file to it",)
            yield Hit("left by a save that did not end, in the place of last.pth.tar", name, detail=detail)
        else:
            yield Hit("left over by a save that did not end", name, detail=("loaders pass over it",))


@rule("CK270", "bundle-index-damaged", Severity.ERROR, Part, impact=None)
def bundle_index_damaged(part: Part, context: Context) -> Iterator[Hit]:
    """The index of a TensorFlow checkpoint has a block whose checksum does not fit, or entries that make no sense.

    **Why it matters.** A restore stops with `DataLossError`. The index is small, so that every block of it is checked
    without `--deep`.

    **How to repair.** Copy it from where the checkpoint was written; otherwise take another checkpoint.
    """
    yield from relay(part, context, "bundle-index-damaged")


@rule("CK271", "bundle-data-longer", Severity.WARNING, Part, impact=HARMLESS)
def bundle_data_longer(part: Part, context: Context) -> Iterator[Hit]:
    """A shard of a TensorFlow checkpoint is longer than its index accounts for.

    **Why it matters.** Nothing reads the rest. Index and shard may be of two saves; `--deep` compares the checksums
    of the tensors and tells.

    **How to repair.** Nothing, if `--deep` finds nothing.
    """
    yield from relay(part, context, "bundle-data-longer", harmless=True)


RULES: tuple[Rule, ...] = (
    bundle_shard_missing,
    bundle_index_missing,
    save_left_over,
    bundle_index_damaged,
    bundle_data_longer,
)
