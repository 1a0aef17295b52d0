"""Whatever lies in a directory: findings or one CkptError, never another exception, never a hang, nothing outside."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.cli import main
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Severity
from tests.robustness.support import refused, tried, verified

Copy = Callable[..., Path]

RUNS = (
    "trainer5-full",
    "trainer5-sharded",
    "trainer5-lora",
    "trainer4-bin",
    "accelerate/auto",
    "llama-factory/reward-lora",
)
SEEDS = range(10)


def _random_bytes(draw: random.Random, path: Path) -> None:
    path.write_bytes(draw.randbytes(draw.choice((0, 1, 7, 8, 100, 5000))))


def _random_text(draw: random.Random, path: Path) -> None:
    path.write_text(
        draw.choice(("{", "[]", "null", "[" * 50_000, '{"a":' * 5000, "\0", "9" * 5000, '"\\ud800"', "{}{}", "NaN"))
    )


def _random_pickle(draw: random.Random, path: Path) -> None:
    path.write_bytes(
        b"\x80"
        + bytes([draw.choice((2, 4, 5, 200))])
        + bytes(draw.choices(b"()]}0123NKMJXcRbuae.q\x85\x86\x87\x88\x94\x8c", k=200))
    )


def _pipe(draw: random.Random, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _socket(draw: random.Random, path: Path) -> None:
    path.unlink()
    home = os.getcwd()
    os.chdir(path.parent)  # a socket's path has to be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(home)


def _loop(draw: random.Random, path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _link_up(draw: random.Random, path: Path) -> None:
    path.unlink()
    path.symlink_to(draw.choice(("..", ".", "/", "nowhere", "/dev/zero", "/dev/null", "/proc/self/mem")))


def _directory(draw: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / path.name).write_bytes(b"inside")


def _gone(draw: random.Random, path: Path) -> None:
    path.unlink()


def _other(draw: random.Random, path: Path) -> None:
    others = [other for other in path.parent.iterdir() if other.is_file() and other != path]
    if others:
        shutil.copyfile(draw.choice(sorted(others)), path)


def _cut(draw: random.Random, path: Path) -> None:
    os.truncate(path, draw.randint(0, path.stat().st_size))


def _flipped(draw: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    for _ in range(draw.choice((1, 10, 100))):
        data[draw.randrange(len(data))] = draw.randrange(256)
    path.write_bytes(data)


CHANGES = (
    *(_random_bytes, _random_text, _random_pickle, _pipe, _socket, _loop, _link_up, _directory, _gone, _other, _cut),
    *(_flipped, _flipped),
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("run", RUNS)
def test_a_fuzzed_run_never_raises_anything_but_ckpt_errors(run: str, copy_of: Copy) -> None:
    for seed in SEEDS:
        draw = random.Random(f"{run}#{seed}")
        place = copy_of(run, f"{seed}/{Path(run).name}")
        files = [path for path in sorted(place.rglob("*")) if path.is_file()]
        for path in draw.sample(files, draw.randint(1, min(6, len(files)))):
            if path.is_file() and not path.is_symlink():
                draw.choice(CHANGES)(draw, path)
        tried(place)
        for directory in sorted({path.parent for path in files}):
            tried(directory)
        for path in files[:6]:
            if not path.is_dir():  # a link to `/` is a directory of its own
                tried(path)
        shutil.rmtree(place)


@pytest.mark.parametrize("verb", ["verify", "latest", "info"])
def test_the_command_ends_with_a_known_code_on_any_directory(
    verb: str, copy_of: Copy, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed in range(12):
        draw = random.Random(f"{verb}#{seed}")
        place = copy_of("trainer5-full", f"{seed}/run")
        files = [path for path in sorted(place.rglob("*")) if path.is_file()]
        for path in draw.sample(files, 5):
            draw.choice(CHANGES)(draw, path)
        code = main([verb, str(place)])
        shown = capfd.readouterr()
        assert code in (0, 1, 3, 4), (seed, code, shown.err)
        assert "Traceback" not in shown.err + shown.out
        assert "rule-crashed" not in shown.err + shown.out


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "model.safetensors", "trainer_state.json", "rng_state.pth", "config.json"]
)
def test_a_file_that_cannot_be_read_is_told_and_gives_exit_code_3(
    name: str, number: int, fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ending = f"trainer5-full/checkpoint-6/{name}"
    for opening in (True, False):
        with refused(monkeypatch, ending, number, opening=opening):
            report = verified(fixtures_dir / "trainer5-full")
            assert main(["verify", str(fixtures_dir / "trainer5-full")]) == 3
            shown = capfd.readouterr().out
        told = [finding for finding in report.all_findings() if finding.name == "unreadable-file"]
        assert [finding.path for finding in told] == [f"checkpoint-6/{name}"]
        assert told[0].severity is Severity.FATAL
        assert report.exit_code() == 3
        assert "cannot be read" in shown
    assert verified(fixtures_dir / "trainer5-full").exit_code() == 0


def test_latest_does_not_take_what_it_could_not_read(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(monkeypatch, "checkpoint-6/optimizer.pt", errno.EIO, opening=False):
        report = ckpt_tools.latest(str(fixtures_dir / "trainer5-full"), settle=0)
    assert report.path is None or not report.path.endswith("checkpoint-6")
    assert report.unreadable


LEADING = (
    *(
        "../outside.safetensors",
        "../../outside.safetensors",
        "/etc/passwd",
        "/proc/self/environ",
        "a/../../outside.safetensors",
    ),
    *(
        "..",
        ".",
        "",
        "/",
        "~/outside.safetensors",
        "file:///etc/passwd",
        "C:\\outside",
        "..\\outside",
        "sub/../../x",
        "\0",
    ),
)


@pytest.mark.parametrize("name", LEADING)
def test_names_in_contents_never_lead_outside(name: str, copy_of: Copy) -> None:
    """An index, a pointer to the best model, an adapter's base: nothing but the directory's own files is opened."""
    place = copy_of("trainer5-sharded") / "checkpoint-2"
    shutil.copyfile(place / "model-00001-of-00004.safetensors", place.parent / "outside.safetensors")
    index = place / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"] = {
        tensor: name if file.startswith("model-00001") else file for tensor, file in value["weight_map"].items()
    }
    index.write_text(json.dumps(value))
    state = place / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"best_model_checkpoint": name}))
    (place / "latest").write_text(name)

    run = open_run(place)
    listed = set(run.checkpoints[0].listing.files)
    report = verified(place)
    assert any(finding.severity >= Severity.ERROR for finding in report.all_findings())
    opened = _opened_in(place)
    assert opened <= listed
    assert not any(".." in path or path.startswith("/") for path in opened)


def _opened_in(place: Path) -> set[str]:
    """Return the files that a verification of one checkpoint opens."""
    from ckpt_tools.ops import engine
    from ckpt_tools.rules.base import Settings

    run = open_run(place)
    view = View(run.checkpoints[0])
    engine.check(run, run.checkpoints[0], view, Settings(0, 0))
    engine.check_run(run, {".": view}, Settings(0, 0))
    return set(run.listing.meter.opened)


def test_the_operating_system_is_asked_for_nothing_outside(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, seen from below: every file that is opened lies in the directory."""
    from ckpt_tools.core import source as sources

    place = copy_of("trainer5-sharded") / "checkpoint-2"
    index = place / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"] = dict.fromkeys(value["weight_map"], "../../../../../../../../etc/hostname")
    index.write_text(json.dumps(value))
    real = sources.os.open
    asked: list[str] = []

    def recorded(path: object, *args: object, **more: object) -> int:
        asked.append(os.path.realpath(str(path)))
        return real(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(sources.os, "open", recorded)
    verified(place)
    assert asked
    assert all(path.startswith(os.path.realpath(place) + os.sep) for path in asked)


def test_a_link_that_cannot_be_read_is_listed_as_dangling(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It vanished between two looks, or lies where links may not be read."""
    place = copy_of("trainer5-full") / "checkpoint-6"
    (place / "notes.txt").symlink_to("nowhere")

    def refuse(path: object, *args: object, **more: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "readlink", refuse)
    verified(place)
