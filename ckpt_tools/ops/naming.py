"""A checkpoint's directory gets another name, and what names it follows: all in one plan, or nothing."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ckpt_tools.core.errors import UsageError
from ckpt_tools.core.listing import FileStat
from ckpt_tools.edits.journal import home_of
from ckpt_tools.edits.states import State
from ckpt_tools.edits.values import Setting, plan_values
from ckpt_tools.layouts.assembly_zero import tag_of
from ckpt_tools.layouts.assembly_zero_names import is_tag
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View, counts_epochs
from ckpt_tools.model.checkpoint import Checkpoint, Role, Run
from ckpt_tools.model.plan import Action, MoveFile, WriteFile
from ckpt_tools.model.values import Value, as_mapping
from ckpt_tools.ops import change, reseal
from ckpt_tools.ops.change import Opened, Rename
from ckpt_tools.reports.edit import Change

BEST = "best_model_checkpoint"

_NUMBER = re.compile(r"\d+(?!.*\d)")
_POINTER = re.compile(r"(?:latest|last)[^/.]*(?:\.txt)?\Z")
_SHORT = 4096


@dataclass(frozen=True, slots=True)
class Renaming:
    """A new name: the actions in the rest of the run, in the words of the run, and what to tell about them."""

    rename: Rename
    actions: tuple[Action, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    def placed(self, actions: Iterable[Action]) -> list[Action]:
        """Return the whole plan of the run, given the actions in the checkpoint."""
        name = self.rename.name
        inner = [_below(action, name) for action in actions]
        return [*inner, *self.actions, MoveFile(name, self.rename.to)]

    def told(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        """Return every change of the run, given those in the checkpoint."""
        return (*(replace(row, path=f"{self.rename.name}/{row.path}") for row in changes), *self.changes)


def renaming(opened: Opened, step: int) -> Renaming | None:
    """Return how the directory of a checkpoint gets the name of ``step``, None where it has it.

    Raises:
        UsageError: it is no directory that is named by its step.
    """
    if opened.checkpoint.is_file or opened.checkpoint.step is None or counts_epochs(opened.checkpoint):
        raise UsageError("--rename is for directories that are named by their step")
    root = opened.home.root
    parent, name = os.path.split(root)
    to = _NUMBER.sub(str(step), name)
    if to == name:
        return None
    run = open_run(parent)
    files: dict[str, FileStat] = {f"{name}/{path}": entry for path, entry in opened.checkpoint.listing.files.items()}
    actions: list[Action] = []
    changes: list[Change] = []
    for made, told in (*_states(run, name, to), *_pointers(run, name, to)):
        actions += made
        changes += told
    files |= run.listing.files
    for checkpoint in run.checkpoints:
        files |= {checkpoint.place(path): entry for path, entry in checkpoint.listing.files.items()}
    rename = Rename(home_of(parent), files, name, to)
    return Renaming(rename, tuple(actions), tuple(changes), tuple(_links(run, name)))


def _below(action: Action, name: str) -> Action:
    if isinstance(action, MoveFile):
        return MoveFile(f"{name}/{action.path}", f"{name}/{action.to}")
    return replace(action, path=f"{name}/{action.path}")


def tag(opened: Opened, step: int) -> tuple[list[Action], list[Change]]:
    """Return how DeepSpeed's tag inside of a checkpoint gets the name of ``step``, with what names it."""
    found = tag_of(opened.view)
    if found is None or not found.folder or not is_tag(found.folder):
        return [], []
    name, to = found.folder, _NUMBER.sub(str(step), found.folder)
    if to == name:
        return [], []
    told = list(_pointers(opened.run, name, to))
    actions = [action for made, _ in told for action in made]
    return [*actions, MoveFile(name, to)], [row for _, rows in told for row in rows]


def best(value: Mapping[object, Value], name: str, to: str) -> str | None:
    """Return the path of the best checkpoint under its new name, None where it is another one."""
    old = value.get(BEST)
    if not isinstance(old, str) or posixpath.basename(posixpath.normpath(old)) != name:
        return None
    return posixpath.join(posixpath.dirname(posixpath.normpath(old)), to)


def _states(run: Run, name: str, to: str) -> Iterator[tuple[list[Action], list[Change]]]:
    """Yield what changes in the trainer's states of the run and of its other checkpoints."""
    others = [each for each in run.checkpoints if each.path != name]
    if all(each.path != "." for each in others):
        others.append(Checkpoint(".", run.listing, (run.layout,), run.parts))
    for checkpoint in others:
        view = View(checkpoint)
        try:
            settings = [
                Setting(part, (BEST,), new)
                for part, value in view.values(Role.TRAINER_STATE)
                if (new := best(as_mapping(value) or {}, name, to)) is not None
            ]
            if not settings:
                continue
            planned = plan_values(view, settings)
            sealing, _ = reseal.follow(run, view, planned.actions)
        finally:
            view.close()
        actions = [replace(action, path=checkpoint.place(action.path)) for action in (*planned.actions, *sealing)]
        yield actions, [replace(row, path=checkpoint.place(row.path)) for row in change.told(planned.changed)]


def _pointers(run: Run, name: str, to: str) -> Iterator[tuple[list[Action], list[Change]]]:
    """Yield what changes in text files of the run that name the latest checkpoint."""
    for path in run.listing.names():
        entry = run.listing.files[path]
        if not entry.is_file or entry.link is not None or entry.size > _SHORT or not _POINTER.match(path):
            continue
        with run.listing.open(path) as source:
            old = source.read(0, source.size)
        text = old.decode("utf-8", "replace").strip()
        if posixpath.basename(posixpath.normpath(text)) == name:
            head, _, tail = old.rpartition(name.encode())
            yield [WriteFile(path, head + to.encode() + tail, old)], [Change(path, "", name, to)]


def _links(run: Run, name: str) -> Iterator[str]:
    for path, entry in run.listing.files.items():
        link = entry.link
        if link is not None and name in posixpath.normpath(link).split("/")[-2:]:
            yield f"{path} is a link to {link}, which will not be there any more: links are not changed"


def own(trainer: State | None, name: str, to: str) -> str | None:
    """Return what the checkpoint's own state calls the best one afterwards, None where that stays."""
    return best(trainer.value, name, to) if trainer is not None else None
