"""From a path to a run: which layout it is, which checkpoints it holds, and what each file of them is for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from string import digits

from ckpt_tools.core.errors import NothingFoundError, SourceError
from ckpt_tools.core.listing import SIDECAR, Kind, Listing, scan
from ckpt_tools.core.source import Meter
from ckpt_tools.layouts import LAYOUTS, by_name, plain
from ckpt_tools.layouts.base import JSON, Layout, is_numbered
from ckpt_tools.layouts.claims import Named, checkpoint_of, divided, parts_of
from ckpt_tools.layouts.match_files import numbered, one_file, prefixed
from ckpt_tools.model.checkpoint import Checkpoint, Role, Run, Stray

_MEANT = re.compile(r"(?i)(tmp-)?checkpoint[-_].*\Z")
_SEARCH = re.compile(r"run-[^/]+\Z")
_COLLECTIONS = ("checkpoint", "checkpoints")
_TRACKER = 1 << 16
_DEPTH, _MOST, _FEW = 3, 200, 16
_RESUMED = frozenset({Role.OPTIMIZER, Role.SCHEDULER, Role.RNG, Role.TRAINER_STATE})
_BESIDE = frozenset({Role.CHUNKS, Role.MODEL_STATES, Role.OPTIMIZER_STATES})


def open_run(path: str | os.PathLike[str]) -> Run:
    """Look at names and sizes below ``path`` and return the run it is, or the run of one checkpoint.

    Raises:
        NothingFoundError: there is no such path, or nothing in it looks like a checkpoint.
    """
    root = os.fspath(path)
    meter = Meter()
    if not os.path.lexists(root) and (several := prefixed(root, meter)) is not None:
        return several
    top = scan(root, depth=1, meter=meter)
    if not os.path.isdir(root):
        return one_file(root, top)
    run = _directories(root, top, meter)
    if run is not None:
        return run
    single = checkpoint_of(root, ".", scan(root, depth=4, meter=meter), None)
    if single is not None:
        return Run(root, single.layout, (single,), single.listing, single=True)
    files = numbered(root, top)
    if files is not None:
        return files
    raise _unknown(root, top)


def is_prefix(path: str) -> bool:
    """Return whether files beside each other are called ``path`` and an ending, as a checkpoint of TensorFlow is."""
    return not os.path.lexists(path) and prefixed(path, Meter()) is not None


def newer_siblings(run: Run) -> tuple[str, ...]:
    """Return the names of the checkpoints beside a single one that have a higher step."""
    if not run.single or run.checkpoints[0].step is None:
        return ()
    step = run.checkpoints[0].step
    return tuple(name for name, number in _siblings(run) if number > step)


def older_siblings(run: Run) -> tuple[str, ...]:
    """Return the names of the checkpoints beside a single one that have a lower step, newest first."""
    if not run.single or run.checkpoints[0].step is None:
        return ()
    step = run.checkpoints[0].step
    return tuple(name for name, number in reversed(_siblings(run)) if number < step)


def is_file(run: Run) -> bool:
    """Return whether the user named one file: nothing is known of what lies beside it."""
    return run.single and run.listing.root != run.root


def is_piece(checkpoint: Checkpoint) -> bool:
    """Return whether it is one file that others belong to."""
    layout = by_name(checkpoint.layout)
    whole = layout.single and layout.group is None and all(part.containers != JSON for part in checkpoint.parts)
    return checkpoint.is_file and not whole


def is_export(run: Run, checkpoint: Checkpoint) -> bool:
    """Return whether ``checkpoint`` is the model that a finished run left beside its checkpoints."""
    return checkpoint.path == "." and not run.single


def run_directory(run: Run) -> str:
    """Return the run as the user would type it; for a single checkpoint that is the directory it lies in."""
    return (os.path.dirname(os.path.normpath(run.root)) or ".") if run.single else run.root


def group(run: Run, checkpoint: Checkpoint) -> list[Checkpoint]:
    """Return the checkpoints that one training wrote: those in the same directory, the export left out."""
    home = checkpoint.path.rpartition("/")[0]
    return [other for other in run.checkpoints if other.path.rpartition("/")[0] == home and not is_export(run, other)]


def is_newest(run: Run, checkpoint: Checkpoint) -> bool:
    """Return whether no checkpoint of the same training has a higher step."""
    if run.single:
        return not newer_siblings(run)
    return all((other.step or 0) <= (checkpoint.step or 0) for other in group(run, checkpoint))


def is_oldest(run: Run, checkpoint: Checkpoint) -> bool:
    """Return whether it is the lowest of several checkpoints."""
    if run.single:
        return bool(newer_siblings(run)) and not older_siblings(run)
    others = [other for other in group(run, checkpoint) if other is not checkpoint]
    return bool(others) and all((other.step or 0) > (checkpoint.step or 0) for other in others)


def beside(run: Run, checkpoint: Checkpoint) -> Iterator[tuple[str, Listing]]:
    """Yield name and entries of the other checkpoints of the same training, whether or not the user named the run."""
    if not run.single:
        yield from ((os.path.basename(c.path), c.listing) for c in group(run, checkpoint) if c is not checkpoint)
    elif not is_file(run):
        own, parent = os.path.basename(os.path.abspath(run.root)), os.path.dirname(os.path.abspath(run.root))
        for name, _ in _siblings(run):
            if name != own and os.path.isdir(os.path.join(parent, name)):
                yield name, scan(os.path.join(parent, name), depth=1)


def holder(path: str) -> Checkpoint | None:
    """Return the checkpoint around ``path`` of which that is a part, and which holds other parts that a resume reads.

    So a tag of DeepSpeed in a checkpoint of the Trainer; None for a checkpoint in a run, and for the only file.
    """
    parent, name = os.path.split(os.path.realpath(path))
    top = scan(parent, depth=1)
    if not name or not any(each.claims(top) for each in LAYOUTS if each is not plain.LAYOUT and not each.overlay):
        return None
    run = open_run(parent)
    own = run.checkpoints[0]
    inner = [part for part in own.parts if part.path == name or part.path.startswith(f"{name}/")]
    others = {part.role for part in own.parts if part not in inner}
    return own if run.single and inner and others & {*_RESUMED, *_BESIDE} else None


def weights_only(run: Run, checkpoint: Checkpoint) -> bool:
    """Return whether neither this checkpoint nor one beside it has a file that only a resume reads."""
    if checkpoint.has(*_RESUMED):
        return False
    return not any(has_role(listing, checkpoint.layout, *_RESUMED) for _, listing in beside(run, checkpoint))


def has_role(listing: Listing, layout: str, *roles: Role) -> bool:
    """Return whether an entry of a listing has a name that a layout gives to one of ``roles``."""
    patterns = [pattern.expression for pattern in by_name(layout).parts if pattern.role in roles]
    return any(pattern.match(path) for pattern in patterns for path in listing.files)


def others_have(run: Run, checkpoint: Checkpoint, role: Role) -> str | None:
    """Return the name of a checkpoint of the same training that has a file with ``role``; a few are looked at."""
    few = islice(beside(run, checkpoint), 16)
    return next((name for name, listing in few if has_role(listing, checkpoint.layout, role)), None)


def open_stray(run: Run, stray: Stray) -> Checkpoint | None:
    """Return a directory that is no checkpoint by its name as the checkpoint that it may hold."""
    location = os.path.join(run.root, stray.path)
    if stray.stat.kind is not Kind.DIRECTORY:
        return None
    return checkpoint_of(location, stray.path, scan(location, depth=4), None, by_name(run.layout))


def _siblings(run: Run) -> list[tuple[str, int]]:
    layout = by_name(run.layout)
    parent = scan(os.path.dirname(os.path.abspath(run.root)), depth=1)
    own = layout.names(os.path.basename(os.path.abspath(run.root)))
    names = [name for name in _folders(parent) if layout.names(name) is own]
    found = [(name, number) for name in names if (number := layout.number(name)) is not None]
    return sorted(found, key=lambda pair: pair[1])


_LOOKED_FOR = (
    "directories such as checkpoint-N, step-N, global_stepN and iter_N, files such as trainer_state.json, .metadata, "
    "*.distcp, *.safetensors, pytorch_model*.bin, adapter_config.json, random_states_N.pkl, and "
    "*.pt, *.pth, *.ckpt, *.tar, *.index, *.msgpack, *.keras, *.h5"
)


def _directories(root: str, top: Listing, meter: Meter) -> Run | None:
    """Return the run whose checkpoints are directories of ``root``, None when there are none."""
    found = list(_named(root, top, ""))
    for name, entry in top.files.items():
        if entry.kind is Kind.DIRECTORY and (name in _COLLECTIONS or _SEARCH.match(name)):
            inner = scan(os.path.join(root, name), depth=1, meter=meter)
            found += _named(os.path.join(root, name), inner, f"{name}/")
    found = divided(root, found, meter)
    if found and all(layout.guest for layout, _, _ in found) and _hosts(top, len(found)):
        return None
    found = found or list(_numbered_only(root, top))
    if not found:
        return None
    layout = found[0][0]
    checkpoints = []
    for named, path, step in found:
        listing = scan(os.path.join(root, path), depth=4, meter=meter)
        made = checkpoint_of(os.path.join(root, path), path, listing, step, named)
        if made is not None:
            checkpoints.append(made)
    if checkpoints and all(layout.name not in checkpoint.layouts for checkpoint in checkpoints):
        layout = by_name(checkpoints[0].layout)  # the name of a directory is not all
    export = _export(root, meter, {path.split("/", 1)[0] for _, path, _ in found})
    checkpoints.sort(key=lambda checkpoint: (os.path.dirname(checkpoint.path), checkpoint.step or 0, checkpoint.path))
    strays = tuple(_strays(top, {path for _, path, _ in found}))
    overlays = [other for other in LAYOUTS if other.overlay and other.run_parts and other.claims(top)]
    parts = tuple(parts_of(top, [layout, *overlays], run_level=True))
    return Run(root, layout.name, (*checkpoints, *export), top, parts, strays)


def _hosts(top: Listing, guests: int) -> bool:
    """Return whether a directory is a checkpoint in itself, which may hold a guest's; a mere model holds no several."""
    shallow = [layout for layout in LAYOUTS if layout is not plain.LAYOUT and not layout.overlay and not layout.guest]
    return any(layout.claims(top) for layout in shallow if guests == 1 or layout.name != "hf-model")


def _named(root: str, listing: Listing, prefix: str) -> Iterator[Named]:
    """Yield the directories that are named like checkpoints, and what the file says that tells the one to resume."""
    names = _folders(listing)
    taken: set[str] = set()
    for layout in LAYOUTS:
        mine = [name for name in names if name not in taken and layout.names(name)]
        if layout.loose:
            mine = [name for name in mine if name.isdigit() or _claimed(layout, root, name)]
        target = _tracked(layout, listing)
        if target is not None and target in names and target not in {*taken, *mine} and _claimed(layout, root, target):
            others = [name for name in names if is_numbered(name) and name not in {*taken, *mine, target}]
            mine += [target, *(name for name in others if _claimed(layout, root, name))]
        if mine and (layout.telling or any(_claimed(layout, root, name) for name in _ends(mine))):
            taken.update(mine)
            yield from ((layout, prefix + name, layout.number(name)) for name in mine)


def _numbered_only(root: str, top: Listing) -> Iterator[Named]:
    """Yield directories with a number for a name, or little more, that are checkpoints by what is in them.

    Those beside them that are called alike count too: a save that died early left nothing that tells.
    """
    if any(layout.claims(top) for layout in LAYOUTS if layout is not plain.LAYOUT):
        return
    names = [name for name in _folders(top) if is_numbered(name)]
    found = {name: _inside(root, name) for name in _ends(names)}
    if not any(found.values()):
        return
    found |= {name: _inside(root, name) for name in names if name not in found}
    told = {name: layout for name in names if (layout := found[name]) is not None}
    whole = [layout for layout in told.values() if layout.name != "hf-model"] or [*told.values()]
    prefixes = {name.rstrip(digits) for name, layout in told.items() if layout is whole[0]} - {""}  # a year, a day ...
    for name in names:
        layout = found[name]
        if name.rstrip(digits) in prefixes and (layout is None or layout.name == "hf-model"):
            layout = whole[0]
        if layout is not None:
            yield layout, name, layout.number(name)


def _inside(root: str, name: str) -> Layout | None:
    """Return the layout of the checkpoint that a directory is by what is in it."""
    made = checkpoint_of(os.path.join(root, name), name, scan(os.path.join(root, name), depth=4), None)
    return by_name(made.layout) if made is not None else None


def _ends(names: list[str]) -> list[str]:
    """Return the last few names and the first: thousands of directories of something else are not all looked into."""
    return names[::-1] if len(names) <= 2 * _FEW else [*names[: -_FEW - 1 : -1], *names[:_FEW]]


def _folders(listing: Listing) -> list[str]:
    return [name for name in listing.names() if listing.files[name].kind is Kind.DIRECTORY]


def _claimed(layout: Layout, root: str, name: str) -> bool:
    return layout.claims(scan(os.path.join(root, name), depth=4))


def _tracked(layout: Layout, listing: Listing) -> str | None:
    tracker = layout.tracker
    entry = listing.files.get(tracker.name) if tracker is not None else None
    if tracker is None or entry is None or not entry.is_file or entry.size > _TRACKER:
        return None
    try:
        with listing.open(tracker.name) as source:
            text = source.read(0, _TRACKER).decode("utf-8")
    except (SourceError, UnicodeDecodeError):
        return None
    return tracker.target(text)


def _export(root: str, meter: Meter, checkpoints: set[str]) -> list[Checkpoint]:
    """Return the model that a finished run left beside its checkpoints, if it did."""
    shallow = scan(root, depth=2, meter=meter)
    own = {
        path: entry
        for path, entry in shallow.files.items()
        if not _MEANT.match(path.split("/", 1)[0])
        and path.split("/", 1)[0] not in checkpoints
        and not path.startswith(("run-", "checkpoints/", "runs/"))
    }
    listing = Listing(shallow.root, own, {}, meter)
    claims = [layout for layout in LAYOUTS if layout is not plain.LAYOUT and layout.claims(listing)]
    made = checkpoint_of(root, ".", listing, None) if claims else None
    if made is None or not made.has(Role.WEIGHTS, Role.ADAPTER, Role.INDEX):
        return []
    return [made]


def _strays(top: Listing, found: set[str]) -> Iterator[Stray]:
    staging = [expression for layout in LAYOUTS for expression in layout.staging_expressions]
    for name in top.names():
        if name in found or not _MEANT.match(name):
            continue
        entry = top.files[name]
        if any(expression.match(name) for expression in staging):
            yield Stray(name, "staging", entry)
        elif entry.kind is not Kind.DIRECTORY and re.fullmatch(r"checkpoint[-_]\d+", name):
            yield Stray(name, "not-a-directory", entry)
        elif entry.kind is Kind.DIRECTORY:
            yield Stray(name, "name", entry)


def _unknown(root: str, top: Listing) -> NothingFoundError:
    below = list(_below(root, top))
    if below:
        many = f"{len(below):,} of its directories hold" if len(below) > 1 else "one of its directories holds"
        return NothingFoundError(f"{root}: no checkpoint here, but {many} some", hint=f"try `{below[0]}`")
    others = "1 other entry" if len(top.files) == 1 else f"{len(top.files):,} other entries"
    found = others if top.files else "nothing at all"
    return NothingFoundError(f"{root}: no checkpoint found", hint=f"looked for {_LOOKED_FOR}; found {found}")


def _below(root: str, top: Listing) -> Iterator[str]:
    """Yield the directories that hold checkpoints, of those that lie least deep; a disk full of others is not read."""
    level = [os.path.join(root, name) for name in _folders(top) if name != SIDECAR]
    for _ in range(_DEPTH):
        found = [path for path in level[:_MOST] if _holds_some(path)]
        if found:
            yield from found
            return
        level = [os.path.join(path, name) for path in level[:_MOST] for name in _folders(scan(path, depth=1))]


def _holds_some(root: str) -> bool:
    inner = scan(root, depth=1)
    if any(_named(root, inner, "")) or any(_numbered_only(root, inner)):
        return True
    known = [layout for layout in LAYOUTS if layout is not plain.LAYOUT]
    return any(layout.claims(inner) or (layout.gathers(inner) and any(parts_of(inner, [layout]))) for layout in known)
