"""Pickles without a container around them, one or several behind each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ckpt_tools.containers import pickle_stream
from ckpt_tools.containers.base import Content, FormatError
from ckpt_tools.containers.torch_values import TorchValues
from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value

MAX_STACKED = 10_000
MAX_PROTOCOL = 5


def read(source: Source) -> Content:
    """Return what a pickle says; bad bytes are problems, never an exception.

    ``value`` is that of the first pickle, which is all that ``pickle.load`` looks at; ``globals`` are those of
    every pickle to the end of the file, ``facts["stacked"]`` counts them.

    Raises:
        SourceError: the file could not be read.
    """
    size = source.size
    large = pickle_stream.too_large(size)
    if large is not None:
        return Content("pickle", size, readable=False, problems=(large,))
    data = source.read(0, size)
    values = TorchValues()
    value: Value = None
    tensors: dict[str, TensorRef] = {}
    names: dict[str, int] = {}
    facts: dict[str, Any] = {}
    problems: list[Problem] = []
    stacked = position = 0
    while position < size or not stacked:
        if stacked == MAX_STACKED:
            rest = (f"they are not read from byte {position:,} on",)
            problems.append(Problem("resource-bomb", f"more than {stacked:,} pickles in one file", rest))
            break
        try:
            result = pickle_stream.read(data, start=position, persistent=values.persistent, rebuild=values.rebuild)
        except FormatError as error:
            if stacked and error.problem.kind != "resource-bomb":
                facts["trailing_bytes"] = size - position
                break
            offset = source.base + (error.problem.at.offset or 0)
            problem = replace(error.problem, at=Spot(offset=offset))
            if isinstance(error, pickle_stream.CutError):
                cut = (f"has {size:,} bytes, and the pickle goes on", 'pickle.load stops with "Ran out of input"')
                problem = Problem("file-cut-short", "the file is cut short", cut, problem.at)
            problems.append(problem)
            break
        if result.protocol > MAX_PROTOCOL:
            newer = (f"it claims protocol {result.protocol}; the newest is {MAX_PROTOCOL}", "pickle.load stops")
            problems.append(Problem("pickle-damaged", "the pickle is of an unknown protocol", newer))
        for name, count in result.globals.items():
            names[name] = names.get(name, 0) + count
        if not stacked:
            value = result.value
            tensors, strange = values.flatten(value)
            problems += strange
            facts["protocol"] = result.protocol
        stacked += 1
        position = result.end
    facts["stacked"] = stacked
    return Content("pickle", size, stacked > 0, value, tensors, (), names, facts, tuple(problems))
