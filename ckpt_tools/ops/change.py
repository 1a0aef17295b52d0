"""What the commands that set numbers share: opening one checkpoint, refusing what is unfit, carrying a plan out."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ckpt_tools.core.errors import EditRefusedError, UsageError
from ckpt_tools.core.listing import FileStat
from ckpt_tools.edits import guards, proof
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.counters import counter_keys
from ckpt_tools.edits.journal import Home, home_of
from ckpt_tools.edits.outcome import VERIFY
from ckpt_tools.edits.proof import Changed
from ckpt_tools.edits.states import State
from ckpt_tools.edits.values import number_of, value_at
from ckpt_tools.layouts import tracking
from ckpt_tools.layouts.match import holder, is_export, is_prefix, open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role, Run
from ckpt_tools.model.findings import Verdict
from ckpt_tools.model.plan import Action, AppendBytes, MoveFile, PatchBytes, Plan, WriteFile, rebase
from ckpt_tools.model.values import step, whole
from ckpt_tools.ops import engine, numbered
from ckpt_tools.ops.undo import being_saved, file_change, only_of
from ckpt_tools.reports.edit import Change, FileChange
from ckpt_tools.rules.base import Settings

MANY = 8
"""From so many like changes on, they are told in one line."""

MANIFEST = "manifest.json"

_RANK = re.compile(r"rank_\d+")
_DAMAGE = engine.Selection(("CK2",))


@dataclass(frozen=True, slots=True)
class Opened:
    """One checkpoint that is about to be edited; ``only_of`` is the run that was named, of which it is the only one."""

    path: str
    run: Run
    checkpoint: Checkpoint
    view: View
    home: Home
    only_of: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """What was written, or would be; ``path`` is what ``ckpt undo`` takes, empty where nothing was written."""

    files: tuple[FileChange, ...]
    bytes_written: int
    notes: tuple[str, ...]
    path: str = ""


@dataclass(frozen=True, slots=True)
class Rename:
    """A checkpoint's directory gets another name: ``home`` is that of its run, ``files`` are those of the run."""

    home: Home
    files: Mapping[str, FileStat]
    name: str
    to: str


def open_checkpoint(path: str) -> Opened:
    """Return the one checkpoint that ``path`` names; of a run that has but one, that one.

    Raises:
        NothingFoundError: no such path, or no checkpoint there.
        UsageError: it is a run of several checkpoints, or one part of a checkpoint.
        EditRefusedError: it is a checkpoint of TensorFlow.
    """
    path = numbered.named(path)
    if is_prefix(path):
        raise EditRefusedError(f"{path}: a checkpoint of TensorFlow holds nothing that is edited by this version")
    home = home_of(path)
    run = open_run(path)
    if not run.single and [each.path for each in run.checkpoints] != ["."]:
        return replace(open_checkpoint(_only(run)), only_of=path)
    checkpoint = run.checkpoints[0]
    around = holder(path)
    if around is not None or (checkpoint.is_file and not checkpoint.has(Role.COMBINED)):
        whole = os.path.dirname(os.path.normpath(path)) or "."
        if around is not None and os.path.realpath(whole) != around.listing.root:
            whole = around.listing.root
        what = "file" if checkpoint.is_file else "part"
        raise UsageError(
            f"{path}: is one {what} of a checkpoint; the others have to fit it", hint=f"name {shlex.quote(whole)}"
        )
    return Opened(path, run, checkpoint, View(checkpoint), home)


@contextmanager
def held(opened: Opened) -> Iterator[None]:
    """Close the checkpoint in the end, and put its path into the hint of a refusal that knew none."""
    try:
        yield
    except EditRefusedError as error:
        if error.hint == VERIFY:
            error.hint = f"`ckpt verify {shlex.quote(opened.path)}` tells more"
        raise
    finally:
        opened.view.close()


def _only(run: Run) -> str:
    """Return where the only checkpoint of a run lies.

    Raises:
        UsageError: there are several.
    """
    alone = only_of(run)
    if alone is not None:
        return alone
    said = [each for each in tracking.of_run(run) if each.target is not None and each.there]
    for tracked in said[:1]:
        place = shlex.quote(os.path.join(run.root, tracked.at(tracked.target or "")))
        raise UsageError(f"{run.root}: holds several checkpoints; name one", hint=f"{tracked.path} names {place}")
    places = [os.path.join(run.root, each.path) for each in reversed(run.checkpoints) if not is_export(run, each)]
    place = next((place for place in places if not os.path.islink(place)), run.root)
    hint = f"for example {shlex.quote(place)}"
    raise UsageError(f"{run.root}: holds several checkpoints; name one", hint=hint)


def refuse_unfit(opened: Opened, parts: Iterable[Part], settle: float, now_ns: int | None) -> None:
    """Require that the files to be edited are whole, and that no earlier edit of them is unfinished.

    Raises:
        EditRefusedError: they are not.
    """
    names = {part.path for part in parts}
    guards.refuse_pending(opened.home, tuple(names))
    reason = being_saved(opened.path, settle, now_ns)
    if reason is not None:
        raise EditRefusedError(f"the checkpoint is being written: {reason}", hint="wait until its save has ended")
    now = time.time_ns() if now_ns is None else now_ns
    settings = Settings(now, int(settle * 1e9))
    places = {opened.checkpoint.place(name): name for name in names}
    own = replace(opened.checkpoint, parts=tuple(part for part in opened.checkpoint.parts if part.path in names))
    for finding in engine.check(opened.run, own, opened.view, settings, _DAMAGE):
        if finding.path in places and finding.impact.resume is Verdict.BROKEN:
            raise EditRefusedError(
                f"{places[finding.path]}: {finding.message} ({finding.code}); it is not edited",
                hint=f"`ckpt verify {shlex.quote(opened.path)}` tells more",
            )


def follow_seal(
    opened: Opened, actions: Sequence[Action], step: int | None = None, name: str | None = None
) -> tuple[list[Action], tuple[str, ...]]:
    """Return what becomes of the manifest of a sealed checkpoint, and what to tell; see ``reseal.follow``."""
    if not os.path.exists(opened.home.at(f"{opened.home.sidecar}/{MANIFEST}")):
        return [], ()
    from ckpt_tools.ops import reseal  # not at the top: most checkpoints are not sealed, and this takes long

    return reseal.follow(opened.run, opened.view, actions, step, name)


def carry_out(
    opened: Opened,
    title: str,
    actions: Sequence[Action],
    changed: Sequence[Changed],
    *,
    dry_run: bool,
    settle: float,
    now_ns: int | None,
    command: str,
    rename: Rename | None = None,
) -> Done:
    """Apply a plan, or with ``dry_run`` check that it could be applied.

    Raises:
        EditRefusedError: a guard does not hold.
        EditError: the system refused something, or the values are not as planned afterwards.
    """
    home, files, after = opened.home, dict(opened.checkpoint.listing.files), opened.path
    if rename is not None:
        home, files, after = rename.home, dict(rename.files), os.path.join(rename.home.root, rename.to)
    plan = Plan.of(title, actions, files)

    def saving() -> str | None:
        return being_saved(opened.path, settle, now_ns)

    def prove() -> str | None:
        view = View(open_run(after).checkpoints[0])
        try:
            return proof.prove(opened.view, view, changed, _moved(actions, rename))
        finally:
            view.close()

    inside = any(change.part.role is Role.CHUNKS for change in changed)
    stays = [".metadata stays as it is: in the data files nothing moves, and no length changes"] if inside else []
    stays += [f"{opened.only_of} holds one checkpoint: it is {opened.path}"] if opened.only_of else []
    if dry_run:
        guards.check(home, plan, saving)
        return Done(tuple(_foretold(plan, files)), plan.bytes_written, tuple(stays))
    outcome = apply(home, plan, prove=prove, saving=saving, command=command, now_ns=now_ns)
    files_now = tuple(map(file_change, outcome.files))
    return Done(files_now, outcome.bytes_written, (*stays, *outcome.notes), _typed(opened, rename))


def _typed(opened: Opened, rename: Rename | None) -> str:
    """Return where the checkpoint is now, in the words of the user as far as they go."""
    path = os.path.normpath(opened.path)
    if rename is None:
        return opened.path
    meant = os.path.basename(path) == rename.name and not os.path.islink(path)
    return os.path.join(os.path.dirname(path) if meant else rename.home.root, rename.to)


def _moved(actions: Sequence[Action], rename: Rename | None) -> Callable[[str], str]:
    """Return what gives the name that a file of the checkpoint has after the plan."""
    moves = [action for action in actions if isinstance(action, MoveFile)]

    def moved(path: str) -> str:
        place = f"{rename.name}/{path}" if rename is not None else path
        for move in moves:
            place = rebase(place, move.path, move.to)
        return place.removeprefix(f"{rename.to}/") if rename is not None else place

    return moved


def _foretold(plan: Plan, files: Mapping[str, FileStat]) -> Iterable[FileChange]:
    for path in dict.fromkeys(action.path for action in plan.actions if not isinstance(action, MoveFile)):
        entry = files.get(path)
        before = entry.size if entry is not None else None
        after = before
        for action in plan.actions:
            if action.path == path and isinstance(action, WriteFile):
                after = len(action.new)
            elif action.path == path and isinstance(action, AppendBytes):
                after = action.offset + len(action.data)
            elif action.path == path and not isinstance(action, PatchBytes):
                after = None
        yield FileChange(path, before, after, entry.mtime_ns if entry is not None else None, None)


def told(changed: Sequence[Changed]) -> tuple[Change, ...]:
    """Return changes as reports show them; many that differ in one position alone are one, with ``[*]`` for it."""
    groups: dict[tuple[object, ...], list[Changed]] = {}
    for change in changed:
        groups.setdefault((change.part.path, _alike(change), repr(change.old), repr(change.new)), []).append(change)
    rows: list[Change] = []
    for members in groups.values():
        first = members[0]
        if len(members) > MANY:
            rows.append(Change(first.part.path, _alike(first), first.old, first.new))
        else:
            rows += [Change(change.part.path, change.key, change.old, change.new) for change in members]
    return tuple(of_ranks(rows))


def of_ranks(rows: Sequence[Change]) -> Iterator[Change]:
    """Yield like changes in the files of many ranks as one, with ``*`` for the numbers of the ranks."""
    groups: dict[tuple[object, ...], list[Change]] = {}
    for row in rows:
        groups.setdefault((_RANK.sub("rank_*", row.path), row.key, repr(row.old), repr(row.new)), []).append(row)
    for members in groups.values():
        if len(members) > MANY:
            yield replace(members[0], path=_RANK.sub("rank_*", members[0].path))
        else:
            yield from members


def _alike(change: Changed) -> str:
    """Return the key with ``[*]`` for the parameter, or whatever else many changes differ in."""
    keys = change.keys
    if change.part.role is Role.CHUNKS:  # one name: optimizer.state.layers.0.weight.step
        words = str(keys[0]).split(".")
        few = len(words) < 4 or len(keys) > 1
        return change.key if few else f"{words[0]}.{words[1]}[*].{words[-1]}"
    return change.key if len(keys) < 3 else f"{proof.shown(keys[:-2])}[*]{step(keys[-1])}"


def step_of(opened: Opened, optimizers: Iterable[State] = ()) -> int | None:
    """Return the step that the checkpoint is of, as far as it is stored anywhere."""
    view = opened.view
    if view.step is not None:
        return view.step
    counted = [number for value in view.numbers("optimizer-step") if (number := whole(value)) is not None]
    for state in () if counted else optimizers:
        values = (number_of(view, value_at(state.value, keys)) for keys in counter_keys(state.value))
        counted += [number for value in values if (number := whole(value)) is not None]
    return max(counted, default=None)
