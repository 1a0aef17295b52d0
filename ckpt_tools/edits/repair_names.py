"""Repairs of tensors' names, in the header of a safetensors file or the pickle of a torch zip: no tensor is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from ckpt_tools.containers import pickle_stream, reader
from ckpt_tools.containers.base import Content, FormatError
from ckpt_tools.containers.safetensors import HEADER_LIMIT
from ckpt_tools.core.durable import Disk
from ckpt_tools.core.source import FileSource
from ckpt_tools.edits.overlay import Edited
from ckpt_tools.edits.proof import moved
from ckpt_tools.edits.repair_base import CannotRepairError, Draft, Staged, Subject, stage_name
from ckpt_tools.edits.repair_index import index_actions
from ckpt_tools.edits.repair_opcodes import known, pickle_of, with_texts
from ckpt_tools.edits.zip_patch import edit_zip
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import Fix
from ckpt_tools.model.plan import Action, MoveFile, PatchBytes

_WRAPPED = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_LEADING = re.compile(r"module\.")
_ADAPTER = "base_model.model."
_LORA = re.compile(r".*\.lora_(?:embedding_)?[AB](?:\..*)?\Z", re.DOTALL)
_PIECE = 1 << 22
_PROTOCOL = 5
_SAVE = "load it, rename and save it with torch"


def bare(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers."""
    name = _LEADING.sub("", name, count=1) if _LEADING.match(name) else name
    while (stripped := _WRAPPED.sub(r"\1", name)) != name:
        name = stripped
    return name


def strip_prefixes(fix: Fix, subject: Subject) -> Draft:
    """Plan to take the prefixes of wrappers off all names of the weights that a loader takes, and of their index."""
    view = subject.opened()
    return _renamed(subject, view.weight_parts, bare)


def rename_adapter(fix: Fix, subject: Subject) -> Draft:
    """Plan to give the tensors of an adapter the names that PEFT looks for."""

    def proper(name: str) -> str:
        made = bare(name)
        return made if made.startswith(_ADAPTER) or not _LORA.match(made) else _ADAPTER + made

    return _renamed(subject, (subject.part(str(fix.params["path"])),), proper)


def _renamed(subject: Subject, parts: tuple[Part, ...], new_name: Callable[[str], str]) -> Draft:
    view = subject.opened()
    actions: list[Action] = []
    staged: list[Staged] = []
    names: dict[str, str] = {}
    for part in parts:
        content = view.content(part)
        if content is None or not content.readable or content.problems:
            raise CannotRepairError(f"{part.path}: is damaged, and has to be repaired first")
        made = {name: new_name(name) for name in content.tensors}
        if len(set(made.values())) < len(made):
            raise CannotRepairError(f"{part.path}: two tensors would get one name")
        names |= made
        changed = {old: new for old, new in made.items() if old != new}
        if changed:
            more, waiting = _file(subject, part, content, changed)
            actions += more
            staged += waiting
    if not actions:
        raise CannotRepairError("no name would change")
    actions += _index(subject, parts, names)
    shown = [(old, new) for old, new in names.items() if old != new]
    changes = tuple((parts[0].path, "name", old, new) for old, new in shown[:3])
    note = f"{len(shown):,} names change, no tensor byte does"
    return Draft(tuple(actions), changes, (note,), tuple(staged))


def _index(subject: Subject, parts: tuple[Part, ...], names: Mapping[str, str]) -> list[Action]:
    """Return the writing of the index of sharded weights, where there is one."""
    if subject.checkpoint is None or not any(part.shard for part in parts):
        return []
    ending = parts[0].path.rpartition(".")[2]
    found: list[Action] = []
    for part in subject.checkpoint.of(Role.INDEX):
        if part.path.endswith(f".{ending}.index.json") and part.stat.is_file:
            found += index_actions(subject, part.path, names)[0]
    return found


def _file(
    subject: Subject, part: Part, content: Content, names: Mapping[str, str]
) -> tuple[list[Action], list[Staged]]:
    if content.container == "safetensors":
        return _safetensors(subject, part, content, names)
    texts = {**_modules(names), **names}
    if content.container == "torch-legacy":
        return _legacy(subject, part, content, names, texts)
    if content.container != "torch-zip":
        raise CannotRepairError(f"{part.path}: is {reader.describe(content.container)}, whose names are not edited")
    with subject.opened().listing.open(part.path) as source:
        record, data = pickle_of(source, content, part.path, newest=_PROTOCOL)
        actions = list(edit_zip(source, part.path, (), {record: with_texts(data, texts)}))
        after = reader.read(Edited(source, actions), part.containers)
    if _differs(content, after, names, 0):
        raise CannotRepairError(f"{part.path}: {_differs(content, after, names, 0)}", _SAVE)
    return actions, []


def _modules(names: Mapping[str, str]) -> dict[str, str]:
    """Return the names of modules that change with those of tensors: ``_metadata`` of a state dict is by module."""
    modules = {_parent(old): _parent(new) for old, new in names.items() if _parent(old) != _parent(new)}
    for old in list(modules):
        above = old
        while (above := _parent(above)) and bare(above) != above:
            modules.setdefault(above, bare(above))
    return {old: new for old, new in modules.items() if old and new}


def _legacy(
    subject: Subject, part: Part, content: Content, names: Mapping[str, str], texts: Mapping[str, str]
) -> tuple[list[Action], list[Staged]]:
    """Write a new file of the old format, in which all tensors lie behind the pickle with their names."""
    with subject.opened().listing.open(part.path) as source:
        begin = 0
        try:
            for _ in range(3):
                begin += pickle_stream.read_growing(source, begin)[0]
            length = pickle_stream.read_growing(source, begin)[0]
        except FormatError as error:
            raise CannotRepairError(f"{part.path}: {error.problem.message}") from None
        head, data = source.read(0, begin), source.read(begin, length)
    known(data, part.path, _PROTOCOL)
    new = head + with_texts(data, texts)
    shift = len(new) - begin - length
    origin = subject.home.at(part.path)

    def check(target: str) -> str | None:
        with FileSource(target, part.path) as made:
            after = reader.read(made, part.containers)
        return _differs(content, after, names, shift)

    write = _spliced(origin, part.path, new, begin + length)
    place = stage_name(subject.home, part.path)
    moves: list[Action] = [subject.aside(part.path), MoveFile(place, part.path)]
    return moves, [Staged(place, part.stat.size + shift, write, check, "torch-legacy")]


def _spliced(origin: str, path: str, head: bytes, rest: int) -> Callable[[Disk, str], None]:
    """Return what writes ``head`` and the bytes of an old file from ``rest`` on into a new one."""

    def write(disk: Disk, target: str) -> None:
        disk.create(target, head, origin)
        with FileSource(origin, path) as whole:
            at = len(head)
            for piece in whole.window(rest, whole.size - rest).chunks(_PIECE):
                disk.write(target, at, bytes(piece))
                at += len(piece)

    return write


def _differs(before: Content, after: Content, names: Mapping[str, str], shift: int) -> str | None:
    """Return why a file is not the old one under other names, its tensors ``shift`` bytes further on."""
    wanted = [names.get(name, name) for name in before.tensors]
    same = [
        (ref.shape, ref.dtype, [(moved(chunk.extent, shift), chunk.strides) for chunk in ref.chunks])
        for ref in before.tensors.values()
    ]
    found = [
        (ref.shape, ref.dtype, [(chunk.extent, chunk.strides) for chunk in ref.chunks])
        for ref in after.tensors.values()
    ]
    if after.problems or list(after.tensors) != wanted or found != same:
        return "its names cannot be changed without changing something else"
    return None


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _safetensors(
    subject: Subject, part: Part, content: Content, names: Mapping[str, str]
) -> tuple[list[Action], list[Staged]]:
    """Patch the header where the new one fits its place, filled up with spaces; else write a new file."""
    length = int(content.facts["header_length"])
    with subject.opened().listing.open(part.path) as source:
        old = source.read(8, length)
    header = {names.get(name, name): entry for name, entry in json.loads(old).items()}
    new = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(new) <= length:
        padded = new.ljust(length)
        return [PatchBytes(part.path, 8, old, padded)], []
    new = new.ljust(len(new) + -len(new) % 8)
    if len(new) > HEADER_LIMIT:
        raise CannotRepairError(f"{part.path}: the header would be too long")
    place = stage_name(subject.home, part.path)
    size = part.stat.size - length + len(new)
    origin = subject.home.at(part.path)

    write = _spliced(origin, part.path, len(new).to_bytes(8, "little") + new, 8 + length)

    def check(target: str) -> str | None:
        with FileSource(target, part.path) as made:
            after = reader.read(made, part.containers)
        wanted = {names.get(name, name): (ref.shape, ref.dtype) for name, ref in content.tensors.items()}
        if after.problems or {name: (ref.shape, ref.dtype) for name, ref in after.tensors.items()} != wanted:
            return "its header is not as planned"
        return None

    moves: list[Action] = [subject.aside(part.path), MoveFile(place, part.path)]
    return moves, [Staged(place, size, write, check)]
