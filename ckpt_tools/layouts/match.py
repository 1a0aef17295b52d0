"""From a path to a run: which layout it is, which checkpoints it holds, and what each file of them is for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace

from ckpt_tools.core.errors import NothingFoundError, SourceError
from ckpt_tools.core.listing import SIDECAR, Kind, Listing, scan
from ckpt_tools.core.source import Meter
from ckpt_tools.layouts import LAYOUTS, by_name, plain
from ckpt_tools.layouts.base import Layout
from ckpt_tools.layouts.claims import checkpoint_of, parts_of
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role, Run, Stray

_MEANT = re.compile(r"(?i)(tmp-)?checkpoint[-_].*\Z")
_SEARCH = re.compile(r"run-[^/]+\Z")
_COLLECTIONS = ("checkpoint", "checkpoints")
_TRACKER = 1 << 16
_RESUMED = frozenset({Role.OPTIMIZER, Role.SCHEDULER, Role.RNG, Role.TRAINER_STATE})
_NUMBER = re.compile(r"(\d+)(?!.*\d)")


def open_run(path: str | os.PathLike[str]) -> Run:
    """Look at names and sizes below ``path`` and return the run it is, or the run of one checkpoint.

    Raises:
        NothingFoundError: there is no such path, or nothing in it looks like a checkpoint.
    """
    root = os.fspath(path)
    meter = Meter()
    if not os.path.lexists(root) and (prefixed := _prefixed(root, meter)) is not None:
        return prefixed
    top = scan(root, depth=1, meter=meter)
    if not os.path.isdir(root):
        return _file(root, top)
    run = _directories(root, top, meter)
    if run is not None:
        return run
    single = checkpoint_of(root, ".", scan(root, depth=4, meter=meter), None)
    if single is not None:
        return Run(root, single.layout, (single,), single.listing, single=True)
    files = _numbered(root, top)
    if files is not None:
        return files
    raise _unknown(root, top)


def is_prefix(path: str) -> bool:
    """Return whether files beside each other are called ``path`` and an ending, as a checkpoint of TensorFlow is."""
    return not os.path.lexists(path) and _prefixed(path, Meter()) is not None


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


def weights_only(run: Run, checkpoint: Checkpoint) -> bool:
    """Return whether neither this checkpoint nor one beside it has a file that only a resume reads."""
    if checkpoint.has(*_RESUMED):
        return False
    return not any(has_role(listing, checkpoint.layout, *_RESUMED) for _, listing in beside(run, checkpoint))


def has_role(listing: Listing, layout: str, *roles: Role) -> bool:
    """Return whether an entry of a listing has a name that a layout gives to one of ``roles``."""
    patterns = [pattern.expression for pattern in by_name(layout).parts if pattern.role in roles]
    return any(pattern.match(path) for pattern in patterns for path in listing.files)


def open_stray(run: Run, stray: Stray) -> Checkpoint | None:
    """Return a directory that is no checkpoint by its name as the checkpoint that it may hold."""
    location = os.path.join(run.root, stray.path)
    if stray.stat.kind is not Kind.DIRECTORY:
        return None
    return checkpoint_of(location, stray.path, scan(location, depth=4), None, by_name(run.layout))


def _siblings(run: Run) -> list[tuple[str, int]]:
    layout = by_name(run.layout)
    if not layout.directories:
        return []
    parent = scan(os.path.dirname(os.path.abspath(run.root)), depth=1)
    names = [name for name in parent.names() if parent.files[name].kind is Kind.DIRECTORY]
    found = [(name, number) for name in names if (number := layout.number(name)) is not None]
    return sorted(found, key=lambda pair: pair[1])


_LOOKED_FOR = (
    "directories such as checkpoint-N, step-N, global_stepN and iter_N, files such as trainer_state.json, .metadata, "
    "*.distcp, *.safetensors, pytorch_model*.bin, adapter_config.json, random_states_N.pkl, and "
    "*.pt, *.pth, *.ckpt, *.tar, *.index, *.msgpack, *.keras, *.h5"
)

Named = tuple[Layout, str, int | None]
"""``(layout, path, number in the name)`` of a directory that has the name of a checkpoint."""


def _directories(root: str, top: Listing, meter: Meter) -> Run | None:
    """Return the run whose checkpoints are directories of ``root``, None when there are none."""
    found = list(_named(root, top, ""))
    for name, entry in top.files.items():
        if entry.kind is Kind.DIRECTORY and (name in _COLLECTIONS or _SEARCH.match(name)):
            inner = scan(os.path.join(root, name), depth=1, meter=meter)
            found += _named(os.path.join(root, name), inner, f"{name}/")
    if found and all(layout.guest for layout, _, _ in found) and _hosts(top):
        return None
    if not found:
        return None
    layout = found[0][0]
    checkpoints = []
    for named, path, step in found:
        listing = scan(os.path.join(root, path), depth=4, meter=meter)
        made = checkpoint_of(os.path.join(root, path), path, listing, step, named)
        if made is not None:
            checkpoints.append(made)
    export = _export(root, meter, {path.split("/", 1)[0] for _, path, _ in found})
    checkpoints.sort(key=lambda checkpoint: (os.path.dirname(checkpoint.path), checkpoint.step or 0, checkpoint.path))
    strays = tuple(_strays(top, {path for _, path, _ in found}))
    overlays = [other for other in LAYOUTS if other.overlay and other.run_parts and other.claims(top)]
    parts = tuple(parts_of(top, [layout, *overlays], run_level=True))
    return Run(root, layout.name, (*checkpoints, *export), top, parts, strays)


def _hosts(top: Listing) -> bool:
    """Return whether a directory is a checkpoint in itself, which may hold directories of a guest's."""
    shallow = [layout for layout in LAYOUTS if layout is not plain.LAYOUT and not layout.overlay and not layout.guest]
    return any(layout.claims(top) for layout in shallow)


def _named(root: str, listing: Listing, prefix: str) -> Iterator[Named]:
    """Yield the directories that are named like checkpoints, and what the file says that tells the one to resume."""
    names = [name for name in listing.names() if listing.files[name].kind is Kind.DIRECTORY]
    taken: set[str] = set()
    for layout in LAYOUTS:
        mine = [name for name in names if name not in taken and layout.names(name)]
        if layout.loose:
            mine = [name for name in mine if name.isdigit() or _claimed(layout, root, name)]
        target = _tracked(layout, listing)
        if target is not None and target in names and target not in {*taken, *mine} and _claimed(layout, root, target):
            mine.append(target)
        if mine and (layout.telling or any(_claimed(layout, root, name) for name in reversed(mine))):
            taken.update(mine)
            yield from ((layout, prefix + name, layout.number(name)) for name in mine)


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


def _file(root: str, listing: Listing) -> Run:
    (name,) = listing.files
    if not listing.files[name].is_file:
        raise NothingFoundError(f"{root}: is a {listing.files[name].kind}, not a file or directory")
    part: Part | None = None
    for layout in LAYOUTS:
        part = next(parts_of(listing, [layout]), None) if not layout.collection or layout.gathers(listing) else None
        if part is not None:
            break
    if part is None:
        part = _of_home(root, name) or Part(name, Role.COMBINED, plain.LAYOUT.name, (), listing.files[name])
    of_ranks = (Role.CHUNKS, Role.METADATA, Role.MODEL_STATES, Role.OPTIMIZER_STATES)
    numbered = part.rank is None and part.role not in of_ranks
    step = _step(by_name(part.layout), name) if numbered else None
    checkpoint = Checkpoint(".", listing, (part.layout,), (part,), (), step, is_file=True)
    return Run(root, part.layout, (checkpoint,), listing, single=True)


def _of_home(root: str, name: str) -> Part | None:
    """Return what a file whose name says nothing is in the checkpoint that it lies in, a directory or two above."""
    pieces = os.path.abspath(root).split(os.sep)
    for up in (2, 3):
        home, path = os.sep.join(pieces[:-up]), "/".join(pieces[-up:])
        listing = scan(home, depth=up) if home else None
        if listing is None or path not in listing.files:
            continue
        own = Listing(home, {path: listing.files[path]}, {})
        claims = [layout for layout in LAYOUTS if layout is not plain.LAYOUT and layout.claims(listing)]
        part = next(parts_of(own, claims), None)
        if part is not None:
            return replace(part, path=name)
    return None


def _numbered(root: str, top: Listing) -> Run | None:
    """Return the run whose checkpoints are files directly in ``root``."""
    layouts = [layout for layout in LAYOUTS if layout.gathers(top)]
    groups: dict[tuple[str, str], Listing] = {}
    together = set()
    for name in top.names():
        listing = Listing(top.root, {name: top.files[name]}, {}, top.meter)
        layout = _gatherer(layouts, name, listing)
        if layout is None:
            continue
        prefix = layout.group(name) if layout.group is not None else None
        key = (layout.name, prefix or name)
        if prefix is not None:
            together.add(key)
        groups[key] = (
            Listing(top.root, {**groups[key].files, **listing.files}, {}, top.meter) if key in groups else listing
        )
    if not groups:
        return None
    checkpoints = [_of_files(key, listing, key in together) for key, listing in groups.items()]
    checkpoints.sort(key=lambda checkpoint: (checkpoint.step is None, checkpoint.step or 0, checkpoint.path))
    first = next(layout for layout in LAYOUTS if any(layout.name == each.layout for each in checkpoints))
    return Run(root, first.name, tuple(checkpoints), top, tuple(parts_of(top, [first], run_level=True)))


def _prefixed(root: str, meter: Meter) -> Run | None:
    """Return the checkpoint whose files begin with ``root``, as TensorFlow names one."""
    home, name = os.path.split(root)
    if not name or not os.path.isdir(home or "."):
        return None
    top = scan(home or ".", depth=1, meter=meter)
    for layout in LAYOUTS:
        if layout.group is None:
            continue
        files = {path: top.files[path] for path in top.names() if layout.group(path) == name}
        if files:
            listing = Listing(top.root, files, {}, meter)
            made = replace(_of_files((layout.name, name), listing, together=True), path=".")
            return Run(root, layout.name, (made,), listing, single=True)
    return None


def _gatherer(layouts: list[Layout], name: str, listing: Listing) -> Layout | None:
    """Return the layout that takes a file for a checkpoint or part of one."""
    if name.startswith(".") or listing.files[name].kind is Kind.DIRECTORY:
        return None
    for layout in layouts:
        part = next(parts_of(listing, [layout]), None)
        if part is not None:
            return None if part.role is Role.TEMPORARY else layout
    return None


def _of_files(key: tuple[str, str], listing: Listing, together: bool) -> Checkpoint:
    layout, name = by_name(key[0]), key[1]
    parts, step = tuple(parts_of(listing, [layout])), _step(layout, name)
    return Checkpoint(name, listing, (layout.name,), parts, (), step, is_file=not together, together=together)


def _step(layout: Layout, name: str) -> int | None:
    """Return the step in the name of a file, where the layout says which of its numbers that is."""
    return layout.number(name) if layout.single and layout.names(name) else _number(name)


def _number(name: str) -> int | None:
    """Return the last number of a file name such as ``epoch_12.pt``; ``-00001-of-00003`` is no step."""
    stem = name.split(".", 1)[0]
    match = _NUMBER.search(stem)
    return int(match.group(1)) if match and "-of-" not in stem and len(match.group(1)) < 19 else None


def _unknown(root: str, top: Listing) -> NothingFoundError:
    directories = [name for name, entry in top.files.items() if entry.kind is Kind.DIRECTORY and name != SIDECAR]
    below = [name for name in directories if _holds_some(os.path.join(root, name))]
    if below:
        many = f"{len(below):,} of its directories hold" if len(below) > 1 else "one of its directories holds"
        first = os.path.join(root, below[0])
        return NothingFoundError(f"{root}: no checkpoint here, but {many} some", hint=f"try `{first}`")
    others = "1 other entry" if len(top.files) == 1 else f"{len(top.files):,} other entries"
    found = others if top.files else "nothing at all"
    return NothingFoundError(f"{root}: no checkpoint found", hint=f"looked for {_LOOKED_FOR}; found {found}")


def _holds_some(root: str) -> bool:
    inner = scan(root, depth=1)
    if any(_named(root, inner, "")):
        return True
    known = [layout for layout in LAYOUTS if layout is not plain.LAYOUT]
    return any(layout.claims(inner) or (layout.gathers(inner) and any(parts_of(inner, [layout]))) for layout in known)
