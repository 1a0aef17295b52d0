"""Repairs that move, cut or copy whole files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from ckpt_tools.core.durable import Disk
from ckpt_tools.core.errors import CkptError, SourceError
from ckpt_tools.core.listing import Kind
from ckpt_tools.core.source import FileSource
from ckpt_tools.edits.repair_base import MAX_WHOLE, CannotRepairError, Draft, Staged, Subject, stage_name
from ckpt_tools.layouts.match import beside, group, open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import Fix
from ckpt_tools.model.plan import Action, CutFile, MoveFile, TruncateTo, WriteFile
from ckpt_tools.model.tensors import TensorRef

INVARIANT = frozenset({Role.CONFIG, Role.GENERATION_CONFIG, Role.TOKENIZER, Role.TRAINING_ARGS, Role.ADAPTER_CONFIG})
"""What is the same in every checkpoint of one training."""

_SIBLINGS = 16
_COMPARED = 4
_HEAD, _PIECE = 1 << 16, 1 << 22


def set_aside(fix: Fix, subject: Subject) -> Draft:
    """Plan to move a file into the quarantine."""
    path = str(fix.params["path"])
    if path not in subject.files:
        raise CannotRepairError(f"{path} is not there")
    return Draft((subject.aside(path),))


def restore_name(fix: Fix, subject: Subject) -> Draft:
    """Plan to give a directory of a run its name."""
    old, new = str(fix.params["from"]), str(fix.params["to"])
    if new in subject.files:
        raise CannotRepairError(f"{new} exists")
    return Draft((MoveFile(old, new),))


def cut_trailing(fix: Fix, subject: Subject) -> Draft:
    """Plan to cut what follows the data of a safetensors file, where nothing else is wrong with it."""
    part = subject.part(str(fix.params["path"]))
    content = subject.opened().content(part)
    if content is None or not content.readable or [p.kind for p in content.problems] != ["trailing-bytes"]:
        raise CannotRepairError(f"{part.path}: more is wrong with it than what follows the data")
    covered, size = int(content.facts["covered"]), content.size
    with subject.opened().listing.open(part.path) as source:
        first = source.read(covered, size - covered if size - covered <= MAX_WHOLE else min(_HEAD, size - covered))
        length = size - covered
        said = "bytes" if first.strip(b"\0") else "zeros" if len(first) == length else "bytes, zeros at first"
    shown = f", the first {first[:8].hex(' ')}" if said == "bytes" else ""
    note = f"{part.path}: {length:,} {said}{shown} after the {covered:,} that its header accounts for"
    if length <= MAX_WHOLE:
        return Draft((TruncateTo(part.path, covered, first),), notes=(note,))
    origin, tail = subject.home.at(part.path), f"{part.path}.tail"
    aside = replace(subject.aside(tail), path=stage_name(subject.home, tail))

    def write(disk: Disk, target: str) -> None:
        disk.create(target, b"", origin)
        with FileSource(origin, part.path) as whole:
            at = 0
            for piece in whole.window(covered, length).chunks(_PIECE):
                disk.write(target, at, bytes(piece))
                at += len(piece)

    notes = (note, f"they are kept as {aside.to}, too many for the journal")
    actions = (aside, CutFile(part.path, covered, length, aside.to))
    return Draft(actions, notes=notes, staged=(Staged(aside.path, length, write),))


def copy_beside(fix: Fix, subject: Subject) -> Draft:
    """Plan to copy a file that is the same in every checkpoint of a run from one beside this one."""
    path = str(fix.params["name"])
    reasons = []
    named = fix.params.get("from") if fix.safe else None
    for name, other in sorted(siblings(subject), key=lambda pair: pair[0] != named):
        if path not in other.listing.files:
            continue
        try:
            data = _whole(other, path)
            _fitting(subject, other, path)
        except (CannotRepairError, SourceError) as error:
            reasons.append(f"{name}: {error}")
            continue
        actions: list[Action] = [subject.aside(path)] if path in subject.files else []
        actions.append(WriteFile(path, data, None))
        return Draft(tuple(actions), notes=(f"{path} is that of {name}",))
    raise CannotRepairError(
        f"no checkpoint of the run has a {path} that fits{': ' + '; '.join(reasons) if reasons else ''}",
        "copy it from where the training began",
    )


def siblings_disagree(subject: Subject, path: str) -> bool:
    """Return whether a file is not the same in all other checkpoints of the run; of a few the bytes are compared."""
    held = [(other, other.listing.files[path]) for _, other in siblings(subject) if path in other.listing.files]
    if len({entry.size for _, entry in held}) > 1:
        return True
    found = set()
    for other, entry in held[:_COMPARED]:
        if entry.is_file and entry.size <= MAX_WHOLE:
            with suppress(SourceError), other.listing.open(path) as source:
                found.add(source.read(0, source.size))
    return len(found) > 1


def siblings(subject: Subject) -> Iterator[tuple[str, Checkpoint]]:
    """Yield the other checkpoints of the same training by name, the nearest in step first."""
    run, checkpoint = subject.run, subject.checkpoint
    if checkpoint is None or checkpoint.is_file:
        return
    step = checkpoint.step or 0
    if not run.single:
        others = [(os.path.basename(each.path), each) for each in group(run, checkpoint) if each is not checkpoint]
    else:
        parent = os.path.dirname(os.path.abspath(run.root))
        others = []
        for name, _ in beside(run, checkpoint):
            try:
                opened = open_run(os.path.join(parent, name))
            except CkptError:
                continue
            if opened.single:
                others.append((name, opened.checkpoints[0]))
    others.sort(key=lambda pair: abs((pair[1].step or 0) - step))
    yield from others[:_SIBLINGS]


def _whole(other: Checkpoint, path: str) -> bytes:
    """Return a file of another checkpoint, which has to be in order itself."""
    part = next((part for part in other.parts if part.path == path), None)
    if part is None or not part.stat.is_file:
        raise CannotRepairError("it is no file there")
    content = View(other).content(part) if part.containers else None
    if part.containers and (content is None or not content.readable or content.problems):
        raise CannotRepairError("it is damaged there too")
    if part.stat.size > MAX_WHOLE:
        raise CannotRepairError(f"it has {part.stat.size:,} bytes, too many to be kept in the journal")
    with other.listing.open(path) as source:
        data = source.read(0, source.size)
    if not data.strip(b"\0"):
        raise CannotRepairError("it is empty there, or nothing but zeros")
    return data


def _fitting(subject: Subject, other: Checkpoint, path: str) -> None:
    """Require that the tensors, which a config describes, are called and shaped alike in both checkpoints."""
    view = subject.opened()
    part = next(part for part in other.parts if part.path == path)
    beyond = View(other)
    if part.role in (Role.CONFIG, Role.GENERATION_CONFIG):
        ours, theirs = view.weights, beyond.weights
    elif part.role is Role.ADAPTER_CONFIG:
        ours, theirs = view.adapters().get(part.adapter, {}), beyond.adapters().get(part.adapter, {})
    else:
        return
    if not ours:
        raise CannotRepairError("the tensors here cannot be read, so that nothing shows that it fits")
    if _shapes(ours) != _shapes(theirs):
        raise CannotRepairError("its tensors have other names or shapes")


def _shapes(refs: Mapping[str, TensorRef]) -> dict[str, tuple[int, ...]]:
    return {name: ref.shape for name, ref in refs.items()}


def quarantine(fix: Fix, subject: Subject) -> Draft:
    """Plan to move a whole checkpoint into the quarantine of its run."""
    path = str(fix.params["path"])
    entry = subject.run.listing.files.get(path)
    if "/" not in path and (entry is None or entry.kind is not Kind.DIRECTORY or entry.link is not None):
        raise CannotRepairError(f"{path} is no directory of the run")
    return Draft((subject.aside(path),))
