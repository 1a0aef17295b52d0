"""Files of ``torch.save`` that are cut: what was there, from the pickle, which is written first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ckpt_tools.containers import pickle_stream
from ckpt_tools.containers.base import Content, FormatError
from ckpt_tools.containers.torch_values import Storage, TorchValues, several
from ckpt_tools.containers.zip_directory import LOCAL
from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value

ALIGNMENT = 64
_WIDE = 0xFFFFFFFF
_SMALL = {".format_version": 1, ".storage_alignment": 2, "byteorder": 6}


def describe(source: Source, problem: Problem) -> Content:
    """Return what is left of a torch file without a directory; ``problem`` says how it ends.

    ``value`` and ``tensors`` are there when the whole pickle is; the tensors have no chunks then, since nothing
    says where their bytes lie.  ``facts["expected_size"]`` is what torch would have written, to a few hundred bytes.
    """
    lines = list(problem.detail)
    values = TorchValues()
    facts: dict[str, Any] = {}
    value: Value = None
    tensors: dict[str, TensorRef] = {}
    names: Mapping[str, int] = {}
    spot = Spot(offset=source.base + source.size)
    found = _first(source)
    if found is not None:
        root, start = found
        facts["root"] = root
        try:
            length, result = pickle_stream.read_growing(source, start, values.persistent, values.rebuild, values.view)
        except FormatError as error:
            cut = isinstance(error, pickle_stream.CutError)
            lines.append("it ends inside the pickle, which comes first" if cut else "the pickle is damaged as well")
            found = None
        else:
            value, names = result.value, result.globals
            tensors, _ = values.flatten(value)
            expected, first = _layout(source, root, start + length, values.storages.values())
            facts["expected_size"] = expected
            share = 100 * source.size / expected
            lines.append(f"the pickle names {len(tensors):,} tensors; with them it should have {expected:,} bytes")
            lines.append(
                f"about {min(share, 99.9):.3g} % is present"
                if share < 100
                else "it has them all: its end was overwritten rather than lost"
            )
            if first is not None:
                users = [name for name, ref in tensors.items() if ref.storage_id == first]
                lines.append(f"the first record that is not whole is {root}/data/{first}, needed by {several(users)}")
                spot = replace(spot, record=f"{root}/data/{first}", tensor=users[0] if users else None)
    lines.append('torch.load stops with "failed finding central directory"')
    problem = replace(problem, detail=tuple(lines), at=spot)
    return Content("torch-zip", source.size, found is not None, value, tensors, (), names, facts, (problem,))


def _first(source: Source) -> tuple[str, int] | None:
    """Return the root and the place of the pickle, when that is the first record."""
    head = source.read(0, 30)
    if head[:4] != LOCAL or len(head) < 30:
        return None
    size = int.from_bytes(head[26:28], "little")
    name = source.read(30, size).decode("utf-8", "backslashreplace")
    if not name.endswith("/data.pkl"):
        return None
    return name.removesuffix("/data.pkl"), 30 + size + int.from_bytes(head[28:30], "little")


def _layout(source: Source, root: str, end: int, storages: Iterable[Storage]) -> tuple[int, str | None]:
    """Lay the records out as torch does: ``(size of the file, key of the first storage that is not whole)``."""
    position = end + 16
    second = source.read(position, 30)
    raw = source.read(position + 30, int.from_bytes(second[26:28], "little")) if second[:4] == LOCAL else b""
    present = raw.decode("utf-8", "replace").removeprefix(f"{root}/")
    small = list(_SMALL)  # older versions of torch write fewer of them: the second record tells
    small = small[small.index(present) :] if present in small else [] if raw else small
    records: list[tuple[str, int, str | None]] = [(name, _SMALL[name], None) for name in small]
    records += [(f"data/{storage.key}", storage.nbytes, storage.key) for storage in storages]
    records += [("version", 2, None), (".data/serialization_id", 40, None)]
    directory = 46 + len(root.encode()) + len("/data.pkl")
    missing: str | None = None
    for name, size, key in records:
        length = len(f"{root}/{name}".encode())
        wide = size >= _WIDE or position >= _WIDE
        start = position + 30 + length + 4 + (4 + 8 * (size >= _WIDE) + 8 * (position >= _WIDE) if wide else 0)
        start += -start % ALIGNMENT
        if start + size > source.size and missing is None:
            missing = key
        position = start + size + (24 if wide else 16 if size else 0)
        directory += 46 + length
    return position + directory + 56 + 20 + 22, missing
