"""Named damages: each takes a directory that is a copy and leaves it as a crash, a copy or a hand would.

``without("a", "b")`` and its like make a damage; the rest are damages.  A damage works on a checkpoint's directory
unless its text says a run's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]

LAST_HOUR, LAST_WEEK = 3600, 7 * 24 * 3600
NOW_S = 1_800_000_000


def nothing(directory: Path) -> None:
    """Leave it as it is."""


def together(*damages: Damage) -> Damage:
    """One damage after the other."""

    def done(directory: Path) -> None:
        for damage in damages:
            damage(directory)

    return done


def inside(name: str, damage: Damage) -> Damage:
    """The damage to a directory below, for damages to one checkpoint of a run."""
    return lambda directory: damage(directory / name)


def without(*patterns: str) -> Damage:
    """Remove what fits the globs; each has to fit something."""

    def done(directory: Path) -> None:
        for pattern in patterns:
            found = list(directory.glob(pattern))
            assert found, f"nothing called {pattern} in {sorted(path.name for path in directory.iterdir())}"
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return done


def only(*names: str) -> Damage:
    """Remove every file but these."""

    def done(directory: Path) -> None:
        for path in directory.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return done


def with_file(name: str, data: bytes = b"x") -> Damage:
    def done(directory: Path) -> None:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)

    return done


def with_copy(name: str, target: str) -> Damage:
    """Copy a file or directory inside the directory."""

    def done(directory: Path) -> None:
        source = directory / name
        shutil.copytree(source, directory / target) if source.is_dir() else shutil.copy2(source, directory / target)

    return done


def renamed(name: str, target: str) -> Damage:
    return lambda directory: (directory / name).rename(directory / target) and None


def with_json(name: str, **values: Any) -> Damage:
    """Set top-level keys of a JSON file."""

    def done(directory: Path) -> None:
        state = json.loads((directory / name).read_text(encoding="utf-8"))
        state.update(values)
        (directory / name).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    return done


def cut(name: str, fraction: float = 0.5) -> Damage:
    """Keep the first part of a file."""
    return lambda directory: os.truncate(directory / name, int((directory / name).stat().st_size * fraction))


def emptied_file(name: str) -> Damage:
    return lambda directory: os.truncate(directory / name, 0)


def directory_in_place_of(name: str) -> Damage:
    def done(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return done


def pipe_in_place_of(name: str) -> Damage:
    def done(directory: Path) -> None:
        (directory / name).unlink()
        os.mkfifo(directory / name)

    return done


def dangling_in_place_of(name: str) -> Damage:
    def done(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).symlink_to("../blobs/gone")

    return done


def loop_in_place_of(name: str) -> Damage:
    def done(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).symlink_to(name)

    return done


def emptied(directory: Path) -> None:
    """Remove every file: a save killed at once, or a deletion that did not end."""
    only()(directory)


def linked_to_blobs(directory: Path) -> None:
    """Make every file a link into ``blobs/`` beside the directory, as a Hugging Face cache has it."""
    blobs = directory.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(directory.iterdir())):
        path.rename(blobs / f"{number:040x}")
        path.symlink_to(f"../blobs/{number:040x}")


def killed_before_the_state(directory: Path) -> None:
    """What a save killed in its last moment leaves."""
    without("trainer_state.json")(directory)


def killed_after_the_weights(directory: Path) -> None:
    """What a save killed after the arguments leaves."""
    without("optimizer.pt", "scheduler.pt", "rng_state*.pth", "trainer_state.json")(directory)


def stopped_by_sigterm(directory: Path) -> None:
    with_file("checkpoint-is-incomplete.txt", b"")(directory)


def left_temporary(directory: Path) -> None:
    """What safetensors 0.8 leaves when it is killed."""
    shutil.copy2(directory / "model.safetensors", directory / ".tmpAb3xZ9")


def aged(name: str, seconds: int) -> Damage:
    """Set the time of a file or directory to so long before ``NOW_S``."""
    return lambda directory: os.utime(directory / name, (NOW_S - seconds, NOW_S - seconds))
