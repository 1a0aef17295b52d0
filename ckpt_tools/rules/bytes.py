"""CK2xx: what the bytes of a file are, whatever it is called.

Each rule reports the problem of its own name that a container stated.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.containers.reader import KINDS
from ckpt_tools.model.checkpoint import Part
from ckpt_tools.model.findings import Severity
from ckpt_tools.rules.base import Context, Hit, Rule, relay, rule


@rule("CK201", "empty-file", Severity.ERROR, Part, impact=None)
def empty_file(part: Part, context: Context) -> Iterator[Hit]:
    """The file has 0 bytes.

    **Why it matters.** A crash before the data reached the disk leaves names without contents; after a power loss the
    file system truncates unfinished files to nothing. `torch.load` stops with an `EOFError` that has no text,
    safetensors with `header too small`.

    **How to repair.** The contents are gone. Fall back to an older checkpoint (`ckpt latest RUN`), or copy the file
    again if this is a copy.
    """
    yield from relay(part, context, "empty-file")


@rule("CK202", "zero-filled", Severity.ERROR, Part, impact=None)
def zero_filled(part: Part, context: Context) -> Iterator[Hit]:
    """The file has its size, and every byte that was looked at is zero.

    **Why it matters.** The file was given its size and the machine died before the pages reached the disk. `torch.load`
    then advises to switch `weights_only` off, which cannot help.

    **How to repair.** The contents are gone. Fall back to an older checkpoint, or copy the file again.
    """
    yield from relay(part, context, "zero-filled")


@rule("CK203", "file-cut-short", Severity.ERROR, Part, impact=None)
def file_cut_short(part: Part, context: Context) -> Iterator[Hit]:
    """The file ends before its own structure says that it does.

    **Why it matters.** A full disk, a killed save or an interrupted copy. For a torch file the loader says `failed
    finding central directory` or only `[Errno 22] Invalid argument`; for safetensors `incomplete metadata, file not
    fully covered`.

    **How to repair.** If this is a copy, copy it again. Otherwise fall back to an older checkpoint (`ckpt latest RUN`).
    """
    yield from relay(part, context, "file-cut-short")


@rule("CK204", "git-lfs-pointer", Severity.ERROR, Part, impact=None)
def git_lfs_pointer(part: Part, context: Context) -> Iterator[Hit]:
    """The file is a git-lfs pointer: a few lines of text that stand for the real file.

    **Why it matters.** The repository was cloned without git-lfs. Loaders say `header too large`, `invalid load key,
    'v'` or `Unsupported operand 118`.

    **How to repair.** Run `git lfs pull` in the clone.
    """
    yield from relay(part, context, "git-lfs-pointer")


@rule("CK205", "web-page", Severity.ERROR, Part, impact=None)
def web_page(part: Part, context: Context) -> Iterator[Hit]:
    """The file is a web page: a login, quota or error page was saved under the file's name.

    **Why it matters.** Loaders say `header too large`, `invalid load key, '<'` or `Unsupported operand 60`.

    **How to repair.** Download the file again with a client that is logged in and follows redirects.
    """
    yield from relay(part, context, "web-page")


@rule("CK206", "error-text", Severity.ERROR, Part, impact=None)
def error_text(part: Part, context: Context) -> Iterator[Hit]:
    """The file holds a server's error message in place of its contents.

    **Why it matters.** `{"error": "Repository not found"}`, `Entry not found` or `Access denied` was saved as if it
    were the file.

    **How to repair.** Download the file again; check name, revision and access rights.
    """
    yield from relay(part, context, "error-text")


@rule("CK207", "compressed-file", Severity.ERROR, Part, impact=None)
def compressed_file(part: Part, context: Context) -> Iterator[Hit]:
    """The file is an archive or compressed stream around the real one.

    **Why it matters.** No loader unpacks gzip, zstd or tar by itself; the message is `invalid load key, '\\x1f'` or
    `header too large`.

    **How to repair.** Unpack it first.
    """
    yield from relay(part, context, "compressed-file")


@rule("CK208", "wrong-format", Severity.ERROR, Part, impact=None)
def wrong_format(part: Part, context: Context) -> Iterator[Hit]:
    """The file is a valid file of another format than its name says.

    **Why it matters.** Loaders choose the reader by name: a PyTorch file called `model.safetensors` fails with
    `header too large`, a safetensors file called `.bin` with an unpickling error.

    **How to repair.** Rename the file to what it is, or convert it.
    """
    content = context.content(part)
    if content is None or not part.containers or content.container in part.containers or not content.readable:
        return
    if content.container in ("text", "jsonl") and set(part.containers) & {"text", "json", "jsonl"}:
        return
    expected = " or ".join(dict.fromkeys(KINDS[kind] for kind in part.containers))
    impact = context.damaged(part)
    yield Hit(
        f"this is {KINDS[content.container]}, under the name of another format",
        part.path,
        detail=(f"loaders read {expected} under this name",),
        severity=Severity.WARNING if impact.harmless else None,
        impact=impact,
    )


@rule("CK209", "unknown-bytes", Severity.ERROR, Part, impact=None)
def unknown_bytes(part: Part, context: Context) -> Iterator[Hit]:
    """The first bytes belong to no format that a checkpoint file has.

    **Why it matters.** The file was overwritten, encrypted, or its first block is damaged.

    **How to repair.** Copy the file again, or fall back to an older checkpoint.
    """
    yield from relay(part, context, "unknown-bytes")


RULES: tuple[Rule, ...] = (
    empty_file,
    zero_filled,
    file_cut_short,
    git_lfs_pointer,
    web_page,
    error_text,
    compressed_file,
    wrong_format,
    unknown_bytes,
)
