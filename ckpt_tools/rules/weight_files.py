"""CK1xx: shards, their index, and several forms of the same weights side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ckpt_tools.layouts.match import is_file
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import HARMLESS, Fix, Severity
from ckpt_tools.model.values import as_mapping
from ckpt_tools.rules.base import Context, Hit, Rule, leaves_directory, rule

_SHARD = re.compile(r"(?P<prefix>.+)-\d+-of-\d+(?P<ending>\.\w+)\Z")
_HOUR = 3600 * 10**9
_CANONICAL = ("model.safetensors", "pytorch_model.bin")
_TRAINER_ORDER = (*_CANONICAL, "model.safetensors.index.json", "pytorch_model.bin.index.json")
_MODEL_ORDER = (_TRAINER_ORDER[0], _TRAINER_ORDER[2], _TRAINER_ORDER[1], _TRAINER_ORDER[3])


@dataclass(frozen=True, slots=True)
class _Shards:
    """The shards of one name (``model.safetensors``) with their index.

    ``tensors`` counts by shard what the index says, empty without a readable index.  ``numbers`` are the numbers in
    the names that are there, by the total in the name.
    """

    name: str
    index: Part | None
    tensors: Mapping[str, int]
    numbers: Mapping[int, frozenset[int]]
    parts: tuple[Part, ...]

    def missing(self, checkpoint: Checkpoint) -> list[str]:
        """Return the shards that the index names and that are not there."""
        return [name for name in self.tensors if name not in checkpoint.listing.files]

    @property
    def holes(self) -> list[str]:
        """The names that the numbering implies and that are not there; it may begin at 0 or at 1."""
        stem, ending = self.name.rsplit(".", 1)
        widths = {len(part.path.rsplit("-of-", 1)[1].split(".")[0]) for part in self.parts}
        width = max(widths, default=5)
        found = []
        for total, numbers in sorted(self.numbers.items()):
            wanted = range(total) if 0 in numbers else range(1, total + 1)
            absent = [number for number in wanted if number not in numbers]
            found += [f"{stem}-{number:0{width}}-of-{total:0{width}}.{ending}" for number in absent]
        return found

    @property
    def complete(self) -> bool:
        """Whether the shards that are there are all of one save."""
        return len(self.numbers) == 1 and not self.holes


def _sets(checkpoint: Checkpoint, context: Context) -> list[_Shards]:
    shards: dict[str, list[Part]] = {}
    for part in checkpoint.of(Role.WEIGHTS):
        match = _SHARD.match(part.path) if part.shard else None
        if match:
            shards.setdefault(f"{match['prefix']}{match['ending']}", []).append(part)
    indexes = {part.path.removesuffix(".index.json"): part for part in checkpoint.of(Role.INDEX)}
    made = []
    for name in dict.fromkeys((*indexes, *shards)):
        parts = shards.get(name, [])
        totals = {part.shard[1] for part in parts if part.shard}
        numbers = {of: frozenset(p.shard[0] for p in parts if p.shard and p.shard[1] == of) for of in totals}
        index = indexes.get(name)
        made.append(_Shards(name, index, _counted(index, context), numbers, tuple(parts)))
    return made


def _counted(index: Part | None, context: Context) -> dict[str, int]:
    content = context.content(index) if index is not None else None
    mapped = as_mapping((as_mapping(content.value) or {}).get("weight_map")) if content is not None else None
    counts: dict[str, int] = {}
    for name in (mapped or {}).values():
        if isinstance(name, str) and index is not None and not leaves_directory(name, index.path):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _taken(checkpoint: Checkpoint) -> str | None:
    """Return which of the usual files a loader takes, where several forms of the weights are there."""
    order = _TRAINER_ORDER if checkpoint.layout == "hf-trainer" else _MODEL_ORDER
    return next((name for name in order if name in checkpoint.listing.files), None)


def _single(shards: _Shards, checkpoint: Checkpoint) -> str | None:
    """Return the whole file that loaders take in place of these shards."""
    taken = _taken(checkpoint)
    whole = (shards.name, taken) if taken in _CANONICAL and shards.name in _CANONICAL else (shards.name,)
    return next((name for name in whole if name in checkpoint.listing.files), None)


def _outranked(shards: _Shards, checkpoint: Checkpoint) -> bool:
    taken = _taken(checkpoint)
    return shards.name in _CANONICAL and taken is not None and taken != f"{shards.name}.index.json"


@rule("CK106", "shard-missing", Severity.ERROR, Checkpoint, impact=None)
def shard_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A file of the weights is missing that the index names, or that the numbering of the others implies.

    **Why it matters.** Loaders stop with `FileNotFoundError`, and some leave the tensors of it at random values.

    **How to repair.** Copy the shard again, or fall back to an older checkpoint (`ckpt latest RUN`).

    **Known exceptions.** The index outranks the numbering, which may begin at 0 or have other names between. An index
    beside a whole `model.safetensors` is not read (CK108).
    """
    if is_file(context.run):
        return
    for shards in _sets(checkpoint, context):
        if _single(shards, checkpoint) or _other_set(shards, checkpoint):
            continue
        named = shards.missing(checkpoint) if shards.tensors else []
        missing = named if shards.tensors else shards.holes if shards.name in _CANONICAL else []
        if missing:
            yield _lost(shards, missing, checkpoint, context)


def _lost(shards: _Shards, missing: list[str], checkpoint: Checkpoint, context: Context) -> Hit:
    harmless = _outranked(shards, checkpoint)
    total, lost = sum(shards.tensors.values()), sum(shards.tensors.get(name, 0) for name in missing)
    source = f"{lost:,} of {total:,} tensors lost" if total else "by the numbers in the names of the others"
    one = len(missing) == 1
    where = missing[0] if one else shards.index.path if shards.index else ""
    what = "the shard is missing" if one else f"{len(missing)} shards are missing"
    names = [f"{name}: {shards.tensors[name]:,} tensors" if total else name for name in missing[:10]]
    names += [f"... and {len(missing) - 10} more"] if len(missing) > 10 else []
    return Hit(
        f"{what}: {source}",
        where,
        detail=() if one else tuple(names),
        severity=Severity.WARNING if harmless else None,
        impact=HARMLESS if harmless else context.view.need(Role.WEIGHTS).missing,
    )


def _other_set(shards: _Shards, checkpoint: Checkpoint) -> bool:
    """Return whether the index names none of the shards that are there, and those are complete."""
    missing = shards.missing(checkpoint)
    return bool(missing) and len(missing) == len(shards.tensors) and shards.complete


@rule("CK107", "index-missing", Severity.ERROR, Checkpoint, impact=None)
def index_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The weights are in shards, and the index that says which tensor is where is missing.

    **Why it matters.** Loaders look for one whole file or for the index, and do not find the shards without it.

    **How to repair.** The index is made again from the shards' headers: `ckpt repair`.
    """
    if is_file(context.run):
        return
    for shards in _sets(checkpoint, context):
        if shards.index or shards.name not in _CANONICAL or _single(shards, checkpoint):
            continue
        yield Hit(
            f"{shards.name}.index.json is missing, {len(shards.parts)} shards are here",
            fix=_rebuild(shards),
            impact=HARMLESS if _outranked(shards, checkpoint) else context.view.need(Role.INDEX).missing,
            severity=Severity.WARNING if _outranked(shards, checkpoint) else None,
        )


def _rebuild(shards: _Shards) -> Fix | None:
    if not shards.complete:
        return None
    params = {"index": f"{shards.name}.index.json", "shards": tuple(part.path for part in shards.parts)}
    return Fix(f"make {shards.name}.index.json from the headers of the shards", True, "rebuild-index", params)


@rule("CK108", "stale-index", Severity.WARNING, Checkpoint)
def stale_index(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """An index names files that are not there, and the weights are in other files that are complete.

    **Why it matters.** Saving a smaller model into a used directory deletes the old shards and leaves their index.
    Beside one whole file it is ignored (a warning). Beside other shards (an error) transformers stops with
    `FileNotFoundError`, while loaders that go by the shards' names take them.

    **How to repair.** Remove the index, or make it again from the shards' headers: `ckpt repair`.
    """
    if is_file(context.run):
        return
    for shards in _sets(checkpoint, context):
        missing = shards.missing(checkpoint)
        if shards.index is None or not missing:
            continue
        named = f"names {len(shards.tensors)} files, {len(missing)} of them are not there"
        single = _single(shards, checkpoint)
        if single:
            fix = Fix("set the index aside", True, "set-aside", {"path": shards.index.path})
            detail = (named, f"loaders take {single} and do not read the index")
            yield Hit("a left-over index", shards.index.path, detail=detail, fix=fix)
        elif _other_set(shards, checkpoint):
            detail = (named, f"{len(shards.parts)} other shards are here and complete")
            yield Hit(
                "the index is of other shards",
                shards.index.path,
                detail=detail,
                fix=_rebuild(shards),
                severity=Severity.ERROR,
                impact=context.view.need(Role.INDEX).damaged,
            )


@rule("CK121", "two-weight-forms", Severity.WARNING, Checkpoint)
def two_weight_forms(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The weights are there in more than one form: whole and in shards, or `.safetensors` and `.bin`.

    **Why it matters.** One save writes one form. Loaders take the first by a fixed order and never look at the
    others, so that what was saved last may be ignored in silence.

    **How to repair.** Set aside the form that is not meant.

    **Known exceptions.** Published models often come in both formats on purpose: a note, unless `.bin` is newer by more
    than a day. A full model beside an adapter is a merged export or a wrapped model: a note.
    """
    if is_file(context.run) or checkpoint.layout == "plain":
        return
    forms = _forms(checkpoint, context)
    taken = _taken(checkpoint)
    if len(forms) > 1 and taken:
        yield _several(checkpoint, forms, taken)
    if forms and checkpoint.layout == "hf-trainer" and any(not p.adapter for p in checkpoint.of(Role.ADAPTER)):
        detail = "a resume takes the full model and leaves the adapter's file alone"
        severity = Severity.NOTE
        yield Hit("a full model beside an adapter", next(iter(forms)), detail=(detail,), severity=severity)


def _forms(checkpoint: Checkpoint, context: Context) -> dict[str, int]:
    """Return the usual forms that are there, by the file that leads to them, with the newest time of each."""
    files = checkpoint.listing.files
    forms = {name: files[name].mtime_ns for name in _CANONICAL if name in files}
    for shards in _sets(checkpoint, context):
        if shards.name in _CANONICAL and shards.parts and not shards.missing(checkpoint):
            forms[f"{shards.name}.index.json"] = max(part.stat.mtime_ns for part in shards.parts)
    return forms


def _several(checkpoint: Checkpoint, forms: dict[str, int], taken: str) -> Hit:
    published = checkpoint.layout not in ("hf-trainer", "accelerate")
    newest = max(forms, key=lambda name: forms[name])
    younger = forms[newest] - forms.get(taken, forms[newest])
    detail = [f"a loader takes {taken}, not {' or '.join(name for name in forms if name != taken)}"]
    if younger > _HOUR:
        detail.append(f"{newest} is newer by {younger / _HOUR:,.0f} hours")
    first = next((name for name in _MODEL_ORDER if name in forms), taken)
    if first != taken:
        detail.append(f"that is a resume; from_pretrained takes {first}")
    calm = published and younger < 24 * _HOUR
    return Hit(
        "the weights are here in more than one form",
        taken,
        detail=tuple(detail),
        severity=Severity.NOTE if calm else None,
    )


RULES: tuple[Rule, ...] = (shard_missing, index_missing, stale_index, two_weight_forms)
