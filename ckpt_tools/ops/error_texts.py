"""What loaders print when the bytes of a file are wrong, in their old words and their new ones.

The first row that fits is the answer; a ``general`` row answers only where no other does.  ``{path}`` in a command is
the checkpoint or file that the pasted text names, ``{run}`` the directory above it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

VERIFY = "ckpt verify {path}"
LATEST = "ckpt latest {run}"
INFO = "ckpt info {path}"


@dataclass(frozen=True)
class ErrorText:
    """One cause.  Any of ``patterns`` recognises it; ``rules`` are the names of the rules that look for it."""

    name: str
    title: str
    patterns: tuple[str, ...]
    meaning: tuple[str, ...]
    commands: tuple[str, ...] = (VERIFY,)
    rules: tuple[str, ...] = ()
    general: bool = False

    @cached_property
    def expressions(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in self.patterns)

    def fits(self, text: str) -> bool:
        return any(expression.search(text) for expression in self.expressions)


_NEVER = "do not set weights_only=False, although torch advises it: it cannot help here, and switches the safety off"
_AGAIN = "copy or download the file again, or fall back to an older checkpoint"
_NUMPY = r"numpy(?:\.|\\\.)_?core\.multiarray\.(?:_reconstruct|scalar)|numpy\.(?:ndarray|dtype)|numpy\.dtypes\."

FILES: tuple[ErrorText, ...] = (
    ErrorText(
        "git-lfs-pointer",
        "a git-lfs pointer lies in place of the file",
        (
            r"invalid load key,? '?v'?\b",
            r"unsupported operand 118\b",
            r"version https://git-lfs",
        ),
        (
            "the file is the 130-byte text that stands for a large file in git; the real one was never fetched",
            "118 is the code of the letter v, with which such a pointer begins",
            _NEVER,
        ),
        ("git lfs pull", VERIFY),
        ("git-lfs-pointer",),
    ),
    ErrorText(
        "web-page",
        "a web page was saved in place of the file",
        (r"invalid load key,? '?<'?", r"unsupported operand 60\b"),
        (
            "the download got an HTML page: a login, a quota, or an error page",
            "60 is the code of <, with which HTML begins",
            _NEVER,
        ),
        (VERIFY,),
        ("web-page",),
    ),
    ErrorText(
        "server-message",
        "a server's error message, or JSON, was saved in place of the file",
        (r"invalid load key,? '?[{EA]'?", r"unsupported operand (?:123|69|65)\b"),
        (
            'the file begins with "{", "Entry not found" or "Access denied": an answer of the server, not the file',
            _NEVER,
        ),
        (VERIFY,),
        ("error-text",),
    ),
    ErrorText(
        "compressed",
        "the file is compressed",
        (r"invalid load key,? '?\\x1f'?", r"unsupported operand 31\b"),
        ("the file is gzip; loaders do not unpack it", _NEVER),
        ("gunzip FILE", VERIFY),
        ("compressed-file",),
    ),
    ErrorText(
        "zero-filled",
        "the file is filled with zeros",
        (
            r"invalid load key,? '?\\x00'?",
            r"filename 'storages' not found",
            r"unsupported operand 0\b",
            r"cannot use ``?weights_only=True``? with files saved in the legacy \.tar format",
            r"invalid JSON in header: EOF while parsing a value at line 1 column 0",
        ),
        (
            "a crash or power loss before the data reached the disk leaves a file of the right size that is all zeros",
            'a "legacy .tar" file is one that torch wrote before 2018; if yours is younger, it holds zeros',
            _AGAIN,
            _NEVER,
        ),
        (VERIFY, LATEST),
        ("zero-filled",),
    ),
    ErrorText(
        "numpy-names",
        "the file was written under numpy 2 and is read under numpy 1",
        (r"no module named '?numpy\._core",),
        (
            "the file is healthy: pickles written under numpy 2 name numpy._core, which is new in numpy 1.26.1",
            "install numpy 1.26.1 or newer",
        ),
        (INFO, "pip install 'numpy>=1.26.1'"),
    ),
    ErrorText(
        "weights-only-numpy",
        "the file is healthy; torch 2.6 and newer refuses its numpy objects by default",
        (rf"weights[ _]only[^\0]{{0,4000}}?(?:{_NUMPY})", rf"unsupported global: GLOBAL (?:{_NUMPY})"),
        (
            "an rng file holds the state of numpy's generator, which weights_only=True does not allow by itself",
            "transformers 4.57 and newer allow these names themselves; older ones stop at this file",
            "resuming without the rng file works too: only the order of random numbers is lost",
        ),
        (VERIFY, INFO),
    ),
    ErrorText(
        "weights-only-operand",
        "the file is no checkpoint at all, or is damaged",
        (r"unsupported operand \d+", r"invalid load key"),
        (
            "the first bytes are not those of a pickle: the file is something else under this name",
            _NEVER,
        ),
        (VERIFY,),
        ("unknown-bytes",),
        general=True,
    ),
    ErrorText(
        "weights-only-global",
        "the pickle names classes that torch does not load by default",
        (r"unsupported (?:global|class)", r"weights only load failed", r"was not an allowed global"),
        (
            "torch 2.6 and newer loads with weights_only=True; the file holds objects of other classes",
            "training_args.bin always does, and no resume reads it",
            "look at the names before you allow them: whoever wrote the file chooses what they do",
        ),
        (VERIFY, INFO),
        general=True,
    ),
    ErrorText(
        "zip-cut",
        "a PyTorch file is cut short",
        (
            r"failed finding central directory",
            r"invalid header or archive is corrupted",
            r"not a ZIP archive",
            r"\[errno 22\] invalid argument",
            r"file in archive is not in a subdirectory",
        ),
        (
            "the list of contents is the last thing in the file, and it is not there: an interrupted save or copy",
            '"Invalid argument" without a file name is what torch prints for small files (scheduler.pt, rng_state.pth)',
            _AGAIN,
        ),
        (VERIFY, LATEST),
        ("file-cut-short",),
    ),
    ErrorText(
        "zip-record",
        "a record inside a PyTorch file is missing or short",
        (
            r"failed locating file \S+",
            r"record size \(?\d+ bytes\)? does not match",
        ),
        ("the file was rewritten or damaged in the middle; a tensor in it cannot be read", _AGAIN),
        (VERIFY, LATEST),
        ("record-missing", "record-size-mismatch"),
    ),
    ErrorText(
        "legacy-cut",
        "a PyTorch file is cut short",
        (r"unexpected EOF",),
        ("the file ends before its tensors do: an interrupted save or copy", _AGAIN),
        (VERIFY, LATEST),
        ("file-cut-short",),
    ),
    ErrorText(
        "safetensors-incomplete",
        "a safetensors file is cut short, or has bytes too many",
        (r"MetadataIncompleteBuffer", r"file not fully covered"),
        (
            "its header promises another size than the file has; the difference tells which",
            _AGAIN,
        ),
        (VERIFY, LATEST),
        ("file-cut-short", "trailing-bytes"),
    ),
    ErrorText(
        "safetensors-header-large",
        "the file is not safetensors",
        (r"HeaderTooLarge", r"header too large"),
        (
            "its first eight bytes make no sense as a length: a git-lfs pointer, a web page, or a PyTorch file",
            "the limit of 100 MB that the message speaks of has nothing to do with it",
        ),
        (VERIFY,),
        ("git-lfs-pointer", "wrong-format"),
    ),
    ErrorText(
        "safetensors-header-cut",
        "a safetensors file is cut inside its header",
        (r"InvalidHeaderLength", r"invalid header length"),
        ("nothing but the beginning is there: an interrupted save or copy", _AGAIN),
        (VERIFY, LATEST),
        ("file-cut-short",),
    ),
    ErrorText(
        "safetensors-header-small",
        "the file is empty, or nearly so",
        (r"HeaderTooSmall", r"header too small"),
        ("a safetensors file has at least eight bytes; 0 bytes are what a crash or a full disk leaves", _AGAIN),
        (VERIFY, LATEST),
        ("empty-file",),
    ),
    ErrorText(
        "safetensors-header-json",
        "the header of a safetensors file is not what it should be",
        (
            r"InvalidHeaderDeserialization",
            r"invalid JSON in header",
            r"invalid UTF-?8 in header",
            r"\bInvalidHeader(?:Start)?\b",
            r"invalid start character in header",
        ),
        (
            "the header is filled with zeros or damaged, or names a dtype that your safetensors is too old to know",
            _AGAIN,
        ),
        (VERIFY, "pip install -U safetensors"),
        ("zero-filled", "header-unreadable", "unknown-dtype"),
    ),
    ErrorText(
        "safetensors-tensor",
        "the header of a safetensors file contradicts itself",
        (
            r"TensorInvalidInfo",
            r"InvalidOffset",
            r"invalid shape, data type, or offset for tensor",
            r"invalid offset for tensor",
        ),
        ("a tensor's shape, dtype and place do not fit together: damage, or a faulty writer", _AGAIN),
        (VERIFY,),
        ("tensor-size-mismatch", "tensor-overlap", "tensor-gap"),
    ),
    ErrorText(
        "pickle-cut",
        "a pickle is cut short",
        (r"pickle data was truncated",),
        ("the file ends in the middle: an interrupted save or copy", _AGAIN),
        (VERIFY, LATEST),
        ("pickle-damaged",),
    ),
    ErrorText(
        "empty-file",
        "the file is empty",
        (r"\bEOFError\b", r"ran out of input"),
        ("torch stops at a file of 0 bytes with an EOFError that says nothing more", _AGAIN),
        (VERIFY, LATEST),
        ("empty-file",),
        general=True,
    ),
    ErrorText(
        "json-damaged",
        "a JSON file of the checkpoint is empty or cut short",
        (r"JSONDecodeError", r"Expecting value: line 1 column 1", r"is not a valid JSON file"),
        ("a killed save cuts text files too; configurations can be copied from another checkpoint of the run",),
        (VERIFY, LATEST),
        ("json-damaged",),
        general=True,
    ),
    ErrorText(
        "zip-unreadable",
        "a PyTorch file is damaged",
        (r"PytorchStreamReader failed",),
        ("its list of contents, or a record that it names, cannot be read", _AGAIN),
        (VERIFY, LATEST),
        ("file-cut-short", "record-missing"),
        general=True,
    ),
)
