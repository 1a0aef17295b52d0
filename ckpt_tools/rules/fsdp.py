"""CK145, CK146: what FSDP keeps in directories and files of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ckpt_tools.containers.pickle_names import several
from ckpt_tools.layouts.match import is_file
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME, DEGRADES_RESUME, Severity
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_TRAINING = (Role.SCHEDULER, Role.RNG)


def _has(checkpoint: Checkpoint, start: str) -> bool:
    return any(part.path.startswith(start) and part.layout == "fsdp" for part in checkpoint.parts)


@rule("CK145", "fsdp-part-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def part_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Of an FSDP checkpoint the model or the optimizer is there, and the other is not.

    **Why it matters.** Without the model nothing loads. Without the optimizer accelerate stops; the Trainer starts it
    afresh and says nothing.

    **How to repair.** Copy the missing directory, or fall back to an older checkpoint (`ckpt latest RUN`).

    **Known exceptions.** A model saved alone (no schedule and no random state either) is a choice. An interrupted save
    is told by CK101.
    """
    if "fsdp" not in checkpoint.layouts or is_file(context.run):
        return
    model = _has(checkpoint, "pytorch_model_fsdp") or checkpoint.has(Role.WEIGHTS, Role.ADAPTER, Role.INDEX)
    optimizer = _has(checkpoint, "optimizer") or checkpoint.has(Role.OPTIMIZER)
    if optimizer and not model:
        yield Hit("the model is missing: the optimizer's part of FSDP is there, pytorch_model_fsdp is not")
    elif model and not optimizer and checkpoint.has(*_TRAINING) and Role.OPTIMIZER not in context.view.unwritten:
        trainer = checkpoint.layout == "hf-trainer"
        detail = "the Trainer starts it afresh without a word" if trainer else "load_state stops: no such directory"
        impact = DEGRADES_RESUME if trainer else BREAKS_RESUME
        yield Hit("the optimizer is missing: neither optimizer_0 nor optimizer.bin", detail=(detail,), impact=impact)


@rule("CK146", "fsdp-rank-files", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def rank_files(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Each rank wrote files of its own, and some are missing, or the resume is planned for another number of ranks.

    **Why it matters.** `LOCAL_STATE_DICT` and `use_dcp=False` keep what each rank held, as it held it: a rank without
    its file stops, and such files cannot be spread over more or fewer ranks.

    **How to repair.** Copy the missing files from the nodes that wrote them. To train on other numbers of ranks, save
    with `SHARDED_STATE_DICT`.

    **Known exceptions.** The number of ranks is stored nowhere; the files of the random state tell it too.
    """
    if "fsdp" not in checkpoint.layouts or is_file(context.run):
        return
    states = {part.rank for part in checkpoint.of(Role.RNG) if part.rank is not None}
    for role, impact in ((Role.MODEL_STATES, BREAKS_ALL), (Role.OPTIMIZER_STATES, BREAKS_RESUME)):
        parts = [part for part in checkpoint.of(role) if part.layout == "fsdp" and part.rank is not None]
        ranks = {part.rank for part in parts if part.rank is not None}
        if not ranks:
            continue
        count = max(ranks | states) + 1
        lost = count - len(ranks)
        if lost:
            first = islice((rank for rank in range(count) if rank not in ranks), 10)
            names = several((parts[0].path.replace(f"rank{parts[0].rank}", f"rank{rank}") for rank in first), lost)
            yield Hit(f"files of {lost:,} of {count:,} ranks are missing", detail=(names,), impact=impact)
        wanted = context.settings.world_size
        if wanted is not None and wanted != count:
            detail = (f"{parts[0].path} and its like cannot be spread anew",)
            yield Hit(f"saved by {count:,} ranks, to be resumed by {wanted:,}", detail=detail, impact=BREAKS_RESUME)


RULES: tuple[Rule, ...] = (part_missing, rank_files)
