"""``ckpt merge``: the weights of a checkpoint, in however many pieces they lie, in files that every loader reads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from ckpt_tools._version import __version__
from ckpt_tools.core.durable import Disk, LocalDisk, look
from ckpt_tools.core.errors import EditRefusedError, UsageError
from ckpt_tools.core.progress import SILENT, Progress
from ckpt_tools.core.space import free_bytes
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.ops import merge_checks, safetensors_file
from ckpt_tools.ops.deep import workers
from ckpt_tools.ops.diff_targets import find
from ckpt_tools.ops.merge_write import Output, Shard, write
from ckpt_tools.reports.merge import MergeReport, WrittenFile

MAX_SHARD_SIZE = 5_000_000_000
"""Bytes of one file at the most, as Hugging Face's writers have it; a larger tensor has a file of its own."""

COPIED = (Role.CONFIG, Role.GENERATION_CONFIG, Role.TOKENIZER)
"""What a loader wants beside the weights."""


def merge(
    path: str,
    out: str,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    jobs: int | None = None,
    disk: Disk | None = None,
    progress: Progress = SILENT,
) -> MergeReport:
    """Write the weights of a checkpoint as safetensors, with an index where they are more than one file.

    Every byte is read once and written once, in bounded memory, and what was written is read back and compared, so
    that each tensor's digest is that of its source.  Config and tokenizer come along.

    Args:
        path: a checkpoint, a file, ``RUN@STEP``, or a run, of which the newest good checkpoint is taken.
        out: the directory to make; there must be nothing of this name.
        max_shard_size: bytes of the tensors in one file at the most.
        jobs: threads that read and write; as many as processors when None.
        disk: what writes, for tests.
        progress: where progress is announced.

    Raises:
        NothingFoundError: no such path, or no checkpoint there.
        UsageError: arguments that cannot be meant.
        EditRefusedError: ``out`` exists, there is too little space, or not all weights are there and whole.
        CkptError: a file could not be read or written; nothing is left of the output.
    """
    started = time.perf_counter()
    out = out.rstrip("/") or out
    _check(out, max_shard_size)
    target = find(path, progress)
    view = target.view
    view.look_at_everything()
    merge_checks.refuse_piece(target)
    merge_checks.refuse_damaged(target)
    weights = merge_checks.whole(view)
    merge_checks.refuse_inside(target, out)
    kept, tied = _once(weights)
    shards = _shards(kept, tied, max_shard_size)
    copied = [part for part in view.checkpoint.of(*COPIED) if "/" not in part.path and part.stat.is_file]
    output = Output(out, tuple(shards), tuple(copied), _index(shards))
    free = free_bytes(os.path.dirname(os.path.abspath(out)))
    if free is not None and free < output.size:
        raise EditRefusedError(f"{out}: too little space: {output.size:,} bytes are needed, and {free:,} are free")
    with ExitStack() as stack:
        if disk is None:
            local = LocalDisk()
            stack.callback(local.close)
            disk = local
        digests = write(view, output, disk, workers(jobs), progress)
    return MergeReport(
        __version__,
        target.path,
        out,
        target.taken or "",
        len(kept),
        sum(ref.numel for ref in kept),
        tuple(WrittenFile(shard.name, shard.size, len(shard.tensors)) for shard in shards),
        tuple(part.path for part in copied),
        tied,
        digests,
        tuple(merge_checks.left_out(view, weights, copied)),
        tuple(merge_checks.notes(target)),
        view.listing.meter.bytes_read,
        output.size,
        time.perf_counter() - started,
    )


def _check(out: str, max_shard_size: int) -> None:
    if max_shard_size < 1:
        raise UsageError(f"files of at most {max_shard_size} bytes hold nothing")
    if not out:
        raise UsageError("the directory to make has no name")
    if out.endswith((".safetensors", ".bin", ".pt")):
        raise UsageError(f"{out}: is the name of a file, and a directory is made")
    if look(out) is not None:
        raise EditRefusedError(f"{out}: exists already")
    if not os.path.isdir(os.path.dirname(os.path.abspath(out))):
        raise UsageError(f"{out}: the directory around it does not exist")


def _once(weights: Mapping[str, TensorRef]) -> tuple[list[TensorRef], dict[str, str]]:
    """Return the tensors that have bytes of their own, and the names that stand for one of them."""
    first: dict[tuple[object, ...], str] = {}
    kept: list[TensorRef] = []
    tied: dict[str, str] = {}
    for name, ref in weights.items():
        if not ref.chunks and ref.numel:
            continue
        owner = first.setdefault((ref.chunks, ref.dtype, ref.shape), name) if ref.numel else name
        if owner == name:
            kept.append(replace(ref, fqn=name))
        else:
            tied[name] = owner
    return kept, tied


def _shards(kept: list[TensorRef], tied: Mapping[str, str], most: int) -> list[Shard]:
    """Fill files in the order of the weights, each to ``most`` bytes."""
    groups: list[list[TensorRef]] = [[]]
    size = 0
    for ref in kept:
        if groups[-1] and size + ref.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(ref)
        size += ref.nbytes
    made = []
    for number, group in enumerate(groups, 1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        ordered = safetensors_file.in_order(group)
        inside = {ref.fqn for ref in group}
        # Names that were dropped stand in the metadata, as safetensors' own ``save_model`` has them.
        shared = {name: owner for name, owner in tied.items() if owner in inside}
        made.append(Shard(name, safetensors_file.header(ordered, {"format": "pt", **shared}), tuple(ordered)))
    return made


def _index(shards: list[Shard]) -> bytes | None:
    if len(shards) == 1:
        return None
    places = {ref.fqn: shard.name for shard in shards for ref in shard.tensors}
    tensors = [ref for shard in shards for ref in shard.tensors]
    metadata = {"total_size": sum(ref.nbytes for ref in tensors), "total_parameters": sum(ref.numel for ref in tensors)}
    return (json.dumps({"metadata": metadata, "weight_map": places}, indent=2, sort_keys=True) + "\n").encode()
