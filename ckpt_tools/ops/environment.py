"""What a training ran in: interpreter, packages, CUDA, commit.  Read from metadata and files; nothing is imported."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from importlib import metadata
from importlib.util import find_spec

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.source import FileSource

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "deepspeed",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "triton",
    "flash-attn",
)
"""Packages whose version is written out; all others are in the digest of the list."""

_CUDA = re.compile(r"^(cuda|hip)(?:\s*:[^=]*)?\s*=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_SMALL = 1 << 20


def gather(directory: str = ".") -> dict[str, str]:
    """Return the environment of this process as words; what is not there is left out.

    ``python``, ``platform``, the versions of ``PACKAGES``, ``packages`` (SHA-256 over the sorted list of all
    ``name==version``), ``cuda`` or ``hip`` as torch was built for, and ``git``, the commit that
    is checked out in ``directory``.
    """
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    installed = _installed()
    found.update((name, installed[name]) for name in PACKAGES if name in installed)
    lines = "".join(f"{name}=={version}\n" for name, version in sorted(installed.items()))
    found["packages"] = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    found.update(_toolkit() if "torch" in installed else {})
    commit = git_commit(directory)
    if commit is not None:
        found["git"] = commit
    return found


def _installed() -> dict[str, str]:
    found: dict[str, str] = {}
    for each in metadata.distributions():
        name = each.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), str(each.version))
    return found


def _toolkit() -> dict[str, str]:
    """Return the CUDA or ROCm version that torch was built for, from the text of its own ``version.py``."""
    try:
        spec = find_spec("torch")
    except (ImportError, ValueError):
        return {}
    if spec is None or not spec.origin:
        return {}
    text = _text(os.path.join(os.path.dirname(spec.origin), "version.py"))
    return dict(_CUDA.findall(text)) if text else {}


def git_commit(directory: str) -> str | None:
    """Return the commit that is checked out in the repository around ``directory``, None where there is none.

    Changes that were not committed are not seen.
    """
    place = os.path.abspath(directory)
    while True:
        git = os.path.join(place, ".git")
        pointed = _text(git)  # a worktree or submodule: a file that names the real directory
        if pointed is not None and pointed.startswith("gitdir:"):
            git = os.path.join(place, pointed.removeprefix("gitdir:").strip())
        head = _text(os.path.join(git, "HEAD"))
        if head is not None:
            return _resolved(git, head.strip())
        parent = os.path.dirname(place)
        if parent == place:
            return None
        place = parent


def _resolved(git: str, head: str) -> str | None:
    if not head.startswith("ref:"):
        return head if _COMMIT.match(head) else None
    ref = head.removeprefix("ref:").strip()
    common = _text(os.path.join(git, "commondir"))
    for home in (git, os.path.join(git, common.strip())) if common else (git,):
        loose = _text(os.path.join(home, ref))
        if loose is not None and _COMMIT.match(loose.strip()):
            return loose.strip()
        for line in (_text(os.path.join(home, "packed-refs")) or "").splitlines():
            commit, _, name = line.partition(" ")
            if name == ref and _COMMIT.match(commit):
                return commit
    return None


def _text(path: str) -> str | None:
    try:
        with FileSource(path, path) as source:
            return source.read(0, _SMALL).decode("utf-8", "replace")
    except (SourceError, ValueError):
        return None
