"""CK16x: what a Megatron checkpoint has to have, and what its parts say of each other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.core.listing import scan
from ckpt_tools.layouts.assembly_megatron import MegatronAssembly, arguments, degrees
from ckpt_tools.layouts.match import is_file
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_INFERENCE, BREAKS_RESUME, DEGRADES_RESUME, Severity, Spot
from ckpt_tools.model.values import Value, as_mapping, whole
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_RANK = re.compile(r"(mp_rank_\d\d(?:_\d\d\d){0,2})/")
_OBJECT = re.compile(r"[^/]+/shard_[\d.]+_[\d.]+\Z")
"""Names that only Megatron-Core gives: an object, its place and how many there are."""

_SHOWN = 3
_OTHER_OPTIMIZER = re.compile(r"/(?:layer_wise_optimizer_\d+|optim)\.pt\Z")
_NAMES = ("model_optim_rng.pt", "model_rng.pt")


def _torch_dist(checkpoint: Checkpoint) -> str | None:
    """Return the directory of a ``torch_dist`` save, None where it is none."""
    return {"megatron": "", "nemo": "weights/"}.get(checkpoint.layout)


def _common(view: View) -> Mapping[Any, Value]:
    """Return what every rank had alike: ``common.pt``, the same among the chunks, or any file of the old format."""
    held = view.mapping(Role.COMMON) or view.mapping(Role.MODEL_STATES)
    return held or next((each.common for each in view.assemblies if isinstance(each, MegatronAssembly)), {})


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


@rule("CK160", "megatron-rank-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def rank_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A directory of a tensor or pipeline rank is missing, or has no model file in it.

    **Why it matters.** The arguments saved inside say how many ranks the model is cut for. The rank without its file
    stops, and the others wait for it.

    **How to repair.** Copy the missing directories from where the ranks wrote them.

    **Known exceptions.** Expert parallelism adds a third number to the names, and is counted where the arguments say
    so; with `--expert-tensor-parallel-size` not every pair of ranks writes. Without arguments, only gaps are told.
    """
    if checkpoint.layout != "megatron-torch" or is_file(context.run):
        return
    written = {path.rpartition("/")[0] for path in checkpoint.listing.files if path.rpartition("/")[2] in _NAMES}
    sizes, args = degrees(_common(context.view)), arguments(_common(context.view))
    if sizes is None:
        wanted, said = _without_gaps(written), "the numbers of the others"
    elif whole(args.get("expert_tensor_parallel_size")) in (None, sizes[0]) or sizes[2] == 1:
        wanted = _rank_names(*sizes)
        said = f"the arguments say {sizes[0]} tensor and {sizes[1]} pipeline ranks"
    else:
        return
    missing = [name for name in wanted if name not in written]
    if missing:
        yield Hit(
            f"{len(missing):,} of {len(wanted):,} ranks have no model file",
            detail=(f"not there: {_listed(missing)}", said),
        )


def _without_gaps(names: set[str]) -> list[str]:
    """Return the names of ranks that have to be there where some of these are: all up to the highest number of each."""
    numbers = {tuple(map(int, name.split("_")[2:])) for name in names}
    forms = {len(each) for each in numbers}
    if len(forms) != 1 or forms == {3}:
        return []
    tensor, *others = (max(column) + 1 for column in zip(*numbers, strict=True))
    if not others:
        return _rank_names(tensor, 1, 1)
    crossed = others[0] > 1 and len(numbers) > max(tensor, *others)  # else experts may be meant, of one rank each
    return _rank_names(tensor, others[0], 1) if crossed else []


def _rank_names(tensor: int, pipeline: int, expert: int) -> list[str]:
    if tensor * pipeline * expert > 1 << 16:
        return []
    return [
        f"mp_rank_{t:02d}" + (f"_{p:03d}" if pipeline > 1 else "") + (f"_{e:03d}" if expert > 1 else "")
        for t in range(tensor)
        for p in range(pipeline)
        for e in range(expert)
    ]


@rule("CK161", "megatron-not-finalised", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def not_finalised(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`metadata.json`, which Megatron-Core writes last, is missing.

    **Why it matters.** Without it the directory counts as one of another format (`torch_dcp`), and the load fails. A
    job that was killed while it finished the save leaves everything else.

    **How to repair.** Resume from an older one. Where all chunks are whole, the file can be copied from another
    checkpoint of the run: it says the same in all of them.

    **Known exceptions.** `--ckpt-format torch_dcp` and `fsdp_dtensor` write plain DCP and no such file. So this is
    told only where `common.pt`, or an object kept in pieces, shows that Megatron-Core wrote it.
    """
    place = _torch_dist(checkpoint)
    if place is None or is_file(context.run) or checkpoint.has(Role.BACKEND) or not checkpoint.has(Role.METADATA):
        return
    if checkpoint.has(Role.COMMON) or checkpoint.layout == "nemo" or _objects(context.view):
        yield Hit(
            f"the save did not end: {place}metadata.json, which is written last, is missing",
            detail=("Megatron would take the directory for another format, and stop",),
        )


def _objects(view: View) -> bool:
    """Whether objects were saved in pieces, under names that only Megatron-Core gives."""
    for part in view.checkpoint.of(Role.METADATA):
        content = view.content(part)
        items = content.facts.get("items", {}) if content is not None else {}
        if any(_OBJECT.match(name) for name in items):
            return True
    return False


@rule("CK162", "megatron-common-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def common_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`metadata.json` says that there is a `common.pt`, and there is none.

    **Why it matters.** Arguments, iteration and schedule are in it; the load stops with `FileNotFoundError`.

    **How to repair.** Copy it again from where it was written.

    **Known exceptions.** Later versions keep that state in the chunks and write no `common.pt`; their `metadata.json`
    does not speak of a `common_backend`.
    """
    place = _torch_dist(checkpoint)
    if place is None or is_file(context.run) or checkpoint.has(Role.COMMON):
        return
    backend = context.view.mapping(Role.BACKEND) or {}
    if "common_backend" in backend:
        yield Hit(f"{place}common.pt is missing", detail=("metadata.json says that it is part of the checkpoint",))


@rule("CK163", "megatron-optimizer-missing", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def optimizer_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A rank of the old format has no optimizer file (`distrib_optim.pt`), though others have, or the arguments say so.

    **Why it matters.** The rank without it stops with `FileNotFoundError`, and the others wait for it.

    **How to repair.** Copy it again, or start with `--no-load-optim`, which makes the moments anew.

    **Known exceptions.** Saved with `--no-save-optim`; without the distributed optimizer the moments are in
    `model_optim_rng.pt`, and once they were in an `optim.pt` of each data-parallel rank.
    """
    if checkpoint.layout != "megatron-torch" or is_file(context.run):
        return
    args = arguments(_common(context.view))
    ranks = sorted({match.group(1) for path in checkpoint.listing.files if (match := _RANK.match(path))})
    lacking = [name for name in ranks if f"{name}/distrib_optim.pt" not in checkpoint.listing.files]
    asked = args.get("use_distributed_optimizer") is True and args.get("no_save_optim") is not True
    others = any(_OTHER_OPTIMIZER.search(path) for path in checkpoint.listing.files)
    if lacking and not others and (asked or len(lacking) < len(ranks)):
        yield Hit(
            f"{len(lacking):,} of {len(ranks):,} ranks have no distrib_optim.pt",
            detail=(f"not there: {_listed([f'{name}/distrib_optim.pt' for name in lacking])}",),
        )


@rule("CK164", "megatron-iteration", Severity.WARNING, Checkpoint, impact=DEGRADES_RESUME)
def iteration(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`iteration` inside is not the number in the directory's name, or not the same for all ranks.

    **Why it matters.** The tracker and the directory are chosen by number, and training goes on from what is inside.
    Ranks of different iterations are two checkpoints mixed.

    **How to repair.** If only the directory was renamed, give it its name back; otherwise copy the whole of it again.

    **Known exceptions.** `release` has no number, and its iteration is 0.
    """
    if not checkpoint.layout.startswith("megatron"):
        return
    stated: dict[int, list[str]] = {}
    for part, value in context.view.values(Role.COMMON, Role.MODEL_STATES):
        number = whole((as_mapping(value) or {}).get("iteration"))
        if number is not None:
            stated.setdefault(number, []).append(part.path)
    inner = whole(_common(context.view).get("iteration"))
    if not stated and inner is not None:
        stated[inner] = [""]
    if not stated:
        return
    place = Spot(key="iteration")
    if len(stated) > 1:
        lines = [f"{number:,} in {_listed(paths)}" for number, paths in sorted(stated.items())]
        message = "the ranks are of different iterations"
        yield Hit(message, at=place, detail=tuple(lines), severity=Severity.ERROR, impact=BREAKS_ALL)
        return
    ((number, paths),) = stated.items()
    if checkpoint.step is not None and number != checkpoint.step:
        yield Hit(f"the directory is named for iteration {checkpoint.step:,}, and holds {number:,}", paths[0], place)


@rule("CK165", "megatron-integrity-file", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def integrity_file(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A file that Megatron's own `integrity.json` names is missing.

    **Why it matters.** With `--verify-integrity` the load stops; without it what was in the file is missing.

    **How to repair.** Copy it again.
    """
    for name in _digests(context.view) if not is_file(context.run) else ():
        if name not in checkpoint.listing.files:
            yield Hit("it is missing, and integrity.json names it", name)


@rule("CK166", "megatron-integrity", Severity.ERROR, Checkpoint, impact=BREAKS_ALL, depth="deep")
def integrity(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The SHA-256 of a file is not the one in Megatron's own `integrity.json`.

    **Why it matters.** The file is not the one that was saved. With `--verify-integrity` the load stops; without it, it
    may go well with other numbers.

    **How to repair.** Copy it again, or resume from another checkpoint.

    **Known exceptions.** Files that were added later, such as a tokenizer, are not in it. Sampled looks skip this.
    """
    data = context.view.data
    if data is None or data.sample:
        return
    from ckpt_tools.core.errors import SourceError
    from ckpt_tools.numerics.whole import whole as digest_of

    for name, wanted in _digests(context.view).items():
        entry = checkpoint.listing.files.get(name)
        if entry is None or not entry.is_file:
            continue
        try:
            with checkpoint.listing.open(name) as source:
                found = digest_of(source, "sha256", lambda _: None)
        except SourceError as error:
            context.view.errors.setdefault(name, error)
            continue
        if found != wanted.lower():
            detail = (f"integrity.json says {wanted[:16]}..., the file has {found[:16]}...",)
            yield Hit("its SHA-256 is not the one that Megatron wrote down", name, detail=detail)


def _digests(view: View) -> Mapping[str, str]:
    """Return the digests of ``integrity.json`` by file name; nothing where it uses another algorithm."""
    if view.checkpoint.layout != "megatron":
        return {}
    part = next((part for part in view.checkpoint.parts if part.path == "integrity.json"), None)
    content = view.content(part) if part is not None else None
    held = as_mapping(content.value) if content is not None else None
    files = as_mapping((held or {}).get("files")) or {}
    if str((held or {}).get("algorithm")).lower().replace("-", "") != "sha256":
        return {}
    return {str(name): value for name, value in files.items() if isinstance(value, str) and "/" not in str(name)}


@rule("CK167", "nemo-unfinished", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def nemo_unfinished(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """NeMo's mark of an unfinished save (`<name>-unfinished`) lies beside the checkpoint.

    **Why it matters.** NeMo makes the empty file before a save and removes it after the last rank is done. A resume
    passes such a checkpoint over, and the next start deletes it.

    **How to repair.** Resume from an older one (`ckpt latest RUN`).
    """
    if checkpoint.layout not in ("nemo", "lightning", "megatron") or is_file(context.run):
        return
    home, name = os.path.split(os.path.abspath(context.run.root)) if context.run.single else ("", checkpoint.path)
    mark = f"{name.removesuffix('.ckpt').removesuffix('-EMA')}-unfinished"
    if mark in (scan(home, depth=1) if home else context.run.listing).files:
        detail = (
            "NeMo passes it over when it resumes, and deletes it at the next start: copy it away to keep it",
            "the mark goes when the last rank is done: a copy that was taken before is not whole, take it again",
        )
        message = "the save was marked as unfinished, and the mark was never removed"
        yield Hit(message, detail=detail, related=(mark,))


@rule("CK168", "nemo-context-incomplete", Severity.WARNING, Checkpoint, impact=BREAKS_INFERENCE)
def nemo_context(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`context/` of a NeMo checkpoint has files, and `io.json`, which says how the model is made, is not among them.

    **Why it matters.** Without it the model can only be made by the script that trained it; exports and evaluation
    load it from there. A resume does not.

    **How to repair.** Copy `context/` from another checkpoint of the same run.

    **Known exceptions.** Checkpoints without any `context/`: NeMo writes it where it was asked to.
    """
    if checkpoint.layout != "nemo" or is_file(context.run) or checkpoint.has(Role.CONFIG):
        return
    if any(path.startswith("context/") for path in checkpoint.listing.files):
        yield Hit("context/io.json is missing")


@rule("CK169", "megatron-world-size", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def world_size(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The number of ranks that a resume is planned for (`--world-size`) is no multiple of tensor x pipeline ranks.

    **Why it matters.** The older format is read rank by rank, and a distributed optimizer saved as `dp_reshardable`
    bucket by bucket: the model has to be cut for as many tensor and pipeline ranks as the one that was saved. Only the
    number of data-parallel ranks is free.

    **How to repair.** Resume with a multiple; or convert it (Megatron-LM's `tools/checkpoint/convert.py`), or save with
    `--ckpt-fully-parallel-save`, which can be cut anew.

    **Known exceptions.** Every other `torch_dist` checkpoint can be cut anew for any number of ranks.
    """
    wanted, common = context.settings.world_size, _common(context.view)
    sizes = degrees(common) if wanted is not None and not is_file(context.run) else None
    content = as_mapping(common.get("content_metadata")) or {}
    fixed = checkpoint.layout == "megatron-torch" or content.get("distrib_optim_sharding_type") == "dp_reshardable"
    if wanted is not None and sizes is not None and fixed and wanted % (sizes[0] * sizes[1]):
        cut = f"cut for {sizes[0]:,} tensor x {sizes[1]:,} pipeline ranks"
        yield Hit(f"{cut}: {wanted:,} ranks are no multiple of {sizes[0] * sizes[1]:,}")


RULES: tuple[Rule, ...] = (
    rank_missing,
    not_finalised,
    common_missing,
    optimizer_missing,
    iteration,
    integrity_file,
    integrity,
    nemo_unfinished,
    nemo_context,
    world_size,
)
