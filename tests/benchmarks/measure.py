"""Whole processes, timed side by side: interleaved runs, medians, peak memory of each child alone."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CKPT = (sys.executable, "-m", "ckpt_tools")


@dataclass(frozen=True, slots=True)
class Measured:
    """Median seconds of the wall and of the processor, and the greatest peak of resident memory in MiB."""

    wall: float
    processor: float
    memory: float


@contextmanager
def built(script: str, build: Callable[[Path], object], within: str | None = None) -> Iterator[Path]:
    """Give a scratch directory that a child has filled: this process stays small, for its children inherit its peak."""
    if sys.argv[1:2] == ["--build"]:
        build(Path(sys.argv[2]))
        sys.exit()
    with tempfile.TemporaryDirectory(dir=within) as scratch:
        subprocess.run([sys.executable, script, "--build", scratch], check=True)
        yield Path(scratch)


def runs(default: int) -> int:
    """Return how often to measure: the script's first argument."""
    return int(sys.argv[1]) if len(sys.argv) > 1 else default


def one(command: Sequence[str]) -> tuple[float, float, float, int]:
    """Run a command to its end; return wall seconds, processor seconds, peak MiB and the exit code."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": ""}
    quiet = os.open(os.devnull, os.O_RDWR)
    started = time.perf_counter()
    child = os.posix_spawn(
        command[0],
        list(command),
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, quiet, 1), (os.POSIX_SPAWN_DUP2, quiet, 2)],
    )
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - started
    os.close(quiet)
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)


def interleaved(
    commands: dict[str, Sequence[str]],
    count: int,
    codes: tuple[int, ...] = (0,),
    before: Callable[[], object] = lambda: None,
) -> dict[str, Measured]:
    """Run the commands by turns, once unmeasured and then ``count`` times; ``before`` each, something unmeasured."""
    seen: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in commands}
    for turn in range(count + 1):
        for name, command in commands.items():
            before()
            result = one(command)
            if result[3] not in codes:
                sys.exit(f"{name}: exit code {result[3]}: {' '.join(command)}")
            if turn:
                seen[name].append(result)
    return {
        name: Measured(
            statistics.median(row[0] for row in rows),
            statistics.median(row[1] for row in rows),
            max(row[2] for row in rows),
        )
        for name, rows in seen.items()
    }


def tell(title: str, results: dict[str, Measured], goals: Sequence[str] = ()) -> None:
    """Print a table; the last row is what the others are compared with."""
    print(f"\n{title}")
    last = list(results.values())[-1]
    for name, got in results.items():
        ratios = f"{last.wall / got.wall:7.2f} x as fast ({last.processor / got.processor:.2f} x by processor time)"
        compared = ratios if got is not last else ""
        print(
            f"  {name:<48}{got.wall * 1000:10.1f} ms wall {got.processor * 1000:10.1f} ms cpu"
            f" {got.memory:8.1f} MiB  {compared}"
        )
    for goal in goals:
        print(f"  goal: {goal}")
