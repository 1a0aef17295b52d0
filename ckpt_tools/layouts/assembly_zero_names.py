"""The names of DeepSpeed's files: which rank wrote one, what it holds, and which tag it belongs to.

``runtime/engine.py`` (``_get_ckpt_name``, ``_get_rank_zero_ckpt_name``, ``_get_expert_ckpt_name``) and
``runtime/pipe/module.py`` (``ckpt_layer_path``) make them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import Kind, Listing
from ckpt_tools.model.checkpoint import Checkpoint, Part

LATEST = "latest"
_LONGEST = 1 << 16

_NAMES = (
    ("model", re.compile(r"(?:zero_pp_rank_(?P<dp>\d+)_)?mp_rank_(?P<mp>\d+)_model_states\.pt\Z")),
    ("optimizer", re.compile(r"(?P<prefix>\w+?_)??zero_pp_rank_(?P<dp>\d+)_mp_rank_(?P<mp>\d+)_?optim_states\.pt\Z")),
    ("layer", re.compile(r"layer_(?P<layer>\d+)(?:-model_(?P<mp>\d+))?-model_states\.pt\Z")),
    ("expert", re.compile(r"(?:layer_(?P<layer>\d+)_)?expert_(?P<expert>\d+)_mp_rank_(?P<mp>\d+)_model_states\.pt\Z")),
    ("expert-optimizer", re.compile(r"expp_rank_(?P<dp>\d+)_mp_rank_(?P<mp>\d+)_optim_states\.pt\Z")),
)
_PIECE = re.compile(r"(?P<folder>.*?)(?:/|\A)zero/(?P<name>[^/]+)/(?P<what>\w+)\.pt\Z")
_CONVERTED = ("fp32", "exp_avg", "exp_avg_sq", "step")
"""What a conversion to the universal format writes of a parameter, in no fixed order."""
_EXTRACTED = re.compile(r"(?P<folder>.*?)(?:/|\A)tmp/[^/]+/\d+/(?:fp32|exp_avg|exp_avg_sq)\.\d+\Z")
"""What it writes first, and removes at its end."""
_TAG = re.compile(r"global_step\d+(?:_universal)?\Z")
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")


@dataclass(frozen=True, slots=True)
class RankFile:
    """What the name of one file says.

    ``kind`` is ``model``, ``optimizer``, ``layer`` (of a pipeline), ``expert``, ``expert-optimizer`` or ``piece`` (of a
    universal checkpoint: ``name`` is the parameter's, ``prefix`` what is stored of it).  ``dp`` is the data-parallel
    rank, None where the file is that of all of them.
    """

    path: str
    folder: str
    kind: str
    dp: int | None = None
    mp: int = 0
    layer: int | None = None
    expert: int | None = None
    prefix: str = ""
    name: str = ""


def parse(path: str) -> RankFile | None:
    """Return what a path says, None where it is no file of DeepSpeed's."""
    folder, _, name = path.rpartition("/")
    for kind, expression in _NAMES:
        match = expression.match(name)
        if match:
            found = match.groupdict()
            dp, mp, layer, expert = (_number(found.get(key)) for key in ("dp", "mp", "layer", "expert"))
            return RankFile(path, folder, kind, dp, mp or 0, layer, expert, found.get("prefix") or "")
    match = _PIECE.match(path)
    if match:
        return RankFile(path, match["folder"], "piece", prefix=match["what"], name=match["name"])
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text else None


def parse_all(paths: Iterable[str]) -> Iterator[RankFile]:
    return (found for path in paths if (found := parse(path)) is not None)


def home(path: str) -> str | None:
    """Return the directory that ``path`` tells from any other as a tag; None where the file tells nothing."""
    found = parse(path)
    if found is None:
        extracted = _EXTRACTED.match(path)
        return extracted["folder"] if extracted else None
    return None if found.kind == "piece" and found.prefix not in _CONVERTED else found.folder


def is_tag(name: str) -> bool:
    """Return whether a directory has the name that DeepSpeed itself gives a tag."""
    return _TAG.match(name) is not None


def folders(listing: Listing) -> list[str]:
    """Return the directories with rank files, ``""`` for the top, in the numeric order of their names.

    A directory with the name of a tag is one by its name where none has any: a save that was killed at once.
    """
    paths = (path for path, entry in listing.files.items() if entry.kind is not Kind.DIRECTORY)
    found = {folder for path in paths if (folder := home(path)) is not None}
    found = {folder for folder in found if "/" not in folder} or {
        name for name in listing.names() if _TAG.match(name) and listing.files[name].kind is Kind.DIRECTORY
    }
    return sorted(found, key=_order)


def _order(folder: str) -> tuple[int, str]:
    match = _LAST_NUMBER.search(folder)
    return (int(match.group(1)) if match and len(match.group(1)) < 19 else -1), folder


def target(text: str) -> str | None:
    """Return the tag that the text of ``latest`` names, as the engine reads it."""
    name = text.strip()
    return name if name and "\n" not in name and "\0" not in name else None


def pointed(listing: Listing, pointer: str = LATEST) -> str | None:
    """Return what ``latest`` in a listing names, None where it is missing or makes no sense."""
    entry = listing.files.get(pointer)
    if entry is None or not entry.is_file or entry.size > _LONGEST:
        return None
    try:
        with listing.open(pointer) as source:
            return target(source.read(0, _LONGEST).decode("utf-8"))
    except (SourceError, UnicodeDecodeError):
        return None


def chosen(listing: Listing) -> str | None:
    """Return the directory of the tag that a checkpoint means: the one at the top, else the one ``latest`` names."""
    found, named = folders(listing), pointed(listing)
    if not found or named in found:
        return named
    return "" if "" in found else found[-1]


def files_of(checkpoint: Checkpoint, folder: str) -> list[tuple[RankFile, Part]]:
    """Return the files of one tag, by kind and rank."""
    found = [(name, part) for part in checkpoint.parts if (name := parse(part.path)) is not None]
    mine = [pair for pair in found if pair[0].folder == folder and pair[1].stat.is_file]
    return sorted(mine, key=lambda pair: (pair[0].kind, pair[0].mp, pair[0].dp or 0, pair[0].layer or 0, pair[0].path))
