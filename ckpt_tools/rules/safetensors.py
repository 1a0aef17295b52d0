"""CK2xx: headers of safetensors files, by the rules of the reference reader.

Each rule reports the problem of its own name that a container stated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckpt_tools.model.checkpoint import Part
from ckpt_tools.model.findings import Fix, Severity
from ckpt_tools.rules.base import Context, Hit, Rule, relay, rule


@rule("CK210", "header-unreadable", Severity.ERROR, Part, impact=None)
def header_unreadable(part: Part, context: Context) -> Iterator[Hit]:
    """The header of a safetensors file is not the JSON object it has to be.

    **Why it matters.** The header is the only place that says what the bytes mean. Loaders refuse the whole file.

    **How to repair.** Copy the file again, or fall back to an older checkpoint.
    """
    yield from relay(part, context, "header-unreadable")


@rule("CK211", "header-too-large", Severity.ERROR, Part, impact=None)
def header_too_large(part: Part, context: Context) -> Iterator[Hit]:
    """The first 8 bytes of a safetensors file claim a header above the limit of 100,000,000 bytes.

    **Why it matters.** The reference reader refuses it before looking further; mostly the file is not safetensors at
    all.

    **How to repair.** Look at the first bytes: `ckpt info FILE`.
    """
    yield from relay(part, context, "header-too-large")


@rule("CK212", "trailing-bytes", Severity.ERROR, Part, impact=None)
def trailing_bytes(part: Part, context: Context) -> Iterator[Hit]:
    """A safetensors file goes on after the last tensor that its header names.

    **Why it matters.** The reference reader demands that the header covers the file to the last byte and refuses it
    with
    `incomplete metadata, file not fully covered`, the same words as for a file cut short.

    **How to repair.** Nothing is lost: cut the file to the length that the finding names.
    """
    for hit in relay(part, context, "trailing-bytes"):
        fix = Fix("cut off what follows the data", True, "cut-trailing", {"path": part.path}) if hit.help else None
        yield replace(hit, fix=fix, help=None if fix else hit.help)


@rule("CK214", "tensor-size-mismatch", Severity.ERROR, Part, impact=None)
def tensor_size_mismatch(part: Part, context: Context) -> Iterator[Hit]:
    """A tensor's shape and dtype do not fit the bytes that the header gives it.

    **Why it matters.** The reference reader refuses the whole file.

    **How to repair.** The header was edited or damaged; copy the file again or fall back.
    """
    yield from relay(part, context, "tensor-size-mismatch")


@rule("CK215", "tensor-overlap", Severity.ERROR, Part, impact=None)
def tensor_overlap(part: Part, context: Context) -> Iterator[Hit]:
    """Two tensors of a safetensors file claim the same bytes.

    **Why it matters.** The format forbids it and the reference reader refuses the file.

    **How to repair.** The header was edited or damaged; copy the file again or fall back.
    """
    yield from relay(part, context, "tensor-overlap")


@rule("CK216", "tensor-gap", Severity.ERROR, Part, impact=None)
def tensor_gap(part: Part, context: Context) -> Iterator[Hit]:
    """There are bytes between two tensors of a safetensors file that belong to neither.

    **Why it matters.** The format forbids holes and the reference reader refuses the file.

    **How to repair.** Load the tensors with a tolerant reader and save them again, or fall back.
    """
    yield from relay(part, context, "tensor-gap")


@rule("CK217", "tensor-out-of-range", Severity.ERROR, Part, impact=None)
def tensor_out_of_range(part: Part, context: Context) -> Iterator[Hit]:
    """A tensor of a safetensors file begins or ends outside the data, or ends before it begins.

    **Why it matters.** The reference reader refuses the whole file.

    **How to repair.** Copy the file again or fall back.
    """
    yield from relay(part, context, "tensor-out-of-range")


@rule("CK218", "unknown-dtype", Severity.ERROR, Part, impact=None)
def unknown_dtype(part: Part, context: Context) -> Iterator[Hit]:
    """A tensor has a dtype that the safetensors format does not know.

    **Why it matters.** A reader that does not know one dtype refuses the whole file. A file of a newer library looks
    like this to an older one.

    **How to repair.** Upgrade safetensors if the dtype is a new one; otherwise the header is damaged.
    """
    yield from relay(part, context, "unknown-dtype")


@rule("CK219", "duplicate-tensor", Severity.ERROR, Part, impact=None)
def duplicate_tensor(part: Part, context: Context) -> Iterator[Hit]:
    """The header of a safetensors file names one tensor twice.

    **Why it matters.** Loaders take the last entry and say nothing, so that which bytes are used is a matter of luck.

    **How to repair.** Find out which writer made the file and write it again.
    """
    yield from relay(part, context, "duplicate-tensor")


@rule("CK220", "metadata-invalid", Severity.ERROR, Part, impact=None)
def metadata_invalid(part: Part, context: Context) -> Iterator[Hit]:
    """`__metadata__` of a safetensors file is not an object of texts.

    **Why it matters.** The reference reader refuses the whole file for it.

    **How to repair.** Rewrite the header with texts as values; no tensor byte needs to change.
    """
    yield from relay(part, context, "metadata-invalid")


@rule("CK221", "tensor-entry-invalid", Severity.ERROR, Part, impact=None)
def tensor_entry_invalid(part: Part, context: Context) -> Iterator[Hit]:
    """A tensor's entry in a safetensors header lacks a field or has one of the wrong type.

    **Why it matters.** The reference reader refuses the whole file.

    **How to repair.** The header was edited or damaged; copy the file again or fall back.
    """
    yield from relay(part, context, "tensor-entry-invalid")


RULES: tuple[Rule, ...] = (
    header_unreadable,
    header_too_large,
    trailing_bytes,
    tensor_size_mismatch,
    tensor_overlap,
    tensor_gap,
    tensor_out_of_range,
    unknown_dtype,
    duplicate_tensor,
    metadata_invalid,
    tensor_entry_invalid,
)
