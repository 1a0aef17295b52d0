"""Which fixture files are damaged: every one that an oracle reads, each content once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.differential.damages import container_of

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"

LEFT_OUT = {
    "training_args.bin": "an object of a class: no oracle here loads it, and no resume reads it",
    "all_results.json": "metrics for people: no loader reads it",
    "train_results.json": "likewise",
    "eval_results.json": "likewise",
    "integrity.json": "digests that Megatron-Core compares where it is asked to",
    "fixtures.json": "our own book-keeping",
}

OTHERS = {
    ".distcp": "many torch files in one, which mean nothing without their metadata: test_dcp",
    ".keras": "a zip, but none of torch's",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A fixture file; ``path`` is relative to ``fixtures/``."""

    path: str
    container: str

    @property
    def name(self) -> str:
        return Path(self.path).name

    def read(self) -> bytes:
        return (FIXTURES / self.path).read_bytes()


@cache
def subjects() -> tuple[Subject, ...]:
    found = []
    seen = set()
    for path in sorted(FIXTURES.rglob("*")):
        if not path.is_file() or "scripts" in path.parts or path.name in LEFT_OUT:
            continue
        if path.suffix in OTHERS:
            continue
        data = path.read_bytes()
        container = container_of(data)
        digest = (path.name, hashlib.sha256(data).digest())
        if container is not None and digest not in seen and not (container == "json" and path.suffix != ".json"):
            seen.add(digest)
            found.append(Subject(path.relative_to(FIXTURES).as_posix(), container))
    return tuple(found)


@cache
def by_container() -> dict[str, tuple[Subject, ...]]:
    return {
        container: tuple(subject for subject in subjects() if subject.container == container)
        for container in sorted({subject.container for subject in subjects()})
    }


SHARES = {"torch-zip": 11, "safetensors": 6, "torch-legacy": 2, "json": 1}
"""How the damages are dealt out, in twentieths."""


def deal(number: int) -> Subject:
    """Return the subject of damage ``number``; every file of a container gets its turn."""
    order = [container for container, share in SHARES.items() for _ in range(share)]
    container = order[number % len(order)]
    turn = number // len(order) * SHARES[container] + order[: number % len(order)].count(container)
    files = by_container()[container]
    return files[turn * 7919 % len(files)]
