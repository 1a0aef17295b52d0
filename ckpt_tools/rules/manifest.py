"""CK41x: what was sealed, against what is there (``ckpt seal``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ckpt_tools.model.checkpoint import Checkpoint, Part
from ckpt_tools.model.findings import HARMLESS, Impact, Severity, Spot
from ckpt_tools.rules.base import Context, Hit, Rule, rule

if TYPE_CHECKING:
    from ckpt_tools.model.manifest import FileChange, Seal, TensorChange

_SHOWN = 10
_HITS = 100
_VERSIONS = ("python", "torch", "cuda", "hip", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes")


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" ... and {len(every) - _SHOWN:,} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def _impact(path: str, context: Context) -> Impact:
    part = next((part for part in context.view.checkpoint.parts if part.path == path), None)
    return context.damaged(part) if part is not None else HARMLESS


def _changed(context: Context) -> tuple[FileChange, ...]:
    return context.view.seal.changes.changed if context.view.seal is not None else ()


@rule("CK411", "manifest-unusable", Severity.ERROR, Checkpoint)
def manifest_unusable(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The checkpoint has a manifest that cannot be used: damaged, unreadable, or written by a newer version.

    **Why it matters.** The checkpoint was sealed, and nothing in it could be compared with what was sealed. Nothing
    that such a manifest says is followed.

    **How to repair.** Take the manifest from another copy and hold it against this one (`ckpt verify PATH --against
    MANIFEST`). If the checkpoint is known to be good, `ckpt seal PATH` writes a new one.
    """
    seal = context.view.seal
    if seal is not None and seal.problem:
        detail = ("nothing was compared with what was sealed",)
        yield Hit(f"the manifest {seal.problem}", seal.place, detail=detail)


@rule("CK412", "sealed-file-missing", Severity.ERROR, Checkpoint)
def sealed_file_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A file that the manifest names is not there.

    **Why it matters.** The copy is not complete, or somebody removed the file after the checkpoint was sealed.

    **How to repair.** Copy it again. If it was removed on purpose, `ckpt seal PATH` seals what is left.
    """
    seal = context.view.seal
    if seal is None or seal.manifest is None:
        return
    missing = seal.changes.missing
    for path in missing[:_HITS]:
        detail = f"had {seal.manifest.files[path].size:,} bytes"
        yield Hit("the file was sealed, and is missing", path, detail=(detail,))
    if len(missing) > _HITS:
        yield Hit(f"{len(missing) - _HITS:,} more sealed files are missing", detail=(_listed(missing[_HITS:]),))


@rule("CK413", "sealed-file-changed", Severity.ERROR, Checkpoint, impact=None)
def sealed_file_changed(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A file is not as it was sealed: another size, or other bytes outside of its tensors.

    **Why it matters.** Somebody edited it, the copy is not faithful, or the disk lost something. Sizes and files up to
    1 MiB are always compared, all other bytes with `--deep`.

    **How to repair.** Copy the file again. If the change was meant, `ckpt seal PATH` seals the checkpoint as it is now.

    **Known exceptions.** Edits by `ckpt` itself keep the manifest up to date.
    """
    for change in _changed(context):
        if not change.resized and change.tensors and not change.between:
            continue  # CK415 and CK416 say it by name
        impact = _impact(change.path, context)
        offset = change.between[0][0] if change.between else None
        yield Hit(
            "the file is not as it was sealed",
            change.path,
            Spot(offset=offset),
            tuple(_how(change)),
            help=_HELP,
            impact=impact,
        )


_HELP = "copy it again; if the change was meant, `ckpt seal` seals it as it is now"


def _how(change: FileChange) -> Iterator[str]:
    if change.resized:
        yield f"had {change.then:,} bytes, has {change.now:,}"
    elif change.between:
        runs = [f"{length:,} at byte {offset:,}" for offset, length in change.between]
        yield f"bytes changed outside of its tensors, in a run of {_listed(runs)}"
    else:
        yield "its bytes changed"
    if change.quiet:
        yield "its time of change is the sealed one: nobody wrote to it, so it is damage and no edit"
    changed = [tensor.name for tensor in change.tensors if tensor.how == "bytes"]
    if changed:
        yield f"tensors with other bytes: {_listed(changed)}"


@rule("CK414", "file-not-sealed", Severity.NOTE, Checkpoint)
def file_not_sealed(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A file is there that the manifest does not name.

    **Why it matters.** It came after the seal, so nothing vouches for it. It is a warning where a loader would take it:
    a second weights file may win over the sealed one in silence.

    **How to repair.** Remove it, or seal the checkpoint again.
    """
    seal = context.view.seal
    if seal is None:
        return
    parts = {part.path: part for part in checkpoint.parts}
    taken = [path for path in seal.changes.extra if path in parts and _is_taken(parts[path], context)]
    for path in taken[:_HITS]:
        yield Hit("the file was not there when the checkpoint was sealed", path, severity=Severity.WARNING)
    others = [path for path in seal.changes.extra if path not in set(taken[:_HITS])]
    if others:
        noun = "a file was" if len(others) == 1 else f"{len(others):,} files were"
        place, detail = (others[0], ()) if len(others) == 1 else ("", (_listed(others),))
        yield Hit(f"{noun} not there when the checkpoint was sealed", place, detail=detail)


def _is_taken(part: Part, context: Context) -> bool:
    return not context.view.need(part.role).damaged.harmless


@rule("CK415", "sealed-tensor-changed", Severity.ERROR, Checkpoint, impact=None)
def sealed_tensor_changed(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The bytes of a tensor are not the sealed ones (`--deep`, or a file of at most 1 MiB).

    **Why it matters.** It loads without a word: no loader compares anything. A flipped bit in a safetensors file
    is seen in no other way.

    **How to repair.** Copy the file again, or fall back. If the file was written anew on purpose, `ckpt seal PATH`.
    """
    for change in _changed(context):
        wrong = [tensor for tensor in change.tensors if tensor.how == "bytes"]
        if not wrong or change.resized:
            continue
        impact = _impact(change.path, context)
        quiet = ("the file's time of change is the sealed one: damage, and no edit",) if change.quiet else ()
        total = _total(context.view.seal, change.path)
        for tensor in wrong[:_HITS]:
            yield Hit(
                "the tensor's bytes are not the sealed ones",
                change.path,
                Spot(tensor=tensor.name, offset=tensor.offset),
                (f"sealed {_short(tensor.then)}, found {_short(tensor.now)}", *quiet),
                help=_HELP,
                impact=impact,
            )
        if len(wrong) > _HITS:
            rest = _listed(tensor.name for tensor in wrong[_HITS:])
            detail = (f"{len(wrong):,} of {total:,} tensors of the file changed", rest)
            message = f"the bytes of {len(wrong) - _HITS:,} more tensors are not the sealed ones"
            yield Hit(message, change.path, detail=detail, impact=impact)


def _total(seal: Seal | None, path: str) -> int:
    file = seal.manifest.files.get(path) if seal is not None and seal.manifest is not None else None
    return len(file.tensors or ()) if file is not None else 0


def _short(digest: str) -> str:
    name, _, digits = digest.partition(":")
    return f"{name}:{digits[:16]}"


@rule("CK416", "sealed-tensors-differ", Severity.ERROR, Checkpoint, impact=None)
def sealed_tensors_differ(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A file does not hold the tensors that it held when it was sealed: names, types or shapes are others.

    **Why it matters.** It was written anew, perhaps by another run. Headers are always read, so this needs no `--deep`.

    **How to repair.** Copy the file again. If it was written anew on purpose, `ckpt seal PATH`.
    """
    for change in _changed(context):
        lines = tuple(_forms([tensor for tensor in change.tensors if tensor.how != "bytes"]))
        if lines:
            impact = _impact(change.path, context)
            yield Hit("the file does not hold the sealed tensors", change.path, detail=lines, impact=impact)


def _forms(changes: list[TensorChange]) -> Iterator[str]:
    missing = [each.name for each in changes if each.how == "missing"]
    extra = [each.name for each in changes if each.how == "extra"]
    other = [f"{each.name} was {each.then}, is {each.now}" for each in changes if each.how == "form"]
    if missing:
        yield f"missing: {_listed(missing)}"
    if extra:
        yield f"not sealed: {_listed(extra)}"
    if other:
        yield _listed(other)


@rule("CK417", "environment-differs", Severity.NOTE, Checkpoint)
def environment_differs(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """This environment is not the one that the checkpoint was sealed in (`ckpt seal --env`).

    **Why it matters.** A resume with another version of torch, CUDA, transformers or of the training script is a common
    cause of a jump in the loss. It is a warning where torch is installed and one of those versions differs, else a
    note: a login node is no training environment.

    **How to repair.** Resume in the sealed environment, or know that you do not.
    """
    seal = context.view.seal
    if seal is None or seal.now is None or seal.manifest is None or seal.manifest.environment is None:
        return
    then, now = seal.manifest.environment, seal.now
    keys = [*then, *(key for key in now if key not in then)]
    other = [key for key in keys if then.get(key) != now.get(key)]
    lines = [f"{key}: {then.get(key, 'none')} when sealed, {now.get(key, 'none')} here" for key in other]
    if not lines:
        return
    heavy = "torch" in now and any(key in _VERSIONS for key in other)
    yield Hit(
        "this environment is not the one it was sealed in",
        detail=tuple(lines[:40]),
        severity=Severity.WARNING if heavy else None,
    )


@rule("CK418", "data-differs", Severity.WARNING, Checkpoint)
def data_differs(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The training data is not the data that the checkpoint was sealed with (`verify --data PATH`).

    **Why it matters.** A resume goes on at the same place of another order of samples: the loss jumps, or samples are
    seen twice, and nothing says so.

    **How to repair.** Restore the data, or know that it is another.

    **Known exceptions.** Paths in a manifest are never followed: the data is compared only when it is named.
    """
    seal = context.view.seal
    if seal is not None and seal.drift:
        more = (f"... and {len(seal.drift) - _SHOWN:,} more",) if len(seal.drift) > _SHOWN else ()
        yield Hit("the data is not the sealed one", detail=(*seal.drift[:_SHOWN], *more))


RULES: tuple[Rule, ...] = (
    manifest_unusable,
    sealed_file_missing,
    sealed_file_changed,
    file_not_sealed,
    sealed_tensor_changed,
    sealed_tensors_differ,
    environment_differs,
    data_differs,
)
