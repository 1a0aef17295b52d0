"""The blocks of ``ckpt info``: the shortest answer first, one fact a line, the next command last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import TYPE_CHECKING

from ckpt_tools.model.findings import Finding, Purpose, Severity, Verdict
from ckpt_tools.reports.base import Block, Fields, Table, Text
from ckpt_tools.reports.edit import journal_table
from ckpt_tools.reports.units import count, human_bytes, human_rate

if TYPE_CHECKING:
    from ckpt_tools.reports.info import (
        CheckpointInfo,
        Described,
        Progress,
        RunInfo,
        Schedule,
        Space,
        Tensors,
        Use,
        ValueInfo,
    )

LABEL = 13
WIDTH = 92
REASONS = 6


def run(info: RunInfo) -> list[Block]:
    """Return the blocks for a run."""
    size = sum(row.size for row in info.rows)
    title = info.newest[1].title.replace(" checkpoint", " run", 1) if info.newest else f"{info.layout} run"
    blocks: list[Block] = [
        Text((info.root,), "heading"),
        Text((f"{title}: {count(len(info.rows), 'checkpoint')}, {human_bytes(size)}",)),
        _run_table(info),
    ]
    rows: list[tuple[str, str]] = []
    if info.newest:
        path, described = info.newest
        rows += _row("newest", path)
        rows += _facts(described)
    if rows:
        blocks.append(_fields(rows))
    if info.newest and info.newest[1].versions:
        blocks.append(_versions(info.newest[1]))
    blocks += _closing(info.space, info.next, [*(info.newest[1].notes if info.newest else ()), *info.strays])
    return blocks


def checkpoint(info: CheckpointInfo) -> list[Block]:
    """Return the blocks for a checkpoint or a single file."""
    described = info.described
    about = described.title + ("" if info.file else f": {count(info.count, 'file')}, {human_bytes(info.size)}")
    blocks: list[Block] = [Text((info.root,), "heading"), Text((about,))]
    if info.problems:
        blocks.append(Text(info.problems, "bad"))
    if info.use is not None:
        blocks += _use(info.use, info.root)
    rows = [*(pair for label, text in info.file for pair in _row(label, text)), *_facts(described)]
    if rows:
        blocks.append(_fields(rows))
    if described.files and not info.file:
        blocks.append(_files(described))
    if described.versions:
        blocks.append(_versions(described))
    if info.edits:
        blocks.append(journal_table(info.edits))
    if info.tensors is not None:
        blocks.append(_tensors(info.tensors))
    elif info.tree is not None:
        blocks.append(Text(tuple(info.tree.lines())))
    blocks += _closing(info.space, info.next, described.notes)
    return blocks


def values(info: ValueInfo) -> list[Block]:
    """Return the blocks for parts of a file."""
    lines = [line for tree in info.trees for line in tree.lines()]
    return [Text(tuple(lines))]


def _run_table(info: RunInfo) -> Table:
    metric = info.metric if any(row.metric is not None for row in info.rows) else None
    losses = any(row.loss is not None for row in info.rows)
    columns = ["checkpoint", "step", "saved", *(["loss"] if losses else []), *([metric] if metric else [])]
    right = {1, *range(3, len(columns) + 1)}
    columns += ["size", "resume", "inference"]
    rows = []
    for row in info.rows:
        cells = [row.path if row.path != "." else ". (export)", _or_dash(row.step), row.saved_text]
        cells += [_number(row.loss)] if losses else []
        cells += [_number(row.metric)] if metric else []
        cells += [human_bytes(row.size), row.use.verdicts[Purpose.RESUME].value]
        cells += [row.use.verdicts[Purpose.INFERENCE].value]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows), frozenset(right))


def _use(use: Use, root: str) -> Iterator[Block]:
    rows: list[tuple[str, str]] = []
    for purpose in Purpose:
        rows += _row(purpose.value, use.verdicts[purpose].value)
    yield _fields(rows)
    lines = [line for finding in use.reasons[:REASONS] for line in _reason(finding, root)]
    if len(use.reasons) > REASONS:
        lines.append(f"... and {len(use.reasons) - REASONS:,} more: see `ckpt verify`")
    if lines:
        bad = any(finding.severity >= Severity.ERROR for finding in use.reasons)
        yield Text(tuple(lines), "bad" if bad else "plain")


def _reason(finding: Finding, root: str) -> list[str]:
    hurt = [f"{purpose.value} {finding.impact.on(purpose).value}" for purpose in Purpose if _hurts(finding, purpose)]
    place = finding.path if finding.path != "." else root
    text = f"{finding.code} {place}: {finding.message} ({', '.join(hurt)})"
    return wrap(text, WIDTH, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)


def _hurts(finding: Finding, purpose: Purpose) -> bool:
    return finding.impact.on(purpose) is not Verdict.READY


def _facts(described: Described) -> Iterator[tuple[str, str]]:
    yield from _progress(described.progress)
    if described.schedule is not None:
        yield from _row("schedule", _schedule(described.schedule))
        if described.schedule.note:
            yield from _row("", described.schedule.note)
    model = described.model
    if model.architecture:
        yield from _row("model", model.architecture)
    if model.tensors:
        text = f"{model.parameters:,} in {count(model.tensors, 'tensor')}"
        text += f" ({count(model.tied, 'more name')} for the same memory)" if model.tied else ""
        if model.chunks:
            text += f", stored as {count(model.chunks[0], 'chunk')} in {count(model.chunks[1], 'file')}"
        yield from _row("parameters", text)
        yield from _row("dtypes", _shares(model.dtypes, model.parameters))
    for adapter in model.adapters:
        words = [adapter.kind]
        words += [f"rank {adapter.rank}"] if adapter.rank is not None else []
        words += [f"alpha {adapter.alpha:g}"] if adapter.alpha is not None else []
        text = f"{', '.join(words)}: {adapter.parameters:,} parameters"
        text += f", on top of {adapter.base}" if adapter.base else ""
        yield from _row("adapter" if not adapter.name else f"  {adapter.name}", text)
    training = described.training
    if training.optimizer or training.named:
        text = training.optimizer or training.named or ""
        if training.optimizer and training.named:
            text += f" ({training.named})"
        text += f", trains {count(model.trained, 'tensor')}" if model.trained is not None else ""
        yield from _row("optimizer", text)
    if training.batch is not None:
        yield from _row("batch", _batch(training.batch, training.accumulation, training.world_size))
    if training.world_size is not None:
        yield from _row("world size", str(training.world_size))
    if training.precision:
        yield from _row("precision", training.precision)
    if training.warmup:
        yield from _row("warm-up", training.warmup)
    for label, text in training.others:
        yield from _row(label, text)


def _progress(progress: Progress) -> Iterator[tuple[str, str]]:
    if progress.step is not None:
        text = f"{progress.step:,}"
        if progress.max_steps:
            text += f" of {progress.max_steps:,} ({100 * progress.step / progress.max_steps:.3g} %)"
        yield from _row("step", text)
    if progress.ended:
        yield from _row("", progress.ended)
    if progress.epoch is not None:
        yield from _row("epoch", f"{progress.epoch:.4g}" + (f" of {progress.epochs:g}" if progress.epochs else ""))
    if progress.rates or progress.peaks:
        text = f"{_rates(progress.rates)} now" if progress.rates else ""
        if progress.peaks:
            text += (", " if text else "") + f"{_rates(progress.peaks)} at the peak"
        yield from _row("learning rate", text)
    if progress.loss:
        yield from _row("loss", f"{_number(progress.loss[0])} (step {progress.loss[1]:,})")
    if progress.metric:
        name, value, step = progress.metric
        yield from _row(name, f"{_number(value)} (step {step:,})")
    if progress.best:
        yield from _row("best", f"{_number(progress.best[0])} at {progress.best[1]}")


def _schedule(schedule: Schedule) -> str:
    text = schedule.named or schedule.kind or "of no known class"
    if schedule.named and schedule.kind:
        text += f" ({schedule.kind})"
    return ", ".join([text, *(f"{name} {value}" for name, value in schedule.numbers)])


def _rates(rates: tuple[float, ...]) -> str:
    return " / ".join(dict.fromkeys(human_rate(rate) for rate in rates[:8]))


def _batch(batch: int, accumulation: int | None, world: int | None) -> str:
    factors = [
        f"{batch} per device",
        *([f"accumulated {accumulation} times"] if accumulation and accumulation > 1 else []),
    ]
    factors += [f"{world} ranks"] if world and world > 1 else []
    total = batch * (accumulation or 1) * (world or 1)
    return f"{total} ({' x '.join(factors)})" if len(factors) > 1 else factors[0]


def _shares(dtypes: tuple[tuple[str, int], ...], total: int) -> str:
    if len(dtypes) == 1 or not total:
        return ", ".join(name for name, _ in dtypes)
    return ", ".join(f"{name} ({100 * number / total:.3g} %)" for name, number in dtypes)


def _files(described: Described) -> Table:
    rows = []
    for files in described.files:
        names = ", ".join(files.names)
        more = files.count - len(files.names)
        rows.append((files.role, human_bytes(files.size), names + (f", ... and {more:,} more" if more else "")))
    return Table(("role", "size", "files"), tuple(rows), frozenset({1}))


def _versions(described: Described) -> Table:
    rows = []
    for each in described.versions:
        needs = f">= {each.needs}" if each.needs else "-"
        state = "too old here" if each.fits is False else each.reason if each.needs else ""
        rows.append((each.package, each.written or "-", needs, each.installed or "not installed", state))
    return Table(("library", "written with", "needs", "installed", ""), tuple(rows))


def _tensors(tensors: Tensors) -> Table:
    rows = [
        (
            row.name or row.ref.fqn,
            row.ref.dtype,
            "x".join(map(str, row.ref.shape)) or "scalar",
            human_bytes(row.ref.nbytes),
            row.file + (f" (shares {row.shared})" if row.shared else ""),
        )
        for row in tensors.rows
    ]
    shown = (
        f"{len(rows):,} of {count(tensors.total, 'tensor')}"
        if len(rows) != tensors.total
        else count(len(rows), "tensor")
    )
    shown += f" that fit {tensors.pattern!r}" if tensors.pattern is not None else ""
    return Table(("tensor", "dtype", "shape", "size", "file"), tuple(rows), frozenset({2, 3}), title=shown)


def _closing(space: Space | None, steps: tuple[tuple[str, str], ...], notes: Iterable[str]) -> Iterator[Block]:
    rows: list[tuple[str, str]] = []
    for note in notes:
        rows += _row("note", note)
    if space is not None and space.free is not None:
        rows += _row("next save", f"takes about {human_bytes(space.next_save)}; {human_bytes(space.free)} are free")
    if rows:
        yield _fields(rows)
    if space is not None and not space.enough:
        yield Text(("there is no room for one more checkpoint",), "bad")
    if steps:
        yield Fields(tuple((what.ljust(LABEL), command) for what, command in steps))


def _fields(rows: Iterable[tuple[str, str]]) -> Fields:
    return Fields(tuple((label.ljust(LABEL), text) for label, text in rows))


def _row(label: str, text: str) -> list[tuple[str, str]]:
    """Return a labelled value, long ones on several lines."""
    lines = wrap(text, WIDTH - LABEL, break_long_words=False, break_on_hyphens=False) or [""]
    return [(label if not number else "", line) for number, line in enumerate(lines)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
