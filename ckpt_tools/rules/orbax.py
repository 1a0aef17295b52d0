"""CK17x and CK27x: Orbax directories, their items and stores."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

from ckpt_tools.core.listing import Kind
from ckpt_tools.layouts.match import is_file
from ckpt_tools.model.checkpoint import Checkpoint, Part
from ckpt_tools.model.findings import BREAKS_ALL, Severity
from ckpt_tools.model.values import Value, as_mapping
from ckpt_tools.rules.base import Context, Hit, Rule, relay, rule

_ROOT = "_CHECKPOINT_METADATA"
_TREES = ("PyTree", "Standard", "ArrayCheckpointHandler")
_JSON = ("JsonCheckpointHandler",)
_LEFT = re.compile(r".*(?:\.orbax-checkpoint-tmp[^/]*|\.__lock)\Z")
_SHOWN = 10
_MOST_CHUNKS = 100_000


def _mapping(checkpoint: Checkpoint, context: Context, path: str) -> Mapping[Any, Value] | None:
    """Return a JSON file of the checkpoint, None where it is missing or cannot be read."""
    part = next((part for part in checkpoint.parts if part.path == path), None)
    content = context.content(part) if part is not None else None
    return as_mapping(content.value) if content is not None and content.readable else None


def _items(checkpoint: Checkpoint, context: Context) -> dict[str, str]:
    """Return the directory of every item (``""`` for the checkpoint itself) with the class that wrote it."""
    handlers = (_mapping(checkpoint, context, _ROOT) or {}).get("item_handlers")
    if isinstance(handlers, str):
        return {"": handlers}
    named = as_mapping(handlers)
    if named:
        return {str(name): str(handler) for name, handler in named.items()}
    trees = [posixpath.dirname(path) for path in checkpoint.listing.files if posixpath.basename(path) == "_METADATA"]
    return dict.fromkeys((tree for tree in trees if tree.count("/") == 0), _TREES[0])


def _lost(names: list[str]) -> tuple[str, ...]:
    rest = (f"... and {len(names) - _SHOWN:,} more",) if len(names) > _SHOWN else ()
    return (*names[:_SHOWN], *rest)


@rule("CK173", "item-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def item_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """An item that an Orbax step lists in `_CHECKPOINT_METADATA` has no directory.

    **Why it matters.** A restore of the item stops with `FileNotFoundError`; other items can be restored.

    **How to repair.** Copy the directory from where the checkpoint was written; otherwise take another step.
    """
    if checkpoint.layout != "orbax" or is_file(context.run):
        return
    for item in _items(checkpoint, context):
        entry = checkpoint.listing.files.get(item)
        if item and (entry is None or entry.kind is not Kind.DIRECTORY):
            yield Hit(f"the item {item} is missing", item, detail=(f"{_ROOT} lists it",))


@rule("CK174", "item-incomplete", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def item_incomplete(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """An item of an Orbax step lacks a file without which it cannot be restored.

    **Why it matters.** `_METADATA` holds the tree, `manifest.ocdbt` leads to the arrays, the files in `d/` hold them;
    a JSON item is the file `metadata`. Without OCDBT every array has a directory with `.zarray` (or `zarr.json`).

    **How to repair.** Copy what is missing from where the checkpoint was written; otherwise take another step.

    **Known exceptions.** What a manifest refers to is mostly compressed; only names that are stored as they are can be
    compared, so that a silent report is no proof here.
    """
    if checkpoint.layout != "orbax" or is_file(context.run):
        return
    for item, handler in _items(checkpoint, context).items():
        if item and item not in checkpoint.listing.files:
            continue
        prefix = f"{item}/" if item else ""
        if any(name in handler for name in _JSON):
            lost = [] if f"{prefix}metadata" in checkpoint.listing.files else [f"{prefix}metadata"]
        elif any(name in handler for name in _TREES):
            lost = list(_of_tree(checkpoint, context, prefix))
        else:
            lost = []
        if lost:
            message = f"{lost[0]} is missing" if len(lost) == 1 else f"{len(lost):,} files of an item are missing"
            detail = (*(_lost(lost) if len(lost) > 1 else ()), "a restore of the item stops")
            yield Hit(message, item, detail=detail)


def _of_tree(checkpoint: Checkpoint, context: Context, prefix: str) -> Iterator[str]:
    files = checkpoint.listing.files
    if f"{prefix}_METADATA" not in files:
        yield f"{prefix}_METADATA"
    tree = _mapping(checkpoint, context, f"{prefix}_METADATA") or {}
    if tree.get("use_ocdbt") is False:
        yield from _arrays(checkpoint, context, prefix, tree)
    elif f"{prefix}manifest.ocdbt" not in files:
        if tree or any(path.startswith(f"{prefix}ocdbt.process_") for path in files):
            yield f"{prefix}manifest.ocdbt"
    else:
        yield from _referred(checkpoint, context, prefix)


def _referred(checkpoint: Checkpoint, context: Context, prefix: str) -> Iterator[str]:
    """Yield the data files that a manifest names in plain bytes, and that are nowhere in the item."""
    part = next(part for part in checkpoint.parts if part.path == f"{prefix}manifest.ocdbt")
    content = context.content(part)
    names = content.facts.get("data", ()) if content is not None and content.readable else ()
    there = {path.rpartition("/")[2] for path in checkpoint.listing.files if path.startswith(prefix)}
    yield from (f"{prefix}{name}" for name in names if name.rpartition("/")[2] not in there)


def _arrays(checkpoint: Checkpoint, context: Context, prefix: str, tree: Mapping[Any, Value]) -> Iterator[str]:
    """Yield what is missing of arrays that have a directory each: the description, and chunks."""
    described = "zarr.json" if tree.get("use_zarr3") else ".zarray"
    for leaf in (as_mapping(tree.get("tree_metadata")) or {}).values():
        fields = as_mapping(leaf) or {}
        keys, value = fields.get("key_metadata"), as_mapping(fields.get("value_metadata")) or {}
        if value.get("value_type") not in ("jax.Array", "np.ndarray", "scalar") or not isinstance(keys, list):
            continue
        name = prefix + ".".join(str((as_mapping(key) or {}).get("key")) for key in keys)
        if f"{name}/{described}" not in checkpoint.listing.files:
            yield f"{name}/{described}"
        elif described == ".zarray" and tree.get("store_array_data_equal_to_fill_value"):
            yield from _chunks(checkpoint, context, name)


def _chunks(checkpoint: Checkpoint, context: Context, name: str) -> Iterator[str]:
    array = _mapping(checkpoint, context, f"{name}/.zarray") or {}
    shape, chunks = _sizes(array.get("shape")), _sizes(array.get("chunks"))
    if shape is None or chunks is None or array.get("dimension_separator", ".") != ".":
        return
    counts = [-(-size // chunk) if chunk else 0 for size, chunk in zip(shape, chunks, strict=False)]
    if prod(counts) > _MOST_CHUNKS:
        return
    for place in product(*map(range, counts)):
        path = f"{name}/{'.'.join(map(str, place)) or '0'}"
        if path not in checkpoint.listing.files:
            yield path


def _sizes(value: Value) -> list[int] | None:
    if not isinstance(value, list):
        return None
    sizes = [size for size in value if type(size) is int and size >= 0]
    return sizes if len(sizes) == len(value) else None


@rule("CK175", "step-not-committed", Severity.WARNING, Checkpoint)
def step_not_committed(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """An Orbax step has no time of commit in `_CHECKPOINT_METADATA`, or lacks this file where others have it.

    **Why it matters.** Both are written before the directory gets its name. On an object store it has its name from the
    start, so this is a save that did not end; on a disk, somebody renamed a temporary directory. Orbax reads it all the
    same, as far as its items go.

    **How to repair.** Take another step, unless every item of it can be restored.

    **Known exceptions.** Old versions wrote no such file. `commit_success.txt` tells nothing on a disk.
    """
    if checkpoint.layout != "orbax" or is_file(context.run):
        return
    stated = _mapping(checkpoint, context, _ROOT)
    if stated is not None and "commit_timestamp_nsecs" in stated and stated["commit_timestamp_nsecs"] is None:
        yield Hit("the save was not committed", _ROOT, detail=("commit_timestamp_nsecs is null",))
    elif stated is None and _ROOT not in checkpoint.listing.files and not context.run.single:
        other = next((each for each in context.run.checkpoints if _ROOT in each.listing.files), None)
        if other is not None:
            yield Hit(f"{_ROOT} is missing", detail=(f"{other.path} has one",))


@rule("CK176", "store-left-over", Severity.WARNING, Checkpoint)
def store_left_over(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Inside of an Orbax step are temporary directories or lock files of a write that did not end.

    **Why it matters.** The item beside it may not be what was meant to be saved. Loaders do not look at these entries.

    **How to repair.** Remove them when no save is running.
    """
    if checkpoint.layout != "orbax" or is_file(context.run):
        return
    found = [path for path in checkpoint.listing.files if _LEFT.match(path)]
    if found:
        some = found[0] if len(found) == 1 else f"{len(found):,} entries"
        yield Hit(f"left over by a write that did not end: {some}", found[0], detail=_lost(found)[1:])


@rule("CK272", "ocdbt-damaged", Severity.ERROR, Part, impact=None)
def ocdbt_damaged(part: Part, context: Context) -> Iterator[Hit]:
    """A file of an OCDBT store is not of the length that it states, or its checksum does not fit.

    **Why it matters.** tensorstore refuses to open the store, and with it every array of the item.

    **How to repair.** Copy it from where the checkpoint was written; otherwise take another step.

    **Known exceptions.** Files below `ocdbt.process_N` are a warning: after the save most of them are not needed.
    """
    yield from relay(part, context, "ocdbt-damaged")


@rule("CK276", "array-chunk-damaged", Severity.ERROR, Part, impact=None)
def array_chunk_damaged(part: Part, context: Context) -> Iterator[Hit]:
    """A chunk of an array that Orbax saved without OCDBT is no whole frame of its compression, or gives too few bytes.

    **Why it matters.** tensorstore stops at it, and the array cannot be restored.

    **How to repair.** Copy it from where the checkpoint was written; otherwise take another step.

    **Known exceptions.** Frames are walked and not decompressed: a changed value inside of one shows only against a
    manifest. Chunks of zarr 3 and of other compressions than Zstandard, Blosc and gzip are not looked into.
    """
    yield from relay(part, context, "array-chunk-damaged")


RULES: tuple[Rule, ...] = (
    item_missing,
    item_incomplete,
    step_not_committed,
    store_left_over,
    ocdbt_damaged,
    array_chunk_damaged,
)
