"""CK2xx: records and pickles of torch files.

Each rule reports the problem of its own name that a container stated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import HARMLESS, Severity
from ckpt_tools.rules.base import Context, Hit, Rule, relay, rule


@rule("CK222", "record-missing", Severity.ERROR, Part, impact=None)
def record_missing(part: Part, context: Context) -> Iterator[Hit]:
    """A torch file lacks a record that its pickle refers to.

    **Why it matters.** `torch.load` stops with `failed locating file data/N: file not found`.

    **How to repair.** Copy the file again, or fall back.
    """
    yield from relay(part, context, "record-missing")


@rule("CK223", "record-size-mismatch", Severity.ERROR, Part, impact=None)
def record_size_mismatch(part: Part, context: Context) -> Iterator[Hit]:
    """A record of a torch file is longer or shorter than the storage it holds.

    **Why it matters.** `torch.load` says `record size does not match`; with `mmap=True` it reads the neighbour's bytes
    instead and says nothing.

    **How to repair.** Copy the file again, or fall back.
    """
    yield from relay(part, context, "record-size-mismatch")


@rule("CK224", "pickle-damaged", Severity.ERROR, Part, impact=None)
def pickle_damaged(part: Part, context: Context) -> Iterator[Hit]:
    """The pickle inside the file cannot be followed to its end.

    **Why it matters.** The pickle says which tensors there are; without it the loader raises an `UnpicklingError`.

    **How to repair.** Copy the file again, or fall back.
    """
    yield from relay(part, context, "pickle-damaged")


@rule("CK225", "zip-damaged", Severity.ERROR, Part, impact=None)
def zip_damaged(part: Part, context: Context) -> Iterator[Hit]:
    """The zip directory of a torch file contradicts its records.

    **Why it matters.** Offsets or names were damaged; what a loader reads then depends on which copy it believes.

    **How to repair.** Copy the file again, or fall back.
    """
    yield from relay(part, context, "zip-damaged")


@rule("CK226", "zip-compressed", Severity.WARNING, Part, impact=None)
def zip_compressed(part: Part, context: Context) -> Iterator[Hit]:
    """A torch file was packed again with compression.

    **Why it matters.** `torch.load` reads it, `torch.load(mmap=True)` maps the compressed bytes and returns wrong
    numbers without a word. transformers loads weights with `mmap`: for their tensors it is an error.

    **How to repair.** Load it without `mmap` and save it again.
    """
    content = context.content(part)
    packed = content.facts.get("compressed", ()) if content is not None else ()
    mapped = part.role is Role.WEIGHTS and any("/data/" in name for name in packed)
    for hit in relay(part, context, "zip-compressed", harmless=not mapped):
        yield replace(hit, severity=Severity.ERROR) if mapped else hit


@rule("CK227", "record-duplicate", Severity.WARNING, Part, impact=None)
def record_duplicate(part: Part, context: Context) -> Iterator[Hit]:
    """A torch file has two records of one name.

    **Why it matters.** Which of them a reader takes is its own affair: torch searches the names by halves and takes the
    one it meets. This tool follows torch. torch itself never writes that.

    **How to repair.** Load it and save it again.
    """
    yield from relay(part, context, "record-duplicate", harmless=True)


@rule("CK228", "record-invalid", Severity.ERROR, Part, impact=None)
def record_invalid(part: Part, context: Context) -> Iterator[Hit]:
    """A torch file lacks its `version` record, or `version` or `byteorder` says something unknown.

    **Why it matters.** `torch.load` refuses the file.

    **How to repair.** Copy the file again; a much newer torch may have written it.
    """
    yield from relay(part, context, "record-invalid")


@rule("CK229", "record-outside-root", Severity.ERROR, Part, impact=None)
def record_outside_root(part: Part, context: Context) -> Iterator[Hit]:
    """A torch file has records outside the one directory that all of them belong in.

    **Why it matters.** `torch.load` refuses it with `not in a subdirectory`; mostly the file was packed again by hand.

    **How to repair.** Pack it again with the directory kept.
    """
    yield from relay(part, context, "record-outside-root")


@rule("CK213", "bytes-around-archive", Severity.WARNING, Part, impact=None)
def bytes_around_archive(part: Part, context: Context) -> Iterator[Hit]:
    """A torch file has bytes before or after its zip archive.

    **Why it matters.** Some tens of thousands of bytes behind the directory are tolerated by `torch.load`, more
    are not; bytes in front make it take the file for an ancient pickle. Either way something wrote into the file that
    was not torch.

    **How to repair.** Copy the file again, or load and save it with the same torch version.
    """
    content = context.content(part)
    read = content is not None and content.readable
    for hit in relay(part, context, "bytes-around-archive"):
        yield replace(hit, impact=HARMLESS) if read else replace(hit, severity=Severity.ERROR)


@rule("CK236", "tensor-view-out-of-range", Severity.ERROR, Part, impact=None)
def tensor_view_out_of_range(part: Part, context: Context) -> Iterator[Hit]:
    """A tensor of a torch file reaches outside the storage it lives in.

    **Why it matters.** The loader refuses it; the pickle or the record is damaged.

    **How to repair.** Copy the file again, or fall back.
    """
    yield from relay(part, context, "tensor-view-out-of-range")


RULES: tuple[Rule, ...] = (
    record_missing,
    record_size_mismatch,
    pickle_damaged,
    zip_damaged,
    zip_compressed,
    record_duplicate,
    record_invalid,
    record_outside_root,
    bytes_around_archive,
    tensor_view_out_of_range,
)
