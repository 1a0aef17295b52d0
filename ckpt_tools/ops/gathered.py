"""The tensors that several files hold together, each told once by its name and not once for every file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from ckpt_tools.core.progress import Task
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.numerics.assembled import Assembled, OpenFiles, problem
from ckpt_tools.numerics.digest import finish, tensor_head
from ckpt_tools.numerics.spans import Span
from ckpt_tools.numerics.streaming import Job, stream
from ckpt_tools.ops.unpacked import unpacked


class Gathered(NamedTuple):
    """A tensor; ``place`` is the directory of its pieces, or the file that it is in where no assembly tells of it."""

    place: str
    name: str
    ref: TensorRef


class Digested(NamedTuple):
    """A tensor's digest, or why it has none."""

    tensor: Gathered
    digest: str | None
    reason: str = ""


def tensors(view: View) -> list[Gathered]:
    """Return what assemblies know, then what else lies in the same files."""
    found: list[Gathered] = []
    for assembly in view.assemblies:
        every: list[Mapping[str, TensorRef]] = [assembly.weights, assembly.optimizer_tensors, assembly.other_tensors]
        names = {name: ref for known in reversed(every) for name, ref in known.items()}
        place = assembly.place or "."
        found += (Gathered(place, name, names[name]) for known in every for name in known if name in names)
    found = list({(each.place, each.name): each for each in found}.values())
    return found + list(_beside(view, found))


def files(view: View, found: Iterable[Gathered]) -> frozenset[str]:
    """Return the files whose tensors are told with the others'."""
    whole = (part.path for part in view.checkpoint.of(Role.CHUNKS, Role.METADATA)) if view.assemblies else ()
    return frozenset(chunk.extent.path for each in found for chunk in each.ref.chunks) | frozenset(whole)


def _beside(view: View, found: Sequence[Gathered]) -> Iterator[Gathered]:
    """Yield the tensors of rank files that are no piece of any other: a half-precision copy, a counter."""
    held: dict[str, list[tuple[int, int]]] = {}
    for each in found:
        for chunk in each.ref.chunks:
            held.setdefault(chunk.extent.path, []).append((chunk.extent.offset, chunk.extent.end))
    for part in view.checkpoint.parts:
        if part.path not in held or part.role is Role.CHUNKS:
            continue
        taken = sorted(held[part.path])
        content = view.content(part)
        for name, ref in content.tensors.items() if content is not None else ():
            if ref.numel and not any(_touches(taken, chunk.extent.offset, chunk.extent.end) for chunk in ref.chunks):
                yield Gathered(part.path, name, ref)


def _touches(taken: list[tuple[int, int]], begin: int, end: int) -> bool:
    number = bisect_right(taken, (begin, end))
    return any(taken[at][0] < end and begin < taken[at][1] for at in (number - 1, number) if 0 <= at < len(taken))


def chunks_of(ref: TensorRef) -> str:
    """Return in how many pieces a tensor lies, in words."""
    paths = list(dict.fromkeys(chunk.extent.path for chunk in ref.chunks))
    if len(ref.chunks) == 1:
        return paths[0]
    where = f"{len(paths):,} files" if len(paths) > 1 else "".join(paths)
    return f"{len(ref.chunks):,} chunks in {where}" if paths else "no chunk"


def digests(view: View, found: Sequence[Gathered], *, jobs: int, task: Task) -> tuple[list[Digested], list[str]]:
    """Read tensors and return the digest of each, with what could not be read."""
    refs = unpacked(view.listing, {f"{number}": each.ref for number, each in enumerate(found)})
    told: list[Digested | None] = []
    work: list[Job] = []
    errors: list[str] = []
    with OpenFiles(view.listing) as opened:
        for each, ref in zip(found, refs.values(), strict=True):
            why = ref if isinstance(ref, str) else problem(ref)
            told.append(Digested(each, None, why) if why else None)
            if not why and isinstance(ref, TensorRef):
                spans = [Span(0, ref.nbytes, digest=True)] if ref.nbytes else []
                work.append(Job(each.name, partial(Assembled, ref, opened), spans))
        outcomes = iter(stream(work, workers=jobs, task=task))
    done: list[Digested] = []
    for each, known in zip(found, told, strict=True):
        if known is not None:
            done.append(known)
            continue
        outcome = next(outcomes)
        errors += [f"{error}" for error in outcome.errors]
        pieces = [digest for span in outcome.spans for digest in span.digests]
        head = tensor_head(each.ref.dtype, each.ref.shape)
        done.append(Digested(each, None if outcome.errors else finish(head, pieces)))
    return done, list(dict.fromkeys(errors))
