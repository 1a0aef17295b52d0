"""CK145, CK146, CK148: what FSDP keeps in directories and files of its own."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from ckpt_tools.containers.base import Content
from ckpt_tools.containers.pickle_names import several
from ckpt_tools.layouts.assembly import stored_nowhere
from ckpt_tools.layouts.assembly_ranks import RankFiles
from ckpt_tools.layouts.match import is_file
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME, DEGRADES_RESUME, Impact, Severity
from ckpt_tools.model.values import Value
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_TRAINING = (Role.SCHEDULER, Role.RNG)
_FULL = "pytorch_model_fsdp.bin"
_RANK = re.compile(r"([a-z_]+(?:_\d{1,9})?)_rank(\d{1,9})\Z")


def _has(checkpoint: Checkpoint, start: str) -> bool:
    return any(part.path.startswith(start) and part.layout == "fsdp" for part in checkpoint.parts)


def _lost_full(checkpoint: Checkpoint) -> bool:
    """Whether the Trainer saved with ``FULL_STATE_DICT``, as the optimizer's name tells, and the model is not there."""
    names = checkpoint.listing.names()
    return (
        checkpoint.layout == "hf-trainer"
        and "optimizer.bin" in names
        and not any(name.startswith("pytorch_model_fsdp") for name in names)
    )


@rule("CK145", "fsdp-part-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def part_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Of an FSDP checkpoint the model or the optimizer is there, and the other is not.

    **Why it matters.** Without the model nothing loads. Without the optimizer accelerate stops; the Trainer starts it
    afresh and says nothing.

    **How to repair.** Copy the missing directory, or fall back to an older checkpoint (`ckpt latest RUN`).

    **Known exceptions.** A model saved alone (no schedule and no random state either) is a choice. An interrupted save
    is told by CK101.
    """
    if is_file(context.run):
        return
    if _lost_full(checkpoint):
        told = ("optimizer.bin is there, which only FSDP writes", f"the Trainer stops: no such file {_FULL}")
        yield Hit(f"{_FULL} is missing", detail=told, impact=BREAKS_RESUME)
    if "fsdp" not in checkpoint.layouts:
        return
    model = _has(checkpoint, "pytorch_model_fsdp") or checkpoint.has(Role.WEIGHTS, Role.ADAPTER, Role.INDEX)
    optimizer = _has(checkpoint, "optimizer") or checkpoint.has(Role.OPTIMIZER)
    if optimizer and not model:
        stops = "the Trainer" if checkpoint.layout == "hf-trainer" else "load_state"
        detail = f"{stops} stops: the model is read from pytorch_model_fsdp"
        yield Hit("the model is missing: the optimizer of FSDP is there, pytorch_model_fsdp is not", detail=(detail,))
    elif model and not optimizer and checkpoint.has(*_TRAINING) and Role.OPTIMIZER not in context.view.unwritten:
        trainer = checkpoint.layout == "hf-trainer"
        detail = "the Trainer starts it afresh without a word" if trainer else "load_state stops: no such directory"
        impact = DEGRADES_RESUME if trainer else BREAKS_RESUME
        yield Hit("the optimizer is missing: neither optimizer_0 nor optimizer.bin", detail=(detail,), impact=impact)


@rule("CK146", "fsdp-rank-files", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def rank_files(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Each rank wrote files of its own, and some are missing or are not what their names say.

    **Why it matters.** `LOCAL_STATE_DICT` and `use_dcp=False` keep what each rank held, as it held it: a rank without
    its file stops. With a file of another rank it takes that one's piece of every tensor for its own, without a word.

    **How to repair.** Copy the missing files from the nodes that wrote them. To train on other numbers of ranks, save
    with `SHARDED_STATE_DICT`.

    **Known exceptions.** The number of ranks is stored nowhere; the files of the random state tell it too.
    """
    if "fsdp" not in checkpoint.layouts or is_file(context.run):
        return
    states = {part.rank for part in checkpoint.of(Role.RNG) if part.rank is not None}
    for role, impact in _PARTS:
        parts = [part for part in checkpoint.of(role) if part.layout == "fsdp" and part.rank is not None]
        ranks = {part.rank for part in parts if part.rank is not None}
        count = max(ranks | states, default=-1) + 1
        lost = count - len(ranks) if ranks else 0
        if lost:
            first = islice((rank for rank in range(count) if rank not in ranks), 10)
            names = several((parts[0].path.replace(f"rank{parts[0].rank}", f"rank{rank}") for rank in first), lost)
            said = (f"not there: {names}", "a rank without its file stops")
            advice = "copy them from the nodes that wrote them"
            yield Hit(f"files of {lost:,} of {count:,} ranks are missing", detail=said, help=advice, impact=impact)
        for made in _made(context, role):
            yield from _misplaced(made, impact)
            if made.holes and not lost:
                problem = stored_nowhere(made.tensors, made.holes, "a rank's file is that of another one, or of no one")
                yield Hit(problem.message, made.parts[0].path, problem.at, problem.detail, impact=impact)


_PARTS = ((Role.MODEL_STATES, BREAKS_ALL), (Role.OPTIMIZER_STATES, BREAKS_RESUME))


def _made(context: Context, role: Role) -> Iterator[RankFiles]:
    return (each for each in context.view.assemblies if isinstance(each, RankFiles) and each.role is role)


def _misplaced(made: RankFiles, impact: Impact) -> Iterator[Hit]:
    for part, content in made.readable:
        rank = content.facts.get("rank")
        if rank is None:  # torch.save names the archive for the file that it writes
            named = _RANK.match(str(content.facts.get("root", "")))
            rank = int(named[2]) if named and posixpath.basename(part.path).startswith(f"{named[1]}_rank") else None
        if rank is not None and rank != part.rank:
            message = f"it was written by rank {rank:,}, and rank {part.rank:,} will load it"
            silent = "it takes that rank's piece of every tensor for its own, without a word"
            advice = "give each file the name of the rank that wrote it"
            yield Hit(message, part.path, detail=(silent,), help=advice, impact=impact)


@rule("CK148", "fsdp-ranks-differ", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def ranks_differ(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer's files of the ranks are of different steps, or have different rates.

    **Why it matters.** Nothing compares them: every rank goes on with its own file, and its pieces of the moments are
    of another save than those of the others.

    **How to repair.** Bring together the files of one save, or fall back to an older checkpoint.
    """
    for made in _made(context, Role.OPTIMIZER_STATES):
        told = {part.path: _numbers(made, part, content) for part, content in made.readable}
        counts = Counter(told.values())
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = [path for path, numbers in told.items() if numbers != usual]
            lines = [f"{path}: {_said(told[path])}" for path in (next(p for p in told if p not in odd), odd[0])]
            yield Hit("the files of the ranks are of different saves", odd[0], detail=(*lines, several(odd)))


def _numbers(made: RankFiles, part: Part, content: Content) -> tuple[tuple[str, Value], ...]:
    """Return the highest step and the rates of the groups."""
    slots = [slot for slot in made.told(part, content) if isinstance(slot.value, int | float)]
    steps = [("step", slot.value) for slot in slots if slot.quantity == "optimizer-step"]
    rates = (("rate", slot.value) for slot in slots if slot.quantity == "lr")
    return (*([max(steps)] if steps else ()), *rates)


def _said(numbers: tuple[tuple[str, Value], ...]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in numbers[:4]) or "no numbers"


RULES: tuple[Rule, ...] = (part_missing, rank_files, ranks_differ)
