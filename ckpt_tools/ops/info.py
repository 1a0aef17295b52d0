"""``ckpt info``: what is this, how far is it, what is it good for, and what do I type next?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase

from ckpt_tools._version import __version__
from ckpt_tools.containers.base import Content
from ckpt_tools.containers.reader import describe as kind_name
from ckpt_tools.core.errors import CkptError, SourceError
from ckpt_tools.core.progress import SILENT, Progress
from ckpt_tools.core.source import Extent
from ckpt_tools.core.space import free_bytes
from ckpt_tools.layouts import by_name
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role, Run
from ckpt_tools.model.findings import Finding, Purpose, Severity, Verdict
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping, children
from ckpt_tools.ops import address, describe, engine, latest, next_steps, versions
from ckpt_tools.reports.edit import PastEdit
from ckpt_tools.reports.info import (
    CheckpointInfo,
    InfoReport,
    RunInfo,
    RunRow,
    Space,
    TensorRow,
    Tensors,
    Use,
    ValueInfo,
)
from ckpt_tools.reports.tree import Limits, Tree
from ckpt_tools.reports.units import first_names
from ckpt_tools.rules import by_code
from ckpt_tools.rules.base import Settings

MOST_NUMBERS = 2000
_WHOLE = Limits(depth=3, entries=200, inner=8)
_ASKED = Limits(depth=6, entries=1000, inner=24)
_LOADS = (Verdict.READY, Verdict.DEGRADED)
_STRAYS = {
    "staging": "a staging directory of a save that did not end",
    "not-a-directory": "a file, not a directory",
    "name": "no trainer finds a checkpoint under this name",
}
_CHECKPOINTS = (Role.COMBINED, Role.WEIGHTS, Role.ADAPTER)


def info(
    target: str,
    *,
    tensors: bool = False,
    pattern: str | None = None,
    now_ns: int | None = None,
    progress: Progress = SILENT,
) -> InfoReport:
    """Describe a run, a checkpoint, a file, or a part of a file.

    Args:
        target: ``PATH``, ``PATH:FILE`` or ``PATH:FILE:key.path``; a path that has colons itself is tried first.
        tensors: also list the tensors of a checkpoint or file.
        pattern: list only those whose names fit this glob.
        now_ns: the clock, for tests; the system's when None.
        progress: where progress is announced.

    Raises:
        NothingFoundError: no such path, file or key; the names that there are come with it.
    """
    place = address.split(target)
    if place.file is not None and place.key:
        return _value(place.file, place.key)
    run = open_run(place.file or place.path)
    settings = Settings(time.time_ns() if now_ns is None else now_ns)
    wanted = tensors or pattern is not None
    if run.single:
        return _checkpoint(run, run.checkpoints[0], settings, wanted, pattern)
    return _run(run, settings, wanted, pattern, progress)


# A run -----------------------------------------------------------------------------------------------------


def _run(run: Run, settings: Settings, tensors: bool, pattern: str | None, progress: Progress) -> InfoReport:
    rows: list[RunRow] = []
    metric: str | None = None
    damaged = unreadable = False
    with progress.task("reading", len(run.checkpoints), "checkpoint") as task:
        for checkpoint in reversed(run.checkpoints):
            view = View(checkpoint)
            use = _use(run, checkpoint, view, settings)
            metric = metric or describe.metric_name(view)
            rows.append(_row(checkpoint, view, use, metric))
            damaged, unreadable = damaged or _damaged(view), unreadable or bool(view.errors)
            view.release()
            task.advance(1)
    rows.reverse()
    told = {row.path: row for row in rows}
    order = _newest_first(run, told)
    best = next((checkpoint for checkpoint in order if _usable(told[checkpoint.path].use)), None)
    newest = View(best or order[0]) if order else None
    if newest is not None and tensors:
        return _checkpoint(run, newest.checkpoint, settings, tensors, pattern)
    described = (newest.checkpoint.path, describe.describe(newest)) if newest else None
    sizes = [row.size for row in rows if row.path != "."]
    return RunInfo(
        __version__,
        run.root,
        run.layout,
        tuple(rows),
        metric,
        described,
        Space(max(sizes), free_bytes(run.root)) if sizes else None,
        tuple(next_steps.of_run(run, [(each.path, told[each.path].use) for each in reversed(order)], newest)),
        tuple(f"{stray.path} is ignored: {_STRAYS[stray.why]}" for stray in run.strays),
        3 if unreadable else 1 if damaged else 0,
    )


def _newest_first(run: Run, told: Mapping[str, RunRow]) -> list[Checkpoint]:
    numbered = [checkpoint for checkpoint in run.checkpoints if checkpoint.path != "."]
    return latest.ordered(numbered, lambda checkpoint: told[checkpoint.path].step) or list(run.checkpoints)


def _usable(use: Use) -> bool:
    return use.verdicts[Purpose.RESUME] in _LOADS or use.verdicts[Purpose.INFERENCE] is Verdict.READY


def _row(checkpoint: Checkpoint, view: View, use: Use, metric: str | None) -> RunRow:
    state = view.state or {}
    loss = describe.logged(state, "loss", view.step)
    value = describe.logged(state, metric, view.step) if metric else None
    return RunRow(
        checkpoint.path,
        view.step,
        _saved(checkpoint),
        checkpoint.size,
        loss[0] if loss else None,
        value[0] if value else None,
        use,
    )


def _saved(checkpoint: Checkpoint) -> str | None:
    """Return when the newest file was written, in local time: a hint, since copies have times of their own."""
    times = [part.stat.mtime_ns for part in checkpoint.parts if part.stat.is_file and part.role is not Role.SIDECAR]
    if not times:
        return None
    try:
        return datetime.fromtimestamp(max(times) / 1e9).astimezone().isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None


def _use(run: Run, checkpoint: Checkpoint, view: View, settings: Settings) -> Use:
    findings = engine.check(run, checkpoint, view, settings)
    decided, _ = engine.verdicts(findings)
    return Use(decided, tuple(sorted(filter(_hurting, findings), key=_weight)))


def _hurting(finding: Finding) -> bool:
    return not finding.impact.harmless


def _weight(finding: Finding) -> tuple[int, int, str]:
    worst = max(finding.impact.on(purpose).rank for purpose in Purpose)
    return -worst, -finding.severity, finding.code


# A checkpoint or a file ------------------------------------------------------------------------------------


def _checkpoint(
    run: Run, checkpoint: Checkpoint, settings: Settings, tensors: bool, pattern: str | None
) -> CheckpointInfo:
    view = View(checkpoint)
    is_file = not os.path.isdir(os.path.join(run.root, checkpoint.path))
    part = checkpoint.parts[0] if is_file and len(checkpoint.parts) == 1 else None
    judged = part is None or part.role is Role.COMBINED
    use = _use(run, checkpoint, view, settings) if judged else None
    described = describe.describe(view)
    if part is not None:
        described = replace(described, title=_file_title(part))
    content = view.content(part) if part is not None else None
    space = None
    if use and use.verdicts[Purpose.RESUME] in _LOADS and checkpoint.has(Role.TRAINER_STATE, Role.OPTIMIZER):
        space = Space(checkpoint.size, free_bytes(checkpoint.listing.root))
    return CheckpointInfo(
        __version__,
        run.root if checkpoint.path == "." else os.path.join(run.root, checkpoint.path),
        described,
        use,
        checkpoint.size,
        sum(entry.is_file for entry in checkpoint.listing.files.values()),
        space,
        tuple(next_steps.of_checkpoint(run, view, use) if use else next_steps.of_file(run, content)),
        tuple(_file_facts(part, content, view)) if part is not None else (),
        tuple(problem.message for problem in content.problems) if content is not None and use is None else (),
        _beginning(run.root, part, content, view) if part is not None and not tensors else None,
        _tensors(view, pattern) if tensors else None,
        3 if view.errors else 1 if _damaged(view) else 0,
        _edits(checkpoint) if use is not None else (),
    )


def _edits(checkpoint: Checkpoint) -> tuple[PastEdit, ...]:
    """Return what this tool changed in a checkpoint, oldest first."""
    if not engine.may_be_sealed(checkpoint):
        return ()
    from ckpt_tools.edits import back, journal
    from ckpt_tools.ops.undo import past

    try:
        return tuple(past(edit) for edit in back.history(journal.home_of(checkpoint.listing.root)))
    except CkptError:
        return ()  # `verify` says what is wrong with the journal


def _file_title(part: Part) -> str:
    layout = by_name(part.layout).title
    if part.role is Role.COMBINED:
        return "a file of a plain PyTorch loop" if part.layout == "plain" else f"{layout} checkpoint"
    return f"{part.role.value} file ({layout})"


def _damaged(view: View) -> bool:
    parts = [part for part in view.checkpoint.parts if part.containers or part.role is Role.COMBINED]
    return any(content is not None and not _whole(content) for content in map(view.content, parts))


def _whole(content: Content) -> bool:
    """Return whether nothing of a file is missing or wrong; what harms nobody does not count."""
    rules = (by_code(problem.kind) for problem in content.problems)
    return content.readable and not any(rule is not None and rule.severity >= Severity.ERROR for rule in rules)


def _file_facts(part: Part, content: Content | None, view: View) -> Iterator[tuple[str, str]]:
    yield "size", f"{part.stat.size:,} bytes"
    if content is None:
        error = view.errors.get(part.path)
        yield "contents", f"cannot be read: {error.reason}" if error else f"is a {part.stat.kind}"
        return
    yield "kind", kind_name(content.container)
    age = versions.torch_age(content)
    if age:
        yield "written by", f"torch {age}"
    if content.records:
        yield "records", f"{len(content.records):,}"
    if content.tensors and part.role not in _CHECKPOINTS:
        numbers = sum(ref.numel for ref in content.tensors.values())
        yield "tensors", f"{len(content.tensors):,} with {numbers:,} numbers"
    if content.globals:
        names = describe.foreign(content.globals)
        if names:
            yield "objects of", first_names(names, 6)
    metadata = content.facts.get("metadata")
    if isinstance(metadata, Mapping) and metadata:
        yield "metadata", first_names([f"{key}={value}" for key, value in metadata.items()], 6)


def _beginning(root: str, part: Part, content: Content | None, view: View) -> Tree | None:
    if content is None or not content.readable:
        return None
    value = _root_value(content)
    if value is None or (content.container == "safetensors" and not content.tensors):
        return None
    limits = Limits(depth=1, entries=24, inner=8) if content.container == "safetensors" else _WHOLE
    folded = _folded(value) if part.role is Role.TRAINER_STATE else {}
    return Tree(os.path.basename(root), value, _numbers(value, view), folded, limits)


def _folded(value: Value) -> dict[str, str]:
    history = (as_mapping(value) or {}).get("log_history")
    if not isinstance(history, list) or len(history) < 4:
        return {}
    steps = [entry["step"] for entry in history if isinstance(entry, dict) and isinstance(entry.get("step"), int)]
    range_ = f", steps {min(steps):,} to {max(steps):,}" if steps else ""
    return {"log_history": f"list of {len(history):,}{range_} (add :log_history to see it)"}


def _root_value(content: Content) -> Value:
    """Return the tree of a file; of safetensors the metadata and the tensors by name."""
    if content.container != "safetensors":
        return content.value
    metadata = content.facts.get("metadata")
    return {
        **({"__metadata__": dict(metadata)} if isinstance(metadata, Mapping) and metadata else {}),
        **content.tensors,
    }


def _tensors(view: View, pattern: str | None) -> Tensors:
    rows: list[TensorRow] = []
    total = 0
    first: dict[tuple[object, ...], str] = {}
    for place, name, ref in _listed(view):
        total += 1
        mark = describe.storage(ref)
        shared = first.setdefault(mark, name) if mark is not None else name
        if pattern is None or fnmatchcase(name, pattern):
            rows.append(TensorRow(ref, place, shared if shared != name else None, name))
    return Tensors(tuple(rows), total, pattern)


def _listed(view: View) -> Iterator[tuple[str, str, TensorRef]]:
    """Yield where a tensor lies, its name and the tensor: those in pieces once, those of other files file by file."""
    together: frozenset[str] = frozenset()
    if view.assemblies:
        from ckpt_tools.ops import gathered

        found = gathered.tensors(view)
        together = gathered.files(view, found)
        yield from ((gathered.chunks_of(each.ref), each.name, each.ref) for each in found)
    for part in view.checkpoint.parts:
        if part.path not in together and (part.containers or part.role is Role.COMBINED):
            content = view.content(part)
            yield from ((part.path, name, ref) for name, ref in (content.tensors.items() if content else ()))


# A part of a file ------------------------------------------------------------------------------------------


def _value(file: str, key: str) -> ValueInfo:
    run = open_run(file)
    view = View(run.checkpoints[0])
    (part,) = view.checkpoint.parts
    content = view.content(part)
    if content is None:
        error = view.errors.get(part.path)
        raise SourceError(file, error.reason if error else f"is a {part.stat.kind}, not a regular file")
    if not content.readable:
        why = "; ".join(problem.message for problem in content.problems) or f"is {kind_name(content.container)}"
        raise SourceError(file, f"cannot be decoded: {why}")
    found = address.resolve(_root_value(content), key, file)
    name = os.path.basename(file)
    trees = [Tree(f"{name}:{at}", value, _numbers(value, view), {}, _ASKED) for at, value in found]
    code = 0 if _whole(content) else 1
    return ValueInfo(__version__, file, key, tuple(trees), tuple(at for at, _ in found), code)


def _numbers(value: Value, view: View) -> dict[Extent, float | int | bool]:
    """Read the single-element tensors inside ``value``, so many at the most."""
    found: dict[Extent, float | int | bool] = {}
    work = [value]
    seen = 0
    while work and len(found) < MOST_NUMBERS and seen < 100 * MOST_NUMBERS:
        item = work.pop()
        seen += 1
        if isinstance(item, TensorRef):
            try:
                number = view.scalar(item) if item.numel == 1 else None
            except SourceError:
                number = None
            if number is not None:
                found[item.chunks[0].extent] = number
        else:
            work += [child for _, child in children(item)][:MOST_NUMBERS]
    view.close()
    return found
