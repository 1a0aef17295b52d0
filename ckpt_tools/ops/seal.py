"""``ckpt seal``: say what is in a checkpoint now, so that any later change is seen."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ckpt_tools._version import __version__
from ckpt_tools.core.durable import Disk, LocalDisk, LockedError, look, names
from ckpt_tools.core.errors import CkptError, EditRefusedError, SourceError, UsageError
from ckpt_tools.core.listing import SIDECAR, scan
from ckpt_tools.core.progress import SILENT, Progress, Task
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.findings import Finding, Severity
from ckpt_tools.model.manifest import NAME, Manifest, ManifestError, Seal, SealedData, compare
from ckpt_tools.model.summaries import DataSummary
from ckpt_tools.ops import engine, numbered, sealed
from ckpt_tools.reports.seal import SealedCheckpoint, SealReport
from ckpt_tools.rules.base import Settings

_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the caller asked for."""

    settings: Settings
    environment: dict[str, str] | None
    data: tuple[SealedData, ...]
    output: str | None
    force: bool
    deep: bool
    jobs: int | None
    disk: Disk


def seal(
    path: str,
    *,
    env: bool = False,
    data: Sequence[str | SealedData] = (),
    output: str | None = None,
    force: bool = False,
    deep: bool = False,
    settle: float = 60.0,
    jobs: int | None = None,
    now_ns: int | None = None,
    disk: Disk | None = None,
    progress: Progress = SILENT,
) -> SealReport:
    """Read every byte of a checkpoint, or of each one of a run, and write its manifest.

    A checkpoint with errors, or one that is being saved, is refused; so is one that was sealed before and differs in
    bytes that nobody wrote.

    Args:
        path: a run, a checkpoint directory, or a file.
        env: also note the environment of this process.
        data: files and directories of training data whose digests are noted too, or what was noted of them before.
        output: where the manifest goes instead of the checkpoint; PATH must then be one checkpoint.
        force: seal whatever is wrong with it.
        deep: also judge the values, as ``verify --deep`` does, and note the largest magnitude of each tensor.
        settle: see ``verify``.
        jobs: threads that read; as many as processors when None.
        now_ns: the clock, for tests; the system's when None.
        disk: what writes, for tests.
        progress: where progress is announced.

    Raises:
        NothingFoundError: no such path, or no checkpoint there.
        UsageError: ``output`` does not fit.
        CkptError: the data could not be read, or the manifest not be written.
    """
    started = time.perf_counter()
    path = numbered.named(path)
    run = open_run(path)
    now = time.time_ns() if now_ns is None else now_ns
    if output is not None:
        _check_output(run, output)
    environment = None
    if env:
        from ckpt_tools.ops.environment import gather

        environment = gather()
    local = LocalDisk() if disk is None else None
    wish = _Wish(
        Settings(now, int(settle * 1e9)),
        environment,
        _data(data, jobs, progress),
        output,
        force,
        deep,
        jobs,
        disk or local or LocalDisk(),
    )
    size = sum(checkpoint.size for checkpoint in run.checkpoints)
    done: list[SealedCheckpoint] = []
    try:
        with progress.task("sealing", size, "B") as task:
            done += [_one(run, checkpoint, wish, task) for checkpoint in run.checkpoints]
    finally:
        if local is not None:
            local.close()
    seconds = time.perf_counter() - started
    return SealReport(__version__, run.root, tuple(done), run.listing.meter.bytes_read, seconds, run.single)


def _data(given: Sequence[str | SealedData], jobs: int | None, progress: Progress) -> tuple[SealedData, ...]:
    if not given:
        return ()
    from ckpt_tools.ops.sealed_data import sealed as read

    return tuple(each if isinstance(each, SealedData) else read(each, jobs=jobs, progress=progress) for each in given)


def _check_output(run: Run, output: str) -> None:
    if len(run.checkpoints) != 1:
        raise UsageError(
            f"-o {output}: a manifest speaks of one checkpoint, and {run.root} holds {len(run.checkpoints)}",
            hint="name the checkpoint",
        )
    root = os.path.realpath(run.checkpoints[0].listing.root)
    inside = os.path.relpath(os.path.realpath(output), root)
    whole = os.path.isdir(run.root)
    if whole and inside.split(os.sep, 1)[0] not in ("..", SIDECAR):
        raise UsageError(f"-o {output}: lies in the checkpoint, and would have to seal itself")


def _one(run: Run, checkpoint: Checkpoint, wish: _Wish, task: Task) -> SealedCheckpoint:
    """Seal one checkpoint, or say why not."""
    from ckpt_tools.ops import deep

    view = View(checkpoint)
    directory, inner = sealed.place_of(run, checkpoint)
    place = wish.output or os.path.normpath(os.path.join(_base(run, checkpoint), inner, NAME))
    old = _old(run, view, wish)
    view.data = deep.read(view, deep.Wants(True, wish.deep, True), jobs=wish.jobs, task=task)
    unread = _unread(view, view.data)
    findings = engine.check(run, checkpoint, view, wish.settings, engine.Selection(ignore=("CK41",)))
    faults = [finding for finding in findings if finding.severity >= Severity.ERROR]
    made = SealedCheckpoint(
        checkpoint.path,
        place,
        step=view.step,
        files=len(view.data.files),
        tensors=sum(len(file.tensors) for file in view.data.files.values()),
        size=checkpoint.size,
        again=old is not None and old.manifest is not None,
    )
    if unread:
        return replace(made, status="unreadable", reasons=unread)
    if faults and not wish.force:
        return replace(made, status="refused", findings=tuple(faults), reasons=(_why(faults),))
    manifest = _manifest(run, view, view.data, wish, old.manifest if old is not None else None)
    if old is not None and old.problem:
        made = replace(made, notes=(f"the manifest that was there {old.problem}",))
    if old is not None and old.manifest is not None:
        changes = compare(old.manifest.files, manifest.files)
        made = replace(made, changes=changes)
        damaged = [change.path for change in changes.changed if change.quiet and not change.resized]
        if damaged and not wish.force:
            return replace(made, status="refused", reasons=(_NOBODY.format(", ".join(damaged[:10])),))
        if not changes.any and _same(old.manifest, manifest):
            return replace(made, status="unchanged")
    try:
        _write(view, directory, sealed.encode(manifest), wish)
    except LockedError:
        return replace(made, status="refused", reasons=("another ckpt is at work in it",))
    except EditRefusedError as error:
        return replace(made, status="refused", reasons=(str(error),))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CkptError(f"{place}: cannot be written: {reason}", hint="`-o FILE` puts it elsewhere") from None
    return replace(made, status="sealed")


_NOBODY = "the bytes of {} changed and the time of change did not: damage, and no edit (--force seals it as it is)"


def _base(run: Run, checkpoint: Checkpoint) -> str:
    """Return what the sidecar's path starts from, as the user would type it."""
    if not os.path.isdir(run.root):
        return os.path.dirname(run.root)
    beside = checkpoint.together or checkpoint.path in checkpoint.listing.files
    return run.root if beside else os.path.join(run.root, checkpoint.path)


def _why(faults: list[Finding]) -> str:
    first = max(faults, key=lambda finding: finding.severity)
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"{first.path}: {first.message} [{first.code}]{more}"


def _unread(view: View, data: DataSummary) -> tuple[str, ...]:
    found = [str(error) for file in data.files.values() for error in file.errors]
    found += [f"{path}: cannot be listed: {reason.lower()}" for path, reason in view.listing.errors.items()]
    return tuple(found)


def _old(run: Run, view: View, wish: _Wish) -> Seal | None:
    """Return the manifest that will be replaced."""
    if wish.output is None:
        sealed.attach(run, view)
        return view.seal
    try:
        return Seal(wish.output, sealed.load(wish.output, wish.output))
    except SourceError as error:
        if error.errno == 2:
            return None
        raise
    except ManifestError as error:
        if not wish.force:
            raise EditRefusedError(
                f"{wish.output}: is there, and {error}", hint="name another file, or give --force"
            ) from None
        return Seal(wish.output, problem=str(error))


def _same(old: Manifest, new: Manifest) -> bool:
    return (old.environment, old.data, old.step, old.layouts) == (new.environment, new.data, new.step, new.layouts)


def _manifest(run: Run, view: View, data: DataSummary, wish: _Wish, old: Manifest | None) -> Manifest:
    """Return the manifest; what was noted of environment and data before stays where nothing new was asked for."""
    checkpoint = view.checkpoint
    single = checkpoint.path in checkpoint.listing.files or not os.path.isdir(run.root)
    root = os.path.realpath(checkpoint.listing.root)
    name = next(iter(checkpoint.listing.files)) if single else os.path.basename(root)
    return Manifest(
        __version__,
        datetime.fromtimestamp(wish.settings.now_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        name,
        checkpoint.layouts,
        view.step if view.step is None or view.step >= 0 else None,
        {path: sealed.of_summary(file, view.listing.files[path]) for path, file in data.files.items()},
        wish.environment if wish.environment is not None else old.environment if old is not None else None,
        wish.data or (old.data if old is not None else ()),
    )


# Writing ---------------------------------------------------------------------------------------------------


def _write(view: View, directory: str, data: bytes, wish: _Wish) -> None:
    """Put the manifest in its place: complete or not at all; the checkpoint's own time stays."""
    if wish.output is not None:
        _put(wish.disk, wish.output, data)
        return
    _make(wish.disk, view.listing.root, directory)
    with wish.disk.lock(os.path.join(directory, _LOCK)):
        _still(view)
        for name in names(directory):
            if name.startswith(f"{NAME}.tmp-"):  # of a seal that was killed: nobody else holds the lock
                wish.disk.unlink(os.path.join(directory, name))
        _put(wish.disk, os.path.join(directory, NAME), data)


def _make(disk: Disk, root: str, directory: str) -> None:
    """Make the tool's own directory, and give the one around it its time back: rotation sorts checkpoints by it."""
    place = root
    for name in os.path.relpath(directory, root).split(os.sep):
        inside, place = place, os.path.join(place, name)
        seen = look(place)
        if seen is not None and not seen.is_directory:
            raise EditRefusedError(f"{place}: is a {seen.kind}, and not written through")
        if seen is None:
            before = look(os.path.realpath(inside))
            disk.mkdir(place)
            disk.sync_directory(inside)
            if before is not None:
                disk.times(os.path.realpath(inside), before.mtime_ns)


def _put(disk: Disk, path: str, data: bytes) -> None:
    seen = look(path)
    if seen is not None and not seen.is_file:
        raise EditRefusedError(f"{path}: is a {seen.kind}, and not written through")
    temporary = f"{path}.tmp-{secrets.token_hex(4)}"
    try:
        disk.create(temporary, data)
        disk.sync(temporary)
        disk.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            disk.unlink(temporary)
        raise
    disk.sync_directory(os.path.dirname(path) or ".")


def _still(view: View) -> None:
    """Refuse when a file was changed since it was read."""
    for path, entry in view.listing.files.items():
        if not entry.is_file:
            continue
        try:
            now = next(iter(scan(os.path.join(view.listing.root, path)).files.values()))
        except CkptError:
            raise EditRefusedError(f"{path} went away while it was sealed") from None
        if (now.size, now.mtime_ns) != (entry.size, entry.mtime_ns):
            raise EditRefusedError(f"{path} changed while it was sealed")
