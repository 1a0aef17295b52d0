"""Which library versions wrote a checkpoint, which it needs, and which are installed here, by metadata alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.containers.base import Content
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.values import Value
from ckpt_tools.reports.info import Requirement

Version = tuple[int, ...]

_ZIP_AGES: tuple[tuple[str, str], ...] = (
    (".format_version", "2.7 or newer"),
    (".data/serialization_id", "2.1 to 2.6"),
    ("byteorder", "2.1 to 2.6"),
)
"""Records of torch's zip and the versions that write them; the first that is there counts."""

_STATE_AGES: tuple[tuple[str, str, str], ...] = (
    ("best_global_step", "4.50 or newer", "4.50"),
    ("stateful_callbacks", "4.37 to 4.49", "4.41"),
    ("logging_steps", "4.32 to 4.41", "4.36"),
)
"""Keys of ``trainer_state.json``, the versions of transformers that write them, and the oldest known to read them."""

_PEFT_LINE = re.compile(r"^- PEFT (\d[\w.]*)\s*$", re.MULTILINE)
_NEEDS_DTYPE = {"uint16": "2.3", "uint32": "2.3", "uint64": "2.3"}


def parse(text: str) -> Version:
    """Return the leading numbers of a version: ``(2, 13, 0)`` for ``2.13.0+cpu``."""
    match = re.match(r"\d+(?:\.\d+)*", text.strip())
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def older(left: str, right: str) -> bool:
    """Return whether ``left`` is an older version than ``right``."""
    a, b = parse(left), parse(right)
    length = max(len(a), len(b))
    return bool(a and b) and a + (0,) * (length - len(a)) < b + (0,) * (length - len(b))


def installed(package: str) -> str | None:
    """Return the version of an installed package, read from its metadata; nothing of it is imported."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError):
        return None


def torch_age(content: Content) -> str | None:
    """Return the versions of torch that can have written a file, None when it is no torch file."""
    if content.container == "torch-legacy":
        return "1.5 or older, or newer by request"
    if content.container != "torch-zip":
        return None
    names = {record.name.split("/", 1)[-1] for record in content.records} | {record.name for record in content.records}
    return next((age for name, age in _ZIP_AGES if name in names), "1.6 to 2.0")


def requirements(view: View) -> tuple[Requirement, ...]:
    """Return what a checkpoint says about the versions it was written with and needs."""
    contents = [
        content for part in view.checkpoint.parts if part.containers for content in [view.content(part)] if content
    ]
    return tuple(
        each
        for each in (_torch(view, contents), _transformers(view), _peft(view), _numpy(contents))
        if each is not None
    )


def notes(view: View, found: tuple[Requirement, ...]) -> Iterator[str]:
    """Yield known traps between what is installed here and what the checkpoint holds."""
    here = {each.package: each.installed for each in found}
    torch, transformers = here.get("torch"), here.get("transformers") or installed("transformers")
    if not torch or not transformers or not view.checkpoint.has(Role.RNG):
        return
    if older(transformers, "4.47") and not older(torch, "2.6"):
        yield (
            f"transformers {transformers} under torch {torch} refuses the rng file (numpy objects); "
            "the file is healthy: a newer transformers reads it, or resume without it"
        )


def _made(package: str, written: str | None, needs: str | None, reason: str = "") -> Requirement:
    here = installed(package)
    fits = None if here is None or needs is None else not older(here, needs)
    return Requirement(package, written, needs, reason, here, fits)


def _torch(view: View, contents: list[Content]) -> Requirement | None:
    ages = {age for content in contents if (age := torch_age(content))}
    if not ages:
        return None
    needs, reason = "1.6", ""
    if not any(content.container == "torch-zip" for content in contents):
        needs = "1.0"
    dtypes = {ref.dtype for content in contents for ref in content.tensors.values()}
    for dtype in sorted(dtypes):
        bound = "2.1" if dtype.startswith("float8") else _NEEDS_DTYPE.get(dtype)
        if bound and older(needs, bound):
            needs, reason = bound, dtype
    written = _transformers_version(view.config)
    if written and not older(written, "5") and view.checkpoint.has(Role.OPTIMIZER, Role.RNG):
        needs, reason = "2.6", "transformers 5 asks for it"
    order = [age for _, age in _ZIP_AGES] + ["1.6 to 2.0", "1.5 or older, or newer by request"]
    newest = next(age for age in dict.fromkeys(order) if age in ages)
    return _made("torch", newest, needs, reason)


def _transformers_version(config: Mapping[Any, Value] | None) -> str | None:
    version = (config or {}).get("transformers_version")
    return version if isinstance(version, str) and version else None


def _transformers(view: View) -> Requirement | None:
    written = _transformers_version(view.config)
    state = view.state or {}
    if not written and not state:
        return None
    needs, reason = None, ""
    for key, age, oldest in _STATE_AGES:
        if key in state:
            written, needs, reason = written or age, oldest, f"trainer_state.json has {key}"
            break
    else:
        written = written or "4.31 or older"
    return _made("transformers", written, needs, reason)


def _peft(view: View) -> Requirement | None:
    if not view.checkpoint.has(Role.ADAPTER, Role.ADAPTER_CONFIG):
        return None
    written = (view.mapping(Role.ADAPTER_CONFIG) or {}).get("peft_version")
    if not isinstance(written, str):
        written = None
        for part, text in view.values(Role.OTHER):
            match = _PEFT_LINE.search(text) if isinstance(text, str) and part.path == "README.md" else None
            written = match[1] if match else written
    return _made("peft", written, None)


def _numpy(contents: list[Content]) -> Requirement | None:
    names = {name for content in contents for name in content.globals if name.startswith("numpy.")}
    if not names:
        return None
    if any(name.startswith("numpy._core.") for name in names):
        return _made("numpy", "2.x", "1.26.1", "the pickles name numpy._core")
    if any(name.startswith("numpy.core.") for name in names):
        return _made("numpy", "1.x", None)
    return None
