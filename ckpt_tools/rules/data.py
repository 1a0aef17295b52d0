"""CK40x: what every byte says (``--deep``): checksums, NaN and Inf, lost pages, values that cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role, Run
from ckpt_tools.model.findings import BREAKS_ALL, DEGRADES_ALL, HARMLESS, Impact, Severity, Spot, Verdict
from ckpt_tools.rules.base import Context, Hit, Rule, rule

if TYPE_CHECKING:
    from ckpt_tools.model.summaries import DataSummary, FileSummary, RecordSummary, TensorSummary, ZeroRun

_SHOWN = 10
_HITS = 20
_NOT_LEARNT = re.compile(
    r"(?:^|[._])(?:inv_freq|masked_bias|causal_mask|attn_mask|attention_mask|mask|alibi|e_score_correction_bias|rope"
    r"|min_val|max_val|min|max|limits?|attn\.bias|attention\.bias)(?:[._]|\Z)"
)
# What Lightning's callbacks compare scores with, as long as there is none.
_UNSCORED = re.compile(r"callbacks\..*\.(?:kth_value|best_score|best_model_score)\Z", re.DOTALL)
_LORA_B = re.compile(r"(?:^|[._])(?:lora_B|lora_up)(?:[._]|\Z)")
_CONSTANTS = {"version": 0x55679ED1, "byteorder": 0x19E33D85, ".format_version": 0x83DCEFB7}
OUTLIER, RATIO = 1000.0, 10_000.0


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" ... and {len(every) - _SHOWN:,} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def _files(context: Context) -> Iterator[tuple[FileSummary, Part | None]]:
    data = context.view.data
    if data is None:
        return
    parts = {part.path: part for part in context.view.checkpoint.parts}
    for file in data.files.values():
        yield file, parts.get(file.path)


def _hurt(part: Part | None, context: Context) -> Impact:
    """Return what damage to a file's bytes means; files of frameworks that are not read here are needed by them."""
    if part is not None:
        return context.damaged(part)
    return BREAKS_ALL if context.view.elsewhere else HARMLESS


def _lost(impact: Impact) -> Impact:
    """Return an impact for values that load and are wrong."""
    worst = {Verdict.BROKEN: Verdict.DEGRADED}
    return Impact(worst.get(impact.resume, impact.resume), worst.get(impact.inference, impact.inference))


def _spot(name: str, index: int | None, summary: TensorSummary) -> str:
    if index is None or not summary.ref.shape:
        return name
    place, at = index, []
    for size in reversed(summary.ref.shape):
        place, step = divmod(place, size)
        at.append(step)
    return f"{name}[{', '.join(map(str, reversed(at)))}]"


@rule("CK401", "record-checksum-mismatch", Severity.ERROR, Checkpoint, impact=None, depth="deep")
def record_checksum_mismatch(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The bytes of a record do not give the checksum that was stored when it was written (`--deep`).

    **Why it matters.** The file changed after it was saved: a failing disk or memory, an interrupted copy, a lost page.
    `torch.load` does not look at checksums and loads wrong values in silence; TensorFlow and Orbax stop.

    **How to repair.** If this is a copy, copy the file again. Otherwise fall back to an older checkpoint
    (`ckpt latest RUN`); only the tensors that are named are affected. Where a manifest proves that the checksum alone
    is damaged, `ckpt repair --write` writes it again.

    **Known exceptions.** Archives written without checksums (`set_crc32_options(False)`: all are 0, or every record
    differs, even those that are always the same) are unprotected, not damaged: CK409. Compressed records are not
    compared.
    """
    for file, part in _files(context):
        wrong = [record for record in file.records if not record.fits]
        if not wrong or _never_stored(file):
            continue
        impact = _hurt(part, context)
        for record in wrong[:_HITS]:
            yield Hit(
                f"the checksum of record {record.name} does not fit its bytes",
                file.path,
                Spot(record=record.name, tensor=next(iter(record.tensors), None), offset=record.offset),
                tuple(_mismatch(record, file)),
                severity=Severity.WARNING if impact.harmless else None,
                impact=impact,
            )
        if len(wrong) > _HITS:
            rest = tuple(name for record in wrong[_HITS:] for name in record.tensors)
            detail = (_listed(record.name for record in wrong[_HITS:]), f"they hold {_listed(rest)}" if rest else "")
            message = f"the checksums of {len(wrong) - _HITS:,} more records do not fit"
            severity = Severity.WARNING if impact.harmless else None
            yield Hit(message, file.path, detail=tuple(filter(None, detail)), severity=severity, impact=impact)


def _mismatch(record: RecordSummary, file: FileSummary) -> Iterator[str]:
    yield f"{record.length:,} bytes at byte {record.offset:,}: stored {record.stored:08x}, found {record.computed:08x}"
    if record.tensors:
        yield f"it holds {_listed(record.tensors)}"
    if record.zero_pages:
        yield f"{record.zero_pages:,} pages of 4,096 bytes in it are all zero: pages that never reached the disk?"
    if file.protection == "crc32c":
        yield "TensorFlow and tensorstore compare it too, and stop"
    elif file.container in ("keras-zip", "npz", "zip"):
        yield 'a load stops with "Bad CRC-32"'
    else:
        yield "torch.load does not compare checksums, and would load it as it is"


def _never_stored(file: FileSummary) -> bool:
    """Whether what stands in the place of the checksums is none: nothing fits, not even what is always the same."""
    read = [record for record in file.records if record.computed is not None]
    if len(read) < 2 or any(record.fits for record in read):
        return False
    return any(
        _CONSTANTS.get(record.name.partition("/")[2]) == record.computed for record in read
    )  # fmt: skip


@rule("CK402", "nan-or-inf", Severity.ERROR, Checkpoint, impact=None, depth="deep")
def nan_or_inf(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Weights or optimizer moments hold NaN or Inf (`--deep`).

    **Why it matters.** It loads without a word. One NaN in a weight makes every output NaN; one in a moment makes its
    parameter NaN at the next step. A run can end "successfully" with nothing but NaN.

    **How to repair.** Fall back to the newest checkpoint without it, then look for the cause (learning rate, loss
    scale, a bad sample); a bit flip gives a single one, a diverged training many.

    **Known exceptions.** Infinities are meant in masks, limits and the like, told by name, and values that are neither
    weights nor moments may be anything: both are notes. Where Lightning's callbacks keep the best score, an infinity
    says that there is none yet. Types without Inf or NaN are respected.
    """
    for file, part in _files(context):
        found = {name: each for name, each in file.tensors.items() if each.nan or each.inf}
        bad = {name: each for name, each in found.items() if not _meaningless(name, each, part, context.view)}
        if not bad:
            continue
        grave = {name for name in bad if _grave(name, bad[name], part, context.view)}
        for names, heavy in ((grave, True), (bad.keys() - grave, False)):
            chosen = [name for name in bad if name in names]
            if chosen:
                yield _not_finite(file, chosen, bad, _lost(_hurt(part, context)) if heavy else HARMLESS, heavy)


def _meaningless(name: str, summary: TensorSummary, part: Part | None, view: View) -> bool:
    used = [each.used(part, name) for each in view.assemblies] if part is not None else []
    unused = any(count is not None and count <= (summary.first_bad or 0) for count in used)
    return unused or (not summary.nan and _UNSCORED.search(name) is not None)


def _grave(name: str, summary: TensorSummary, part: Part | None, view: View) -> bool:
    if part is None or not _learnt(summary, part, view):
        return False
    return bool(summary.nan) or not _NOT_LEARNT.search(name)


def _learnt(summary: TensorSummary, part: Part, view: View) -> bool:
    """Whether a tensor is a weight or an optimizer's, wherever the file is a mixture."""
    if part.role in (Role.WEIGHTS, Role.ADAPTER, Role.OPTIMIZER):
        return True
    if part.role in (Role.CHUNKS, Role.MODEL_STATES, Role.OPTIMIZER_STATES):
        return any(assembly.learnt(part, summary.ref.fqn) for assembly in view.assemblies)
    if part.role is not Role.COMBINED:
        return False
    return any(summary.ref is ref for held in (view.weights, view.optimizer_tensors) for ref in held.values())


def _not_finite(file: FileSummary, names: list[str], bad: dict[str, TensorSummary], impact: Impact, heavy: bool) -> Hit:
    nan, inf = sum(bad[name].nan for name in names), sum(bad[name].inf for name in names)
    counts = " and ".join(text for count, text in ((nan, f"{nan:,} NaN"), (inf, f"{inf:,} Inf")) if count)
    first = names[0]
    where = f"in tensor {first}" if len(names) == 1 else f"in {len(names):,} of {len(file.tensors):,} tensors"
    lines = []
    for name in names[:_SHOWN]:
        each = bad[name]
        kinds = ", ".join(text for n, text in ((each.nan, f"{each.nan:,} NaN"), (each.inf, f"{each.inf:,} Inf")) if n)
        lines.append(
            f"{_spot(name, each.first_bad, each)} is the first; {kinds} of {each.ref.numel:,} {each.ref.dtype}"
        )
    if len(names) > _SHOWN:
        lines.append(f"... and {len(names) - _SHOWN:,} more tensors")
    severity = None if heavy and not impact.harmless else Severity.WARNING if heavy else Severity.NOTE
    return Hit(f"{counts} {where}", file.path, Spot(tensor=first), tuple(lines), severity=severity, impact=impact)


@rule("CK403", "lost-pages", Severity.ERROR, Checkpoint, impact=None, depth="deep")
def lost_pages(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Zeros fill whole pages of a file that has no checksums, or run to its end, where no tensor or row ends
    (`--deep`).

    **Why it matters.** After a crash a file can have its full length, a perfect header, and zeros where the data never
    reached the disk. Every loader takes it.

    **How to repair.** If this is a copy, copy the file again; otherwise fall back to an older checkpoint.

    **Known exceptions.** Zeros that begin and end with a row or a tensor (rows never seen, `lora_B` at the start,
    biases, fresh moments). Records whose checksum fits were written with their zeros. A run that is not cut at pages
    is a warning.
    """
    for file, part in _files(context):
        impact = _hurt(part, context)
        for run in file.zeros[:_HITS]:
            sure = run.exact and (run.inside is not None or not run.tail)
            yield Hit(
                _zeros_message(run),
                file.path,
                Spot(tensor=run.inside or next(iter(run.partly or run.whole), None), offset=run.begin),
                tuple(_zeros_detail(run, file)),
                severity=Severity.WARNING if impact.harmless or not (sure or file.holes) else None,
                impact=impact if sure or file.holes else _lost(impact),
            )


def _zeros_message(run: ZeroRun) -> str:
    if run.tail:
        return f"zeros from byte {run.begin:,} to the end of the file"
    return f"{(run.end - run.begin) // 4096:,} pages of zeros inside tensors"


def _zeros_detail(run: ZeroRun, file: FileSummary) -> Iterator[str]:
    yield f"bytes {run.begin:,} to {run.end:,} of {file.size:,}" + (", on page boundaries" if run.exact else "")
    if run.inside:
        yield f"they begin in the middle of {run.inside}"
    if run.whole:
        yield f"{len(run.whole):,} tensors are entirely zero: {_listed(run.whole)}"
    if file.holes:
        yield "the file has holes: fewer blocks on the disk than its size"


@rule("CK404", "adapter-untrained", Severity.WARNING, Checkpoint, impact=DEGRADES_ALL, depth="deep")
def adapter_untrained(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Every `lora_B` is zero, so the adapter changes nothing (`--deep`).

    **Why it matters.** LoRA starts with `lora_B` at zero and moves it at the first step. Zeros after that mean that
    nothing was trained: frozen by mistake, an optimizer without these parameters, or a save of the wrong object.

    **How to repair.** Look whether the loss fell; check which parameters require gradients.

    **Known exceptions.** Steps 0 and 1, where a warm-up has a rate of 0. An adapter whose step is not known, and one
    of several in a checkpoint of which another was trained, are notes.
    """
    found: list[tuple[FileSummary, list[TensorSummary]]] = []
    for file, part in _files(context):
        if part is not None and part.role in (Role.ADAPTER, Role.COMBINED, Role.WEIGHTS):
            every = [each for name, each in file.tensors.items() if _LORA_B.search(name) and each.ref.numel]
            if every and all(each.checked and each.zero is not None for each in every):
                found.append((file, every))
    untrained = [(file, every) for file, every in found if all(each.zero for each in every)]
    step = context.view.step
    if step is None:
        steps = [view.step or 0 for view in context.run.checkpoints]
        step = max(steps, default=0) or None
    if not untrained or (step is not None and step <= 1):
        return
    known = step is not None and len(untrained) == len(found)
    for file, every in untrained:
        yield Hit(
            f"all {len(every):,} lora_B are zero: the adapter changes nothing",
            file.path,
            Spot(tensor=every[0].ref.fqn),
            (f"at step {step:,}" if step is not None else "its step is not known",),
            severity=None if known else Severity.NOTE,
            impact=None if known else HARMLESS,
        )


@rule("CK405", "negative-second-moments", Severity.ERROR, Checkpoint, impact=None, depth="deep")
def negative_second_moments(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A mean of squares of the optimizer (`exp_avg_sq`, `square_avg`) has elements below zero (`--deep`).

    **Why it matters.** It is impossible in a state that was written whole: the bytes changed. The square root of
    such an element is NaN at the next step, and so is its parameter.

    **How to repair.** Fall back to an older checkpoint, or copy the file again.

    **Known exceptions.** Quantised and factored states have other tensors and are not looked at.
    """
    for file, part in _files(context):
        bad = {name: each.negative for name, each in file.tensors.items() if each.negative}
        if not bad or part is None:
            continue
        total = sum(bad.values())
        yield Hit(
            f"{total:,} elements of second moments are negative",
            file.path,
            Spot(tensor=next(iter(bad))),
            (_listed(f"{name}: {count:,}" for name, count in bad.items()), "a mean of squares cannot be below zero"),
            impact=_lost(_hurt(part, context)),
        )


@rule("CK406", "magnitude-outlier", Severity.WARNING, Run, depth="deep")
def magnitude_outlier(run: Run, context: Context) -> Iterator[Hit]:
    """A tensor has an element of a size that the same tensor of the checkpoint beside it is far from (`--deep`).

    **Why it matters.** A flipped bit in an exponent turns 0.01 into 1e36. Nothing else shows it in a file without
    checksums.

    **How to repair.** Compare with the checkpoint before; if only single elements differ so, the bytes changed.

    **Known exceptions.** Told above 1,000 and above 10,000 times the neighbour's largest magnitude only, for
    weights, adapters and optimizers, where the neighbour's is above zero. A training that diverged looks alike.
    """
    views = [context.views[each.path] for each in run.checkpoints if context.views[each.path].data is not None]
    for position, view in enumerate(views):
        beside = [views[other].data for other in (position - 1, position + 1) if 0 <= other < len(views)]
        beside += view.beside
        learnt = [part.path for part in view.checkpoint.of(Role.WEIGHTS, Role.ADAPTER, Role.OPTIMIZER, Role.COMBINED)]
        for path in learnt:
            file = view.data.files.get(path) if view.data is not None else None
            found = list(_outliers(file, beside)) if file is not None else []
            if found:
                name, value, other = found[0]
                where = path if view.checkpoint.path == "." else f"{view.checkpoint.path}/{path}"
                detail = [f"{n}: {v:.4g} here, {o:.4g} beside it" for n, v, o in found[:_SHOWN]]
                message = f"{len(found):,} tensors have elements far out of the range that a neighbour has"
                if len(found) == 1:
                    message = f"tensor {name} reaches {value:.4g}, and {other:.4g} in the checkpoint beside it"
                yield Hit(message, where, Spot(tensor=name), tuple(detail))


def _outliers(file: FileSummary, beside: list[DataSummary | None]) -> Iterator[tuple[str, float, float]]:
    for name, each in file.tensors.items():
        if each.largest is None or each.largest <= OUTLIER:
            continue
        for data in beside:
            same = _same_file(file, data) if data is not None else None
            other = same.tensors.get(name) if same is not None else None
            if other is None or not other.largest:
                continue
            if each.largest > RATIO * other.largest:
                yield name, each.largest, other.largest
                break


def _same_file(file: FileSummary, data: DataSummary) -> FileSummary | None:
    """Return the file that stands for ``file`` in another checkpoint: by name, or where each is one file."""
    if len(data.files) == 1:
        return next(iter(data.files.values()))
    return data.files.get(file.path)


@rule("CK407", "bool-bytes", Severity.ERROR, Checkpoint, impact=None, depth="deep")
def bool_bytes(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A bool tensor has bytes other than 0 and 1 (`--deep`).

    **Why it matters.** No library writes them: the bytes changed. What code does with such a value is undefined.

    **How to repair.** Fall back to an older checkpoint, or copy the file again.
    """
    for file, part in _files(context):
        bad = {name: each for name, each in file.tensors.items() if each.odd}
        if not bad:
            continue
        first, each = next(iter(bad.items()))
        impact = _lost(_hurt(part, context))
        yield Hit(
            f"{sum(each.odd for each in bad.values()):,} bytes of bool tensors are neither 0 nor 1",
            file.path,
            Spot(tensor=first),
            (f"{_spot(first, each.first_bad, each)} is the first", _listed(bad)),
            severity=Severity.WARNING if impact.harmless else None,
            impact=impact,
        )


@rule("CK409", "no-checksums", Severity.NOTE, Checkpoint, depth="deep")
def no_checksums(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A torch file was written without checksums, so a changed byte cannot be seen in it (`--deep`).

    **Why it matters.** Nothing is wrong with it. `torch.serialization.set_crc32_options(False)` makes saving faster
    and leaves the file unprotected; zip tools call such a file damaged, which it is not.

    **How to repair.** Nothing needs to be done. A manifest protects it from now on.
    """
    for file, _ in _files(context):
        if file.protection == "off" or (file.protection == "crc32" and _never_stored(file)):
            yield Hit("the file holds no checksums; it is unprotected, not damaged", file.path)


RULES: tuple[Rule, ...] = (
    record_checksum_mismatch,
    nan_or_inf,
    lost_pages,
    adapter_untrained,
    negative_second_moments,
    magnitude_outlier,
    bool_bytes,
    no_checksums,
)
