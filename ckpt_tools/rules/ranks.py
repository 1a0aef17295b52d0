"""CK1xx: as many files of random states as processes, those that wrote the checkpoint and those that will resume it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ckpt_tools.containers.pickle_names import several
from ckpt_tools.layouts.match import is_file
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import DEGRADES_RESUME, HARMLESS, Severity
from ckpt_tools.rules.base import Context, Hit, Rule, rule


@rule("CK120", "rank-files-gap", Severity.WARNING, Checkpoint, impact=DEGRADES_RESUME)
def rank_files_gap(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The per-rank files of the random state are not one for each of 0, 1, 2 ...

    **Why it matters.** A rank without its file starts with fresh random states and says so in a log line at most.

    **How to repair.** Nothing needs to be done unless the run has to be reproducible.

    **Known exceptions.** With disks local to each node, a node has the files of its own ranks only; such a directory
    has no weights. Fewer files than ranks planned for is CK123.
    """
    ranks = {part.rank for part in checkpoint.of(Role.RNG) if part.rank is not None}
    if not ranks or is_file(context.run):
        return
    others = [part.rank for part in checkpoint.of(Role.CHUNKS, Role.MODEL_STATES) if part.rank is not None]
    whole = 0 in others or checkpoint.has(Role.WEIGHTS, Role.ADAPTER, Role.TRAINER_STATE)
    lowest = 0 if whole else min(ranks)
    lost = max(ranks) + 1 - lowest - len(ranks)
    if lost:
        gap = islice((str(rank) for rank in range(lowest, max(ranks)) if rank not in ranks), 10)
        yield Hit(f"no random state of rank {several(gap, lost)}, but of rank {max(ranks)}")
    written = max((0, *(rank + 1 for rank in others), *(each.world_size or 0 for each in context.view.assemblies)))
    if written > max(ranks) + 1 and lowest == 0:
        names = several(map(str, range(max(ranks) + 1, written)[:10]), written - max(ranks) - 1)
        yield Hit(f"no random state of rank {names}, and {written:,} ranks wrote the rest")
    plain = next((part for part in checkpoint.of(Role.RNG) if part.rank is None), None)
    if plain is not None:
        detail = "one process reads the former, several the latter: one of them is of another save"
        yield Hit(f"{plain.path} and per-rank files side by side", plain.path, detail=(detail,), impact=HARMLESS)


@rule("CK123", "world-size", Severity.WARNING, Checkpoint, impact=DEGRADES_RESUME)
def world_size(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The checkpoint was written by another number of processes than the resume is planned for (`--world-size`).

    **Why it matters.** Weights, optimizer and scheduler of these layouts do not depend on it. New ranks start with
    fresh random states, and the order of the data differs.

    **How to repair.** Resume with as many processes as wrote it, or accept that it is not reproducible.
    """
    wanted, files = context.settings.world_size, [part.rank for part in checkpoint.of(Role.RNG)]
    written = max((rank + 1 for rank in files if rank is not None), default=1 if files else 0)
    if wanted is None or not written or wanted == written or is_file(context.run):
        return
    if context.view.elsewhere == "DeepSpeed":  # which has a rule of its own
        return
    new = f"ranks {written} to {wanted - 1}" if wanted - written > 1 else f"rank {wanted - 1}"
    fate = f"{new} would start with fresh random states" if wanted > written else "randomness differs"
    if checkpoint.layout == "hf-trainer" and 1 in (wanted, written):
        fate = (
            "no rank would find its random state" if wanted > 1 else "the one process would not find its random state"
        )
    yield Hit(f"written by {written} {'process' if written == 1 else 'processes'}, planned for {wanted}: {fate}")


RULES: tuple[Rule, ...] = (rank_files_gap, world_size)
