"""Metadata of torch.distributed.checkpoint, changed without torch: read into stand-ins and written back as it was.

Stand-ins keep the module and the name of what they stand for, so that torch reads the result as its own.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

Change = Callable[[Any], None]

METADATA = "torch.distributed.checkpoint.metadata"


class StandIn:
    """An object of a class that is not imported; fields are attributes."""

    def __init__(self, *arguments: Any) -> None:
        if arguments:
            self._arguments = arguments

    def __reduce_ex__(self, protocol: Any) -> Any:
        if hasattr(self, "_arguments"):
            return type(self), self._arguments
        return super().__reduce_ex__(protocol)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self._state = state

    def __getstate__(self) -> Any:
        return self.__dict__.get("_state", self.__dict__)


class _Size(tuple):  # type: ignore[type-arg]
    __module__ = "torch"
    __qualname__ = __name__ = "Size"

    def __new__(cls, values: Any = ()) -> Self:
        return super().__new__(cls, values)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _Size, (tuple(self),)


_known: dict[tuple[str, str], type] = {("torch", "Size"): _Size}


def stand_in(module: str, name: str) -> Any:
    """Return the class that stands for ``module.name``."""
    if (module, name) not in _known:
        _known[module, name] = type(name, (StandIn,), {"__module__": module, "__qualname__": name})
    return _known[module, name]


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return stand_in(module, name)


class _Writer(pickle._Pickler):  # type: ignore[name-defined,misc]
    def save_global(self, obj: Any, name: str | None = None) -> None:
        self.save(obj.__module__)
        self.save(obj.__qualname__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)

    dispatch = {**pickle._Pickler.dispatch, type: save_global}  # type: ignore[attr-defined]  # noqa: RUF012


def load(data: bytes) -> Any:
    return _Reader(io.BytesIO(data)).load()


def dump(value: Any, protocol: int = 4) -> bytes:
    buffer = io.BytesIO()
    _Writer(buffer, protocol).dump(value)
    return buffer.getvalue()


def edited(change: Change, name: str = ".metadata") -> Callable[[Path], None]:
    """A damage: change the metadata of a directory, and keep its times."""

    def done(directory: Path) -> None:
        path = directory / name
        value = load(path.read_bytes())
        change(value)
        path.write_bytes(dump(value))

    return done


def size(*values: int) -> _Size:
    return _Size(values)


def index(fqn: str, *offsets: int) -> Any:
    """Return a key of ``storage_data``."""
    made = stand_in(METADATA, "MetadataIndex")()
    made.fqn, made.index, made.offset = fqn, None, size(*offsets)
    return made


def chunk(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
    made = stand_in(METADATA, "ChunkStorageMetadata")()
    made.offsets, made.sizes = size(*offsets), size(*sizes)
    return made


def place(path: str, offset: int, length: int) -> Any:
    made = stand_in("torch.distributed.checkpoint.filesystem", "_StorageInfo")()
    made.relative_path, made.offset, made.length = path, offset, length
    return made


def stored(metadata: Any, fqn: str, *offsets: int) -> Any:
    """Return where a chunk is stored."""
    return metadata.storage_data[key_of(metadata, fqn, *offsets)]


def key_of(metadata: Any, fqn: str, *offsets: int) -> Any:
    return next(
        key for key in metadata.storage_data if key.fqn == fqn and (not offsets or tuple(key.offset or ()) == offsets)
    )
