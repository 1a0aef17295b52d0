"""Which ranks of a tag have their files, which lack them, and which have one that belongs to another save."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from ckpt_tools.layouts.assembly_zero_names import RankFile
from ckpt_tools.layouts.assembly_zero_tag import MOST, Tag
from ckpt_tools.model.values import as_mapping, whole

_SETS = re.compile(r"ep_size_(\d+)\Z")
_LAYER = re.compile(r"(\d+)\.")


@dataclass(frozen=True)
class Census:
    """The ranks of one tag; ranks are ``(data-parallel rank, model-parallel rank)``."""

    tag: Tag

    @cached_property
    def partitioned(self) -> bool:
        """Whether an optimizer partition of each rank is needed: the model states tell, or files do."""
        if self.tag.universal:
            return False
        return bool(self.tag.of("optimizer")) or self.tag.stage == 3 or self.tag.first.get("param_shapes") is not None

    @cached_property
    def partitions(self) -> int:
        """How many data-parallel ranks have a partition: fewer than there are where groups hold copies (MiCS)."""
        stated = self.tag.data_parallel
        ranks = {file.dp for file, _ in self.tag.of("optimizer") if file.dp is not None}
        counts = {shard.count for shard in self.tag.shards.values()}
        if stated is None:
            return min(max(ranks, default=-1) + 1, MOST)
        alike = next(iter(counts)) if len(counts) == 1 else None
        copies = alike is not None and 0 < alike < stated and stated % alike == 0 and ranks == set(range(alike))
        return alike if copies and alike is not None else stated

    @cached_property
    def slices(self) -> int:
        """The number of model-parallel ranks."""
        stated = self.tag.model_parallel
        return stated if stated is not None else min(max(self.tag.parallel, default=0) + 1, MOST)

    @cached_property
    def missing_partitions(self) -> list[tuple[int, int]]:
        """The ranks that have no optimizer file under any prefix."""
        if not self.partitioned:
            return []
        present = {(file.dp, file.mp) for file, _ in self.tag.of("optimizer")}
        wanted = ((dp, mp) for mp in range(self.slices) for dp in range(self.partitions))
        return [rank for rank in islice(wanted, MOST) if rank not in present]

    @cached_property
    def missing_models(self) -> list[tuple[int | None, int]]:
        """The ranks that have no model states."""
        present = {(file.dp, file.mp) for file, _ in self.tag.of("model")}
        if self.tag.universal:
            return [] if present else [(None, 0)]
        owners: list[int | None] = list(range(self.partitions)) if self.tag.stage == 3 else [None]
        wanted = ((dp, mp) for mp in range(self.slices) for dp in owners)
        return [rank for rank in islice(wanted, MOST) if rank not in present]

    @cached_property
    def prefix(self) -> str:
        """The prefix of most optimizer files."""
        found = Counter(file.prefix for file, _ in self.tag.of("optimizer"))
        return found.most_common(1)[0][0] if found else ""

    @cached_property
    def misnamed(self) -> list[RankFile]:
        """The optimizer files whose rank has one under another prefix than most, and none under theirs."""
        usual = {(file.dp, file.mp) for file, _ in self.tag.of("optimizer") if file.prefix == self.prefix}
        others = (file for file, _ in self.tag.of("optimizer") if file.prefix != self.prefix)
        return [file for file in others if (file.dp, file.mp) not in usual and file not in self.extra]

    @cached_property
    def extra(self) -> list[RankFile]:
        """The files of ranks beyond the number that wrote the tag, and second ones under another prefix."""
        if self.tag.data_parallel is None or self.tag.universal:
            return []
        usual = {(file.dp, file.mp) for file, _ in self.tag.of("optimizer") if file.prefix == self.prefix}
        found = []
        for file, _ in (*self.tag.of("model"), *self.tag.of("optimizer")):
            second = file.kind == "optimizer" and file.prefix != self.prefix and (file.dp, file.mp) in usual
            if (file.dp or 0) >= self.tag.data_parallel or file.mp >= self.slices or second:
                found.append(file)
        return found

    @cached_property
    def missing_layers(self) -> list[int]:
        """The layers of a pipeline that have parameters and no file."""
        files = {file.layer for file, _ in self.tag.of("layer")}
        if not files or self.tag.universal:
            return []
        names = (name for mp in self.tag.parallel for group in self.tag.shapes(mp) for name in group)
        wanted = {int(match[1]) for name in names if (match := _LAYER.match(name))}
        if not wanted and self._trained > sum(len(self.tag.read(part) or {}) for _, part in self.tag.of("layer")):
            wanted = set(range(min(max(layer or 0 for layer in files) + 1, MOST)))
            return sorted(wanted - files) or [len(wanted)]
        return sorted(wanted - files)

    @property
    def _trained(self) -> int:
        """The number of parameters that optimizers inside of the model states train."""
        count = 0
        for state in self.tag.models.values():
            held = as_mapping(state.get("optimizer")) or {}
            held = as_mapping(held.get("optimizer_state_dict")) or held
            groups = held.get("param_groups")
            for group in groups if isinstance(groups, list | tuple) else ():
                members = (as_mapping(group) or {}).get("params")
                count += len(members) if isinstance(members, list | tuple) else 0
        return count

    @cached_property
    def missing_experts(self) -> list[tuple[int, int]]:
        """The experts without a file, as ``(layer, expert)``."""
        said = self.tag.first.get("num_experts")
        counts = [whole(count) or 0 for count in said] if isinstance(said, list | tuple) else []
        files = {(file.layer or 0, file.expert) for file, _ in self.tag.of("expert")}
        if not files or self.tag.stage == 3 or self.tag.universal:
            return []
        wanted = ((layer, expert) for layer, count in enumerate(counts) for expert in range(count))
        return [each for each in islice(wanted, MOST) if each not in files]

    @cached_property
    def missing_expert_ranks(self) -> list[int]:
        """The expert-parallel ranks without an optimizer file, where there are such files."""
        ranks = {file.dp for file, _ in self.tag.of("expert-optimizer") if file.dp is not None}
        if not ranks:
            return []
        sets = min(max([max(ranks) + 1, *self._sets()]), MOST)
        return [rank for rank in range(sets) if rank not in ranks]

    def _sets(self) -> list[int]:
        found = []
        for _, part in self.tag.of("expert-optimizer"):
            groups = (as_mapping((self.tag.read(part) or {}).get("optimizer")) or {}).get("param_groups")
            for group in groups if isinstance(groups, list | tuple) else ():
                match = _SETS.match(str((as_mapping(group) or {}).get("name")))
                found += [int(match[1])] if match and len(match[1]) < 6 else []
        return found

    @property
    def complete(self) -> bool:
        """Whether no file is missing, and none is cut or empty."""
        lacking = (
            *self.missing_partitions, *self.missing_models, *self.missing_layers, *self.missing_experts,
            *self.missing_expert_ranks,
        )  # fmt: skip
        held = [part for file, part in self.tag.files if file.kind != "piece"]
        return not lacking and all(self.tag.intact(part) for part in held)


def numbers(values: list[int]) -> str:
    """Return numbers as text, runs of them as ranges: ``0, 4-7``."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    return ", ".join(shown[:10]) + (f" ... and {len(shown) - 10} more" if len(shown) > 10 else "")
