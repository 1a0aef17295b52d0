"""Where ckpt and the loader differ on purpose: each row with its reason, and nothing outside the two tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ckpt_tools.model.findings import Finding, Severity
from tests.differential.corpus import Subject
from tests.differential.damages import Damage


@dataclass(frozen=True, slots=True)
class Stricter:
    """The loader takes the file and ckpt calls it an error; ``covers`` looks at one error of it."""

    name: str
    reason: str
    covers: Callable[[Damage, Finding], bool]


@dataclass(frozen=True, slots=True)
class Milder:
    """The loader refuses the file and ckpt tells it without an error; ``covers`` looks at what was found."""

    name: str
    reason: str
    covers: Callable[[Subject, Sequence[Finding], str], bool]


def _all(names: frozenset[str], beginning: str | tuple[str, ...]) -> bool:
    return bool(names) and all(name.startswith(beginning) for name in names)


STRICTER: tuple[Stricter, ...] = (
    Stricter(
        "duplicate-names",
        "one tensor named twice: the loader takes the last entry and says nothing, so which bytes are used is luck",
        lambda damage, finding: finding.code == "CK219",
    ),
    Stricter(
        "dtype-as-object",
        'the JSON library of the reference reader takes {"F32": null} for "F32"; no writer spells a dtype so',
        lambda damage, finding: finding.code == "CK221" and "dtype" in damage.what and "{" in damage.what,
    ),
    Stricter(
        "compressed-weights",
        "torch.load takes it; transformers loads weights with mmap=True, which maps the compressed bytes as numbers",
        lambda damage, finding: finding.code == "CK226",
    ),
    Stricter(
        "record-twice",
        "two records of one name: torch's zip library searches by halves and may take either, so that an error of one "
        "of them is one of the file",
        lambda damage, finding: " twice" in damage.what and finding.code.startswith("CK2"),
    ),
    Stricter(
        "records-overlap",
        "a damaged local header moves the place of a record: torch reads its neighbour's bytes, and says nothing",
        lambda damage, finding: (
            finding.code == "CK225"
            and (
                "on the same bytes" in "".join(finding.detail)
                or (
                    finding.message.endswith("more records are damaged") and _all(damage.touched, ("local-", "padding"))
                )
            )
        ),
    ),
    Stricter(
        "as-a-directory",
        "a record that is marked as a directory: torch reads nothing of it, takes what was in memory, and says nothing",
        lambda damage, finding: finding.code == "CK225" and "marked as a directory" in "".join(finding.detail),
    ),
    Stricter(
        "two-sizes",
        "the two sizes of a record that is not compressed differ: torch compares them only where the record has no "
        "time, and reads by the second",
        lambda damage, finding: (
            finding.code in ("CK224", "CK225") and {"central-sizes", "central-times"} <= damage.touched
        ),
    ),
    Stricter(
        "end-in-front",
        "torch looks back for the end record and takes it wherever it lies, in front of the directory too: no writer "
        "leaves it there, and what it was written over is lost",
        lambda damage, finding: (
            finding.code == "CK203"
            and "end" in damage.touched
            and "overwritten rather than lost" in "".join(finding.detail)
        ),
    ),
    Stricter(
        "old-storage-never-filled",
        "a legacy file whose list of storages lacks one, or has it in another size: torch makes it and never fills it, "
        "so that its numbers are what was in memory before",
        lambda damage, finding: finding.code in ("CK222", "CK223", "CK236") and damage.data.startswith(b"\x80"),
    ),
    Stricter(
        "version-inflated",
        "the version record marked as compressed: torch inflates its two bytes to something, and takes that",
        lambda damage, finding: finding.code == "CK225" and "/version should unpack" in "".join(finding.detail),
    ),
    Stricter(
        "leads-outside",
        "records named to be unpacked elsewhere: torch never unpacks, and never writes such a name",
        lambda damage, finding: finding.code == "CK704",
    ),
    Stricter(
        "more-than-the-loader",
        "CK3xx and CK5xx judge what the file says against what a trainer does with it; torch.load only decodes it. "
        "Their oracle is the real resume, in test_resume.py",
        lambda damage, finding: finding.code.startswith(("CK3", "CK5")),
    ),
)

MILDER: tuple[Milder, ...] = (
    Milder(
        "plain-loops-load-as-they-like",
        "what weights_only=True refuses is a note in the file of a plain loop, whose own code may allow it, and in "
        "those of libraries that load without it",
        lambda subject, findings, refusal: (
            "Weights only load failed" in refusal
            and any(finding.code == "CK701" and finding.severity is Severity.NOTE for finding in findings)
        ),
    ),
    Milder(
        "names-of-their-own",
        "which classes DeepSpeed and Megatron-LM have changes with their versions: any name of theirs is taken for one",
        lambda subject, findings, refusal: (
            subject.path.startswith(("deepspeed/", "megatron/"))
            and re.search(r"Unsupported global: GLOBAL (deepspeed|megatron)\.", refusal) is not None
        ),
    ),
    Milder(
        "numpy-1-under-numpy-2",
        "an rng file of numpy 1 is healthy where it was written, and a note says that numpy 2 refuses it",
        lambda subject, findings, refusal: (
            "Weights only load failed" in refusal and any(finding.code == "CK703" for finding in findings)
        ),
    ),
)


def stricter(damage: Damage, finding: Finding) -> str | None:
    """Return the name of the row that covers an error, None for a false alarm."""
    return next((row.name for row in STRICTER if row.covers(damage, finding)), None)


def milder(subject: Subject, findings: Sequence[Finding], refusal: str) -> str | None:
    """Return the name of the row that covers a file without errors, None for a miss."""
    return next((row.name for row in MILDER if row.covers(subject, findings, refusal)), None)
