"""A small checkpoint, and one plan of every kind on it."""

from __future__ import annotations

import os
from pathlib import Path

from ckpt_tools.core.listing import SIDECAR, scan
from ckpt_tools.model.plan import Action, AppendBytes, CutFile, MoveFile, PatchBytes, Plan, TruncateTo, WriteFile

DAY = 86_400 * 10**9
SOME = bytes(range(256)) * 12
"""Six sectors."""


def make(root: Path) -> Path:
    """Write the checkpoint; its files and directories are a day apart in time."""
    (root / "more" / "deep").mkdir(parents=True)
    (root / "optimizer.pt").write_bytes(SOME)
    (root / "scheduler.pt").write_bytes(SOME[::-1][:1500])
    (root / "state.json").write_bytes(b'{"step": 1}' + b" " * 700)
    (root / "more" / "rng.pt").write_bytes(b"rng" * 300)
    (root / "more" / "deep" / "x").write_bytes(SOME[::-1][700:1500])
    for number, path in enumerate(sorted([root, *root.rglob("*")], reverse=True)):
        os.utime(path, ns=(DAY, (number + 10) * DAY + 123_456_789))
    return root


def _patch(path: str, offset: int, old: bytes, new: bytes) -> PatchBytes:
    assert old[offset : offset + len(new)] != new
    return PatchBytes(path, offset, old[offset : offset + len(new)], new)


PATCHES = (_patch("optimizer.pt", 500, SOME, b"NEWNEW" * 200), _patch("optimizer.pt", 2000, SOME, b"lr"))
GROWTH = (
    AppendBytes("optimizer.pt", len(SOME), b"tail" * 400),
    PatchBytes("optimizer.pt", 3000, SOME[3000:3004], bytes(4)),
)
STATE = b'{"step": 1}' + b" " * 700

PLANS: dict[str, tuple[Action, ...]] = {
    "patch": PATCHES,
    "append": GROWTH,
    "truncate": (TruncateTo("optimizer.pt", 100, SOME[100:]), AppendBytes("optimizer.pt", 100, b"other" * 150)),
    "write": (WriteFile("state.json", b'{"step": 2, "log": []}' * 60, STATE),),
    "new": (WriteFile("made/for/it.json", b"new" * 300, None), WriteFile("top.json", b"", None)),
    "move": (
        MoveFile("more", "less"),
        _patch("less/rng.pt", 3, b"rng" * 300, b"RNG"),
        MoveFile("scheduler.pt", "scheduler.old"),
    ),
    "nested": (
        _patch("more/deep/x", 5, SOME[::-1][700:1500], b"step"),
        WriteFile("more/rng.pt", b"deeper", b"rng" * 300),
        MoveFile("more/deep", "more/deeper"),
        MoveFile("more", "less"),
    ),
    "quarantine": (
        MoveFile("optimizer.pt", ".ckpt-tools/quarantine/optimizer.pt"),
        WriteFile("optimizer.pt", b"rebuilt" * 200, None),
        WriteFile("more/rng.pt", b"good" * 200, b"rng" * 300),
    ),
    "cut": (
        MoveFile("more/deep/x", ".ckpt-tools/quarantine/scheduler.pt.tail"),
        CutFile("scheduler.pt", 700, 800, ".ckpt-tools/quarantine/scheduler.pt.tail"),
    ),
    "several": (
        *PATCHES[1:],
        *GROWTH,
        _patch("scheduler.pt", 0, SOME[::-1], b"base_lrs"),
        WriteFile("state.json", b"{}", STATE),
        WriteFile("more/added.json", b"[]", None),
    ),
    "linked": (
        _patch("linked.pt", 10, SOME, b"mine"),
        AppendBytes("linked.pt", len(SOME), b"more"),
    ),
}


def prepare(root: Path, name: str) -> Plan:
    """Make the checkpoint that a plan is for, and return the plan, guarded."""
    make(root)
    if name == "linked":
        times = os.stat(root)
        (root.parent / f"{root.name}-other").write_bytes(SOME)
        os.link(root.parent / f"{root.name}-other", root / "linked.pt")
        os.utime(root, ns=(times.st_atime_ns, times.st_mtime_ns))
    return Plan.of(f"the {name} edit", PLANS[name], scan(root).files)


def times(root: Path) -> dict[str, int]:
    return {
        path.relative_to(root).as_posix(): path.lstat().st_mtime_ns
        for path in (root, *root.rglob("*"))
        if SIDECAR not in path.parts
    }
