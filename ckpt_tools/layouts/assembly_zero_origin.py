"""Which rank wrote a file, by what is in it: a copy may have put it in the place of another one.

``torch.save`` names the root of its archive for the file that it writes, and no copy changes that; archives that were
written to a stream have ``archive``, and those of old versions no root.  In stages 1 and 2 every partition also says
where which parameter lies in it (``utils/tensor_fragment.py``, ``get_hp_fragment_mapping``): of the order and the sizes
of the parameters follows whose partition this is.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ckpt_tools.layouts.assembly_zero_names import RankFile, parse
from ckpt_tools.layouts.assembly_zero_tag import Shard, Tag
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, as_mapping, whole

if TYPE_CHECKING:
    from ckpt_tools.model.checkpoint import Part

Who = tuple[str, int | None, int, int | None, int | None, str, str]
_LONGEST = 255
"""No file system has names longer than this."""
Places = dict[str, tuple[int, int]]
"""``(elements, where they begin in the partition)`` by parameter."""


class Origin(NamedTuple):
    """A file, what it was written as, and what tells it."""

    file: RankFile
    was: RankFile
    told: str


class Origins:
    """The files of a tag that are those of other ranks than their names say."""

    def __init__(self, tag: Tag) -> None:
        self.tag = tag
        self._wanted: dict[tuple[int, int], dict[int, Places]] = {}

    @cached_property
    def strange(self) -> dict[Who, Origin]:
        """Those files, by what their names say."""
        found: dict[Who, Origin] = {}
        for file, part in self.tag.files:
            was, told = self._written(file, part), "its archive is named so"
            if was is None and file.kind == "optimizer":
                was, told = self._mapped(file), "the places of its parameters are those of this rank"
            if was is not None and _who(was) != _who(file):
                found[_who(file)] = Origin(file, was, told)
        return found

    def swapped(self, origin: Origin) -> bool:
        """Return whether the file that this one was written as is another one too, and so on until this one."""
        seen, at = set[Who](), _who(origin.was)
        while at in self.strange and at not in seen:
            seen.add(at)
            at = _who(self.strange[at].was)
        return _who(origin.file) in seen

    def together(self, one: RankFile, other: RankFile) -> bool:
        """Return whether two experts are loaded by the first rank.

        There the number of an expert in the file is the one in the model, and it does not matter which file has it.
        """
        said, layer = self.tag.first.get("num_experts"), one.layer or 0
        counts = [whole(count) or 0 for count in said] if isinstance(said, list | tuple) else []
        groups = ((mp, group) for mp in self.tag.parallel for group in range(len(self.tag.shapes(mp))))
        ranks = max([self.tag.census.expert_ranks, *(self.tag.experts(mp, group) for mp, group in groups)])
        if layer >= len(counts) or one.layer != other.layer or ranks < 1 or counts[layer] % ranks:
            return False
        return max(one.expert or 0, other.expert or 0) < counts[layer] // ranks

    def _written(self, file: RankFile, part: Part) -> RankFile | None:
        """Return the file that the root of the archive names, where it is one of the same kind."""
        content = self.tag.view.content(part)
        root = content.facts.get("root") if content is not None and content.readable else None
        if not isinstance(root, str) or not 0 < len(root) <= _LONGEST:
            return None
        if file.kind == "piece":
            path = f"{posixpath.dirname(file.path)}/{root}.pt"
            return replace(file, path=path, prefix=root) if root in self._pieces else None
        named = parse(f"{root}.pt")
        same = named is not None and named.kind == file.kind and (named.dp is None) == (file.dp is None)
        return named if same else None

    @cached_property
    def _pieces(self) -> frozenset[str]:
        """What a universal checkpoint has of any parameter: weights, moments, steps."""
        return frozenset(file.prefix for file, _ in self.tag.of("piece"))

    def _mapped(self, file: RankFile) -> RankFile | None:
        """Return the rank that all groups of a partition fit, where they fit another one alone."""
        shard = self.tag.shards.get((file.dp, file.mp))
        if shard is None or shard.file is not file or shard.stage not in (1, 2) or file.dp is None:
            return None
        fitting: set[int] | None = None
        for group in range(len(shard.flat)):
            ranks = self._fitting(shard, group)
            if ranks is not None:
                fitting = ranks if fitting is None else fitting & ranks
        if not fitting or file.dp in fitting or len(fitting) > 1:
            return None
        (dp,) = fitting
        return replace(file, path=file.path.replace(f"_rank_{file.dp}_", f"_rank_{dp}_"), dp=dp)

    def _fitting(self, shard: Shard, group: int) -> set[int] | None:
        """Return the ranks whose part of a group a shard states to have; None where it says nothing."""
        held, mp = _held(shard, group), shard.file.mp
        if not held or self.tag.experts(mp, group) > 1:
            return None
        if (mp, group) not in self._wanted:
            self._wanted[mp, group] = self._cut(mp, group)
        return {rank for rank, places in self._wanted[mp, group].items() if places == held}

    def _cut(self, mp: int, group: int) -> dict[int, Places]:
        """Return what each rank has of a group, by the order and the sizes of its parameters."""
        sizes = [_size(shard, group) for (_, own), shard in self.tag.shards.items() if own == mp]
        size = max(sizes, default=0)
        found: dict[int, Places] = {}
        for each in self.tag.layout(mp, group) if size else ():
            end = each.start + each.numel
            for rank in range(each.start // size, min(-(-end // size), self.tag.census.partitions)):
                low, high = max(each.start, rank * size), min(end, (rank + 1) * size)
                found.setdefault(rank, {})[each.name] = high - low, low - rank * size
        return found


def _who(file: RankFile) -> Who:
    what = (file.name, file.prefix) if file.kind == "piece" else ("", "")
    return file.kind, file.dp, file.mp, file.layer, file.expert, *what


def _size(shard: Shard, group: int) -> int:
    """Return the length of a partition with its padding, which the moments keep."""
    if group >= len(shard.flat):
        return 0
    moments = (ref.numel for ref in shard.moments[group].values() if isinstance(ref, TensorRef))
    return max(shard.flat[group].numel, *moments, 0)


def _held(shard: Shard, group: int) -> Places:
    said = shard.state.get("param_slice_mappings")
    if not isinstance(said, list | tuple) or group >= len(said):
        return {}
    found: Places = {}
    for name, fragment in (as_mapping(said[group]) or {}).items():
        place = (as_mapping(fragment.state) if isinstance(fragment, Opaque) else as_mapping(fragment)) or {}
        numel, start = whole(place.get("numel")), whole(place.get("start"))
        if not isinstance(name, str) or numel is None or start is None:
            return {}
        found[name] = numel, start
    return found
