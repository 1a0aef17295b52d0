"""CK30x: the index of sharded weights against the shards themselves.

An index beside one whole file is never opened by a loader and is left alone here.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose

from ckpt_tools.containers.base import Content
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import (
    BREAKS_ALL,
    BREAKS_INFERENCE,
    Fix,
    Impact,
    Severity,
    Spot,
    Verdict,
)
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_STANDARD = ("model.safetensors", "pytorch_model.bin")
_SHOWN = 10
_NOTHING = Content("", 0)


@dataclass(frozen=True, slots=True)
class _Index:
    """``names`` maps a tensor to the file that the index says holds it, ``held`` a readable file to its tensors.

    ``whole`` says that every file that the index names was read.
    """

    part: Part
    names: Mapping[str, str]
    metadata: Mapping[str, Value]
    held: Mapping[str, Mapping[str, TensorRef]]
    whole: bool

    @property
    def stored(self) -> dict[str, str]:
        """The file that really holds a tensor, of the files that the index names."""
        return {name: file for file, tensors in self.held.items() for name in tensors}


def _read_by_loaders(checkpoint: Checkpoint) -> Iterator[Part]:
    """Yield the indexes that a loader opens: no whole file beside them, and the safetensors one where there are two."""
    files = {part.path for part in checkpoint.of(Role.WEIGHTS, Role.INDEX) if part.stat.is_file}
    for part in checkpoint.of(Role.INDEX):
        single = part.path.removesuffix(".index.json")
        before = _STANDARD if single in _STANDARD else (single,)
        if single == "pytorch_model.bin" and "model.safetensors.index.json" in files:
            continue
        if not files.intersection(before):
            yield part


def _weight_map(part: Part, view: View) -> Mapping[str, str] | None:
    """Return the map of an index, None where it has none that can be used."""
    content = view.content(part)
    value = as_mapping(content.value) if content is not None and content.readable else None
    names = (value or {}).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        return None
    return names


def _indexes(checkpoint: Checkpoint, view: View) -> Iterator[_Index]:
    shards = {part.path: part for part in checkpoint.of(Role.WEIGHTS)}
    for part in _read_by_loaders(checkpoint):
        names = _weight_map(part, view)
        if names is None:
            continue
        base = posixpath.dirname(part.path)
        paths = {file: posixpath.normpath(posixpath.join(base, file)) for file in dict.fromkeys(names.values())}
        held: dict[str, Mapping[str, TensorRef]] = {}
        for path in dict.fromkeys(paths.values()):
            content = view.content(shards[path]) if path in shards else None
            if content is not None and content.readable:
                held[path] = content.tensors
        content = view.content(part)
        metadata = as_mapping(content.value.get("metadata")) if content is not None else None
        found = {name: paths[file] for name, file in names.items()}
        yield _Index(part, found, metadata or {}, held, len(held) == len(set(paths.values())))


def _listed(names: list[str]) -> str:
    more = f" ... and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _tensors(count: int) -> str:
    return f"{count:,} tensor{'' if count == 1 else 's'}"


def _rebuild(part: Part) -> Fix:
    return Fix("write the index again from the headers of the shards", True, "rebuild-index", {"path": part.path})


@rule("CK301", "tensor-in-wrong-shard", Severity.ERROR, Checkpoint, impact=Impact(inference=Verdict.DEGRADED))
def tensor_in_wrong_shard(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The index maps a tensor to a shard that does not hold it, while another shard does.

    **Why it matters.** Loaders that go by the index (converters, servers that read single tensors) fail or leave the
    tensor random. transformers itself reads every shard as a whole and finds it, at resume and in `from_pretrained`.

    **How to repair.** Write the index again from the shards' headers: no tensor byte needs to change.
    """
    for index in _indexes(checkpoint, context.view):
        stored = index.stored
        wrong = [
            name
            for name, file in index.names.items()
            if file in index.held and name not in index.held[file] and name in stored
        ]
        if wrong:
            first = wrong[0]
            yield Hit(
                f"the index maps {_tensors(len(wrong))} to a shard without {'it' if len(wrong) == 1 else 'them'}",
                index.part.path,
                Spot(tensor=first, key=f"weight_map.{first}"),
                (f"{first} is said to be in {index.names[first]} and is in {stored[first]}", _listed(wrong)),
                related=tuple(dict.fromkeys((index.names[first], stored[first]))),
                fix=_rebuild(index.part),
            )


@rule("CK302", "tensor-not-indexed", Severity.WARNING, Checkpoint)
def tensor_not_indexed(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A shard holds a tensor that the index does not name.

    **Why it matters.** transformers reads every shard that the index names as a whole and takes the tensor; loaders
    that go by the index never see it, and converters stop. A shard that the index does not name at all is read by
    nobody: what is only there keeps fresh random values, and that is an error.

    **How to repair.** Write the index again from the shards' headers.

    **Known exceptions.** A shard that is not named counts only if its number belongs to the same set (`-of-00004`):
    others are left over from another save.
    """
    for index in _indexes(checkpoint, context.view):
        unread = {
            name: part.path
            for part in _unread(index, checkpoint)
            for name in (context.content(part) or _NOTHING).tensors
            if name not in index.names
        }
        extra = {name: file for name, file in index.stored.items() if name not in index.names} | unread
        if extra:
            first = next(iter(unread or extra))
            yield Hit(
                f"{_tensors(len(extra))} of the shards {'is' if len(extra) == 1 else 'are'} not in the index",
                index.part.path,
                Spot(tensor=first),
                (
                    f"{first} is in {extra[first]}" + (", which no loader opens" if unread else ""),
                    _listed(list(extra)),
                ),
                severity=Severity.ERROR if unread else None,
                impact=BREAKS_ALL if unread else None,
                fix=_rebuild(index.part),
            )


def _unread(index: _Index, checkpoint: Checkpoint) -> Iterator[Part]:
    """Yield the shards of the index's own set that it does not name."""
    stem, _, ending = index.part.path.removesuffix(".index.json").rpartition(".")
    used = set(index.names.values())
    totals = {part.shard[1] for part in checkpoint.of(Role.WEIGHTS) if part.shard and part.path in used}
    for part in checkpoint.of(Role.WEIGHTS):
        own = part.path.startswith(f"{stem}-") and part.path.endswith(f".{ending}")
        if own and part.shard and part.shard[1] in totals and part.path not in used:
            yield part


@rule("CK303", "tensor-not-stored", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def tensor_not_stored(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The index names a tensor that none of its shards holds.

    **Why it matters.** Loading is not strict: the parameter keeps a fresh random value, at resume and in
    `from_pretrained`, and at most a warning scrolls by.

    **How to repair.** The values are not here: copy the shards again, or fall back to an older checkpoint.

    **Known exceptions.** Told only when every shard that the index names could be read.
    """
    for index in _indexes(checkpoint, context.view):
        stored = index.stored
        lost = [name for name in index.names if name not in stored] if index.whole else []
        if lost:
            yield Hit(
                f"{_tensors(len(lost))} of the index {'is' if len(lost) == 1 else 'are'} in no shard",
                index.part.path,
                Spot(tensor=lost[0], key=f"weight_map.{lost[0]}"),
                (_listed(lost), "a loader would keep fresh random values for what is missing"),
                related=(index.names[lost[0]],),
            )


@rule("CK304", "total-size-wrong", Severity.WARNING, Checkpoint)
def total_size_wrong(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`metadata.total_size` of the index is not the number of bytes of the shards' tensors.

    **Why it matters.** No loader looks at it; tools that estimate memory or check downloads do.

    **How to repair.** Write the index again from the shards' headers.

    **Known exceptions.** 0 or no number at all (converters write that) is not told. A difference that tied tensors, a
    change of dtype or quantisation explains is a note: older writers counted before dropping or converting.
    """
    for index in _indexes(checkpoint, context.view):
        total = index.metadata.get("total_size")
        lost = any(name not in index.held[file] for name, file in index.names.items() if file in index.held)
        if not index.whole or lost or isinstance(total, bool) or not isinstance(total, int | float) or total <= 0:
            continue
        refs = [ref for tensors in index.held.values() for ref in tensors.values()]
        found = sum(ref.nbytes for ref in refs)
        if total in (found, sum({_storage(ref): ref.nbytes for ref in refs}.values())):
            continue
        why = _explained(int(total), found, refs, context.view)
        yield Hit(
            "the index states another total size than its shards have",
            index.part.path,
            Spot(key="metadata.total_size"),
            (f"total_size is {total:,}; the tensors take {found:,} bytes", *((why,) if why else ())),
            severity=Severity.NOTE if why else None,
            fix=_rebuild(index.part),
        )


def _storage(ref: TensorRef) -> object:
    """What two tensors that share their bytes have in common."""
    return (ref.storage_id, ref.chunks[0].extent) if ref.storage_id is not None and ref.chunks else id(ref)


def _explained(total: int, found: int, refs: list[TensorRef], view: View) -> str | None:
    if "quantization_config" in (view.config or {}) or any(ref.dtype in ("uint8", "int32") for ref in refs):
        return "the weights are quantised: it may count what they were before"
    if any(isclose(total, found * factor) for factor in (2, 4, 0.5, 0.25)):
        return "it counts another width of number than the one stored"
    if total - found in {ref.nbytes for ref in refs}:
        return "it counts one tensor twice, as for tied weights"
    return None


@rule("CK305", "index-unusable", Severity.ERROR, Checkpoint, impact=None)
def index_unusable(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The index has no map from tensors to files, or no `metadata`.

    **Why it matters.** Without `weight_map` no loader knows which shards there are. Without `metadata`, which holds
    nothing of importance, `from_pretrained` stops with `KeyError: 'metadata'`; a resume goes on.

    **How to repair.** Write the index again from the shards' headers.
    """
    for part in _read_by_loaders(checkpoint):
        content = context.content(part)
        value = as_mapping(content.value) if content is not None and content.readable else None
        if value is None:
            continue
        if _weight_map(part, context.view) is None:
            yield Hit(
                "the index has no usable weight_map",
                part.path,
                Spot(key="weight_map"),
                (f"weight_map must name a file for every tensor; it is {_described(value.get('weight_map'))}",),
                fix=_rebuild(part),
                impact=context.damaged(part),
            )
        elif not isinstance(value.get("metadata"), dict):
            yield Hit(
                "the index has no metadata",
                part.path,
                Spot(key="metadata"),
                ("from_pretrained would stop with KeyError: 'metadata'",),
                fix=_rebuild(part),
                impact=BREAKS_INFERENCE,
            )


def _described(value: Value) -> str:
    if value is None:
        return "missing"
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    return "an object with values that are no names" if value else "empty"


RULES: tuple[Rule, ...] = (
    tensor_in_wrong_shard,
    tensor_not_indexed,
    tensor_not_stored,
    total_size_wrong,
    index_unusable,
)
