"""Random damage to directories of torch.distributed.checkpoint, and what torch's own loader says of the result."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FIXTURES
from tests.rules import dcp_metadata as meta

torch = pytest.importorskip("torch")

SUBJECTS = ("plain", "flat-optimizer", "odd-shapes", "grid", "threads", "single-process", "files-per-item")

Draw = random.Random


def load(directory: Path) -> str | None:
    """Load everything that the metadata speaks of; return None when it was taken, else what torch said."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = FileSystemReader(directory)
            _load_state_dict({}, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - torch raises a BaseException of its own
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _data(draw: Draw, directory: Path) -> Path:
    return draw.choice(sorted(path for path in directory.glob("*.distcp") if path.stat().st_size))


def _cut(draw: Draw, directory: Path) -> str:
    path = _data(draw, directory)
    size = draw.choice((0, 1, path.stat().st_size - 1, draw.randrange(path.stat().st_size)))
    os.truncate(path, size)
    return f"{path.name} cut to {size} bytes"


def _lost(draw: Draw, directory: Path) -> str:
    path = _data(draw, directory)
    path.unlink()
    return f"{path.name} lost"


def _metadata_cut(draw: Draw, directory: Path) -> str:
    path = directory / ".metadata"
    size = draw.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f".metadata cut to {size} bytes"


def _metadata_lost(draw: Draw, directory: Path) -> str:
    (directory / ".metadata").unlink()
    return ".metadata lost"


def _zeroed(draw: Draw, directory: Path) -> str:
    path = _data(draw, directory)
    start = draw.randrange(path.stat().st_size)
    start -= start % 4096
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(min(4096, path.stat().st_size - start)))
    return f"a page of {path.name} zeroed, at {start}"


def _swapped(draw: Draw, directory: Path) -> str:
    files = sorted(directory.glob("*.distcp"))
    if len(files) < 2:
        return _lost(draw, directory)
    one, two = draw.sample(files, 2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    return f"{one.name} and {two.name} swapped"


def _longer(draw: Draw, directory: Path) -> str:
    path = _data(draw, directory)
    with path.open("ab") as file:
        file.write(draw.randbytes(draw.randrange(1, 5000)))
    return f"{path.name} made longer"


def _head(draw: Draw, directory: Path) -> str:
    """Write over the beginning of one tensor or object."""
    value = meta.load((directory / ".metadata").read_bytes())
    key = draw.choice(list(value.storage_data))
    info = value.storage_data[key]
    with (directory / info.relative_path).open("r+b") as file:
        file.seek(info.offset)
        file.write(draw.randbytes(40))
    return f"the beginning of {key.fqn} written over"


def _edit(change: Callable[[Draw, Any], str]) -> Callable[[Draw, Path], str]:
    def done(draw: Draw, directory: Path) -> str:
        path = directory / ".metadata"
        value = meta.load(path.read_bytes())
        what = change(draw, value)
        path.write_bytes(meta.dump(value))
        return what

    return done


def _moved(draw: Draw, value: Any) -> str:
    key = draw.choice(list(value.storage_data))
    by = draw.choice((-64, -1, 1, 8, 100_000_000))
    info = value.storage_data[key]
    info.offset = max(0, info.offset + by)
    return f"{key.fqn} moved by {by}"


def _resized(draw: Draw, value: Any) -> str:
    key = draw.choice(list(value.storage_data))
    info = value.storage_data[key]
    by = draw.choice((-info.length, -200, -1, 1, 100, 100_000_000))
    info.length = max(0, info.length + by)
    return f"the length of {key.fqn} changed by {by}"


def _elsewhere(draw: Draw, value: Any) -> str:
    key = draw.choice(list(value.storage_data))
    path = draw.choice(("__0_0.distcp", "__7_0.distcp", "../__0_0.distcp", ""))
    value.storage_data[key].relative_path = path
    return f"{key.fqn} said to be in {path!r}"


def _unstored(draw: Draw, value: Any) -> str:
    key = draw.choice(list(value.storage_data))
    del value.storage_data[key]
    return f"a chunk of {key.fqn} not stored"


def _undescribed(draw: Draw, value: Any) -> str:
    fqn = draw.choice(list(value.state_dict_metadata))
    del value.state_dict_metadata[fqn]
    return f"{fqn} not described"


def _tensors(value: Any) -> list[str]:
    return [fqn for fqn, each in value.state_dict_metadata.items() if hasattr(each, "chunks")]


def _chunk_lost(draw: Draw, value: Any) -> str:
    fqn = draw.choice(_tensors(value))
    gone = value.state_dict_metadata[fqn].chunks.pop()
    del value.storage_data[meta.key_of(value, fqn, *gone.offsets)]
    return f"a chunk of {fqn} lost"


def _chunk_resized(draw: Draw, value: Any) -> str:
    fqn = draw.choice([fqn for fqn in _tensors(value) if value.state_dict_metadata[fqn].size])
    chunk = draw.choice(value.state_dict_metadata[fqn].chunks)
    sizes = list(chunk.sizes)
    axis = draw.randrange(len(sizes))
    sizes[axis] = max(0, sizes[axis] + draw.choice((-1, 1, 5)))
    chunk.sizes = meta.size(*sizes)
    return f"a chunk of {fqn} said to be {sizes}"


def _reshaped(draw: Draw, value: Any) -> str:
    fqn = draw.choice([fqn for fqn in _tensors(value) if value.state_dict_metadata[fqn].size])
    shape = list(value.state_dict_metadata[fqn].size)
    shape[draw.randrange(len(shape))] += draw.choice((-1, 1, 3))
    shape = [max(0, size) for size in shape]
    value.state_dict_metadata[fqn].size = meta.size(*shape)
    return f"{fqn} said to be {shape}"


def _retyped(draw: Draw, value: Any) -> str:
    fqn = draw.choice(_tensors(value))
    properties = value.state_dict_metadata[fqn].properties
    dtype = draw.choice(("float16", "int64", "float64"))
    properties._state = (meta.stand_in("torch", dtype), *properties._state[1:])
    return f"{fqn} said to be {dtype}"


def _half(draw: Draw, value: Any) -> str:
    name = draw.choice(("state_dict_metadata", "storage_data", "planner_data", "storage_meta"))
    delattr(value, name)
    return f"{name} left out"


KINDS: tuple[tuple[str, int, Callable[[Draw, Path], str]], ...] = (
    ("cut", 4, _cut),
    ("lost", 1, _lost),
    ("metadata cut", 1, _metadata_cut),
    ("metadata lost", 1, _metadata_lost),
    ("page zeroed", 3, _zeroed),
    ("swapped", 2, _swapped),
    ("longer", 1, _longer),
    ("beginning written over", 3, _head),
    ("moved", 3, _edit(_moved)),
    ("length", 3, _edit(_resized)),
    ("elsewhere", 2, _edit(_elsewhere)),
    ("unstored", 2, _edit(_unstored)),
    ("undescribed", 2, _edit(_undescribed)),
    ("chunk lost", 2, _edit(_chunk_lost)),
    ("chunk resized", 3, _edit(_chunk_resized)),
    ("reshaped", 3, _edit(_reshaped)),
    ("retyped", 2, _edit(_retyped)),
    ("half", 1, _edit(_half)),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One damaged directory: where it began, what was done, and where it lies."""

    subject: str
    kind: str
    what: str
    path: Path


def deal(seed: int, scratch: Path) -> Case:
    """Return the same damaged directory for the same seed on every machine."""
    draw = Draw(f"dcp#{seed}")
    subject = draw.choice(SUBJECTS)
    kind, _, change = draw.choices(KINDS, [weight for _, weight, _ in KINDS])[0]
    path = scratch / f"case{seed}"
    shutil.copytree(FIXTURES / "dcp" / subject, path)
    return Case(subject, kind, change(draw, path), path)
