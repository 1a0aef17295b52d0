"""The index of sharded weights, made again from the shards' own headers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from ckpt_tools.edits.repair_base import CannotRepairError, Draft, Subject
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import Fix
from ckpt_tools.model.plan import MoveFile, WriteFile
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping


def rebuild(fix: Fix, subject: Subject) -> Draft:
    """Plan a new index, from the shards that the fix names or from those of the index's own name."""
    path = str(fix.params.get("index") or fix.params.get("path"))
    return Draft(*index_actions(subject, path, {}, listed=fix.params.get("shards")))


def index_actions(
    subject: Subject, path: str, renamed: Mapping[str, str], *, listed: object = None
) -> tuple[tuple[MoveFile | WriteFile, ...], tuple[tuple[str, str, object, object], ...]]:
    """Return the actions that write an index again, and what they change; ``renamed`` are tensors by old name."""
    view = subject.opened()
    old, metadata = _old(subject, path)
    shards = _shards(subject, path, old, listed)
    held: dict[str, str] = {}
    refs: dict[str, TensorRef] = {}
    for part in shards:
        content = view.content(part)
        if content is None or not content.readable or content.problems:
            reason = content.problems[0].message if content and content.problems else "it cannot be read"
            raise CannotRepairError(f"{part.path}: {reason}", "repair or copy the shard first")
        for name, ref in content.tensors.items():
            if name in held and old.get(name) not in (held[name], part.path):
                raise CannotRepairError(f"{name} is in {held[name]} and in {part.path}, and nothing says which counts")
            if old.get(name) in (None, part.path) or name not in held:
                held[name], refs[name] = part.path, ref
    files = set(subject.files)
    lost = [name for name in old if name not in held]
    if lost and any(file in files for file in old.values()):
        raise CannotRepairError(
            f"the index names {len(lost):,} tensors that no shard holds, {lost[0]} first; a new index would hide that",
            "copy the shards again, or fall back to an older checkpoint",
        )
    if not held:
        raise CannotRepairError("the shards hold no tensors")
    sizes, numbers = _totals(refs.values())
    metadata = {"total_parameters": numbers, **metadata, "total_size": sizes}
    folder = path.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    made = {renamed.get(name, name): file.removeprefix(prefix) for name, file in held.items()}
    text = json.dumps({"metadata": metadata, "weight_map": made}, indent=2, sort_keys=True) + "\n"
    moved = [(name, file) for name, file in held.items() if old.get(name) != file]
    shown: tuple[tuple[str, str, object, object], ...] = tuple(
        (path, f"weight_map.{name}", old.get(name), file) for name, file in moved[:3]
    )
    if len(moved) > 3:
        shown += ((path, "weight_map", f"{len(old):,} tensors", f"{len(made):,} tensors"),)
    if path not in files:
        return (WriteFile(path, text.encode(), None),), ()
    return (WriteFile(path, text.encode(), subject.bytes_of(path)),), shown


def _old(subject: Subject, path: str) -> tuple[dict[str, str], dict[str, Value]]:
    """Return the tensors by the file that the old index gives them, and its metadata, as far as it is usable."""
    if path not in subject.files:
        return {}, {}
    content = subject.opened().content(subject.part(path))
    value = as_mapping(content.value) if content is not None and content.readable else None
    names, metadata = (value or {}).get("weight_map"), as_mapping((value or {}).get("metadata"))
    prefix = path.rpartition("/")[0]
    usable = names if isinstance(names, dict) and all(isinstance(file, str) for file in names.values()) else {}
    found = {str(name): f"{prefix}/{file}" if prefix else str(file) for name, file in usable.items()}
    kept = {str(key): item for key, item in (metadata or {}).items() if isinstance(item, str | int | float | bool)}
    return found, kept


def _shards(subject: Subject, path: str, old: Mapping[str, str], listed: object) -> list[Part]:
    """Return the shards that belong together, all of them."""
    if isinstance(listed, tuple | list):
        return [subject.part(str(name)) for name in listed]
    stem, _, ending = path.removesuffix(".index.json").rpartition(".")
    name = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{re.escape(ending)}\Z")
    weights = list(subject.checkpoint.of(Role.WEIGHTS)) if subject.checkpoint is not None else []
    named = {file for file in old.values() if file in subject.files}
    own = [part for part in weights if part.shard and name.match(part.path)]
    totals = {part.shard[1] for part in own if part.shard and (part.path in named or not named)}
    if len(totals) > 1:
        raise CannotRepairError("the shards are of two saves, and nothing says which is meant", "move one set away")
    chosen = [part for part in own if part.shard and part.shard[1] in totals]
    numbers = {part.shard[0] for part in chosen if part.shard}
    for total in totals:
        absent = [number for number in (range(total) if 0 in numbers else range(1, total + 1)) if number not in numbers]
        if absent and not named:
            raise CannotRepairError(f"shard {absent[0]} of {total} is missing", "copy it again")
        if absent and any(f"-{number:05d}-of-" in file for number in absent for file in old.values()):
            raise CannotRepairError(f"shard {absent[0]} of {total} is missing", "copy it again")
    chosen += [part for part in weights if part.path in named and part not in chosen]
    if not chosen:
        raise CannotRepairError("there are no shards")
    return sorted(chosen, key=lambda part: part.path)


def _totals(refs: Iterable[TensorRef]) -> tuple[int, int]:
    """Return the bytes and the elements of all tensors, shared ones once, as the writers count them."""
    once = {
        (ref.storage_id, ref.chunks[0].extent) if ref.storage_id is not None and ref.chunks else id(ref): ref
        for ref in refs
    }
    return sum(ref.nbytes for ref in once.values()), sum(ref.numel for ref in once.values())
