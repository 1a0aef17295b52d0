"""Everything of two checkpoints that is no large tensor, subject by subject."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ckpt_tools.containers import reader
from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import SIDECAR
from ckpt_tools.layouts.view import View
from ckpt_tools.model import schedules
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping
from ckpt_tools.ops import diff_log, diff_unread
from ckpt_tools.ops.diff_targets import Target
from ckpt_tools.ops.diff_tensors import is_dense, same_bytes
from ckpt_tools.ops.diff_values import MOST_CHANGES, TooMuchError, changes, plain, same
from ckpt_tools.reports.diff import MISSING, Change, Section
from ckpt_tools.reports.units import count, human_bytes

SMALL = 1 << 20
"""Bytes of a tensor inside a settings file (a generator's state, a rate) that are read to compare it."""

SMALL_FILE = 1 << 22

_COMPARED = frozenset(Role) - {
    Role.DATALOADER,
    Role.POINTER,
    Role.LOG,
    Role.RESULTS,
    Role.CUSTOM,
    Role.TEMPORARY,
    Role.MARKER,
    Role.OTHER,
}
"""Roles whose contents a section or the tensors speak of; files of the others are compared as they are."""

_UNORDERED = ("target_modules", "modules_to_save", "exclude_modules", "layers_to_transform")
_FIRST = ("global_step", "epoch", "best_metric", "best_global_step", "best_model_checkpoint", "max_steps")


class Sections:
    """Compares two targets; ``skipped`` collects what was not looked at, with the reason."""

    def __init__(self, left: Target, right: Target, *, deep: bool) -> None:
        self._left, self._right = left, right
        self._views = left.view, right.view
        self._deep = deep
        self.skipped: list[str] = []

    def all(self) -> list[Section]:
        """Return the sections that at least one side has, in reading order."""
        made = [
            self._files(),
            self._role("config", "config", Role.CONFIG),
            self._role("generation_config", "generation config", Role.GENERATION_CONFIG),
            self._pair("training_args", "training arguments", lambda view: view.training_args or None),
            self._trainer_state(),
            self._scheduler(),
            self._groups(),
            self._steps(),
            self._generators(),
            self._role("scaler", "gradient scaler", Role.SCALER),
            self._role("adapter_config", "adapter config", Role.ADAPTER_CONFIG, _sorted_lists),
            self._tokenizer(),
            diff_unread.arrays(self._views),
            self._rest(),
            self._others(),
        ]
        return [section for section in made if section is not None]

    # One subject, one function ---------------------------------------------------------------------------------

    def _files(self) -> Section | None:
        if self._left.file or self._right.file:
            return None
        sides = [_sizes(view) for view in self._views]
        found = [
            Change(path, *(each.get(path, MISSING) for each in sides))
            for path in [*sides[0], *(path for path in sides[1] if path not in sides[0])]
            if sides[0].get(path) != sides[1].get(path)
        ]
        added = sum(change.left is MISSING for change in found)
        removed = sum(change.right is MISSING for change in found)
        words = (
            (removed, "only on the left"),
            (added, "only on the right"),
            (len(found) - added - removed, "of another size"),
        )
        text = ", ".join(f"{number:,} {what}" for number, what in words if number)
        shown = tuple(found[:MOST_CHANGES])
        left_out = len(found) - len(shown)
        return Section("files", "files", shown, text, counts=False, left_out=left_out, unit="byte")

    def _role(
        self, name: str, title: str, role: Role, tidy: Callable[[Any], Any] = lambda value: value
    ) -> Section | None:
        """Compare the decoded files of one role, paired by path, or by order where the paths differ."""
        sides = [[(part.path, view, value) for part, value in view.values(role)] for view in self._views]
        if not any(sides) or not self._both(role):
            return None
        by_path = [{path: value for path, _, value in side} for side in sides]
        found: list[Change] = []
        if len(by_path[0]) == len(by_path[1]):
            keys = list(zip(by_path[0], by_path[1], strict=True))
        else:
            keys = [(path, path) for path in dict.fromkeys([*by_path[0], *by_path[1]])]
        for one, other in keys:
            values = by_path[0].get(one, MISSING), by_path[1].get(other, MISSING)
            found += self._compare(values, one if len(keys) > 1 else "", tidy)
        return _section(name, title, found)

    def _pair(self, name: str, title: str, get: Callable[[View], Value]) -> Section | None:
        values = [get(view) for view in self._views]
        if values == [None, None] or (None in values and (self._left.file or self._right.file)):
            return None
        return _section(name, title, self._compare((*(MISSING if v is None else v for v in values),), ""))

    def _trainer_state(self) -> Section | None:
        states = [view.state for view in self._views]
        made = self._pair("trainer_state", "trainer state", lambda view: _without(view.state, "log_history"))
        if made is None or None in states:
            return made
        ordered = sorted(made.changes, key=lambda c: _FIRST.index(c.key) if c.key in _FIRST else len(_FIRST))
        history = diff_log.compare(*((state or {}).get("log_history") for state in states))
        words = [f"{c.key} {c.left} → {c.right}" for c in ordered if c.key == "global_step"]
        every = (*ordered, *history)
        words.append(count(len(every) + made.left_out, "difference"))
        return Section(made.name, made.title, every, ", ".join(words) if every else "", left_out=made.left_out)

    def _scheduler(self) -> Section | None:
        made = self._pair("scheduler", "scheduler", lambda view: view.scheduler)
        if made is None:
            return None
        kinds = [_kind(schedules.scheduler(view.scheduler)) if view.scheduler else None for view in self._views]
        found = list(made.changes)
        if kinds[0] != kinds[1] and None not in kinds:
            found.insert(0, Change("kind", kinds[0], kinds[1]))
        positions = [(view.scheduler or {}).get("last_epoch") for view in self._views]
        words = [str(kinds[0])] if kinds[0] == kinds[1] and kinds[0] else []
        if positions[0] != positions[1] and all(isinstance(each, int) for each in positions):
            words.append(f"position {positions[0]} → {positions[1]}")
        words.append(count(len(found) + made.left_out, "difference"))
        return Section(made.name, made.title, tuple(found), ", ".join(words) if found else "", left_out=made.left_out)

    def _groups(self) -> Section | None:
        """Compare the optimizer's groups, each group's parameters by their number."""
        made = self._pair("optimizer", "optimizer groups", lambda view: _group_settings(view.optimizer))
        if made is None:
            return None
        kinds = [schedules.optimizer(view.optimizer) if view.optimizer else None for view in self._views]
        found = list(made.changes)
        if kinds[0] != kinds[1] and None not in kinds:
            found.insert(0, Change("kind", kinds[0], kinds[1]))
        return _section(made.name, made.title, found, left_out=made.left_out)

    def _steps(self) -> Section | None:
        """Compare the steps that the optimizer counted, and for how many parameters it has a state."""
        return self._pair("optimizer_state", "optimizer steps", _state_facts)

    def _generators(self) -> Section | None:
        def decoded(view: View) -> Value:
            ranks = {part.rank: value for part, value in view.values(Role.RNG)}
            if len(ranks) == 1:
                return next(iter(ranks.values()))
            return {f"rank {rank}": value for rank, value in ranks.items()} or None

        made = self._pair("rng", "random generators", decoded)
        if made is None:
            return None
        values = [self._plain(view, decoded(view)) for view in self._views]
        if not all(isinstance(value, dict) for value in values):
            return made
        found = list(_generators(values[0], values[1]))
        names = ", ".join(dict.fromkeys(change.key for change in found))
        return Section(made.name, made.title, tuple(found), f"other states: {names}" if found else "")

    def _tokenizer(self) -> Section | None:
        paths = [{part.path: part for part in view.checkpoint.of(Role.TOKENIZER)} for view in self._views]
        if not any(paths) or not self._both(Role.TOKENIZER):
            return None
        found = [c for path in dict.fromkeys([*paths[0], *paths[1]]) for c in self._file(path, paths[0], paths[1])]
        return _section("tokenizer", "tokenizer files", found)

    def unread(self) -> Iterator[str]:
        """Yield why the weights of a side were not compared, unless all files are the same."""
        yield from diff_unread.told((self._left, self._right), deep=self._deep)

    def _rest(self) -> Section | None:
        """Compare what a combined file holds beside weights, optimizer and scheduler, and lone numbers elsewhere."""

        def decoded(view: View) -> Value:
            part = view.checkpoint.first(Role.COMBINED)
            if part is None:
                return diff_unread.counters(view) or None
            content = view.content(part)
            mapping = as_mapping(content.value) if content is not None else None
            if mapping is None or content is None:
                return content.value if content is not None and not content.tensors else None
            known = [view.optimizer, view.scheduler]
            kept = {k: v for k, v in mapping.items() if not any(v is each for each in known)}
            return {k: v for k, v in kept.items() if not _only_tensors(v)} or None

        return self._pair("values", "other values", decoded)

    def _others(self) -> Section | None:
        if self._left.file or self._right.file:
            return None
        sides = []
        for view in self._views:
            parts = {part.path: part for part in view.checkpoint.parts if part.role not in _COMPARED}
            for path in view.checkpoint.unclaimed:
                if not path.startswith(f"{SIDECAR}/") and path != SIDECAR:
                    parts[path] = Part(path, Role.OTHER, view.checkpoint.layout, (), view.listing.files[path])
            sides.append(parts)
        if not any(sides):
            return None
        found = [c for path in dict.fromkeys([*sides[0], *sides[1]]) for c in self._file(path, sides[0], sides[1])]
        return _section("other_files", "other files", found)

    # How they compare ------------------------------------------------------------------------------------------

    def _both(self, role: Role) -> bool:
        """Return whether a role is to be compared: always between checkpoints, else where both sides have it."""
        if self._left.file or self._right.file:
            return all(view.checkpoint.has(role) for view in self._views)
        return True

    def _plain(self, view: View, value: Value) -> Any:
        return plain(value, lambda ref: fingerprint(view, ref))

    def _compare(
        self, values: tuple[Value, ...], at: str, tidy: Callable[[Any], Any] = lambda value: value
    ) -> list[Change]:
        if values[0] is MISSING or values[1] is MISSING:
            return [Change(at, *(MISSING if value is MISSING else "present" for value in values))]
        try:
            sides = [tidy(self._plain(view, value)) for view, value in zip(self._views, values, strict=True)]
            return changes(sides[0], sides[1], at)
        except (TooMuchError, RecursionError):
            self.skipped.append(f"{at or 'a value'}: too large or too deep to be compared")
            return []

    def _file(self, path: str, left: Mapping[str, Part], right: Mapping[str, Part]) -> list[Change]:
        """Compare two files of one name: by their bytes, and where those differ by what they hold."""
        parts = left.get(path), right.get(path)
        if parts[0] is None or parts[1] is None:
            return [Change(path, *(MISSING if part is None else _size(part.stat.size) for part in parts))]
        stats = parts[0].stat, parts[1].stat
        if not (stats[0].is_file and stats[1].is_file):
            return [] if stats[0].kind == stats[1].kind else [Change(path, str(stats[0].kind), str(stats[1].kind))]
        if stats[0].size > SMALL_FILE and not self._deep and stats[0].size == stats[1].size:
            self.skipped.append(f"{path}: {human_bytes(stats[0].size)} not compared (--no-tensors)")
            return []
        sizes = [_size(stat.size) for stat in stats]
        try:
            with self._views[0].listing.open(path) as one, self._views[1].listing.open(path) as other:
                if one.size == other.size and same_bytes((one, 0), (other, 0), one.size):
                    return []
                small = max(one.size, other.size) <= 16 * SMALL_FILE
                contents = [reader.read(source) for source in (one, other)] if small else []
        except SourceError as error:
            for view in self._views:
                view.errors.setdefault(path, error)
            return []
        if contents and all(each.readable and each.value is not None for each in contents):
            values = tuple(each.value for each in contents)
            return self._compare(values, f"{path}: " if isinstance(values[0], dict) else path)
        return [Change(path, sizes[0], sizes[1], "other bytes")]


def fingerprint(view: View, ref: TensorRef) -> float | int | bool | str | None:
    """Return what stands for a tensor inside settings: its number, or dtype, shape and a checksum of its bytes."""
    if ref.numel == 1:
        number = view.scalar(ref)
        if number is not None:
            return number
    if not is_dense(ref) or ref.nbytes > SMALL:
        return None
    extent = ref.chunks[0].extent
    with view.listing.open(extent.path) as source:
        return f"{ref.dtype}{list(ref.shape)}, crc32 {zlib.crc32(source.read(extent.offset, extent.length)):08x}"


def _section(name: str, title: str, found: list[Change], *, left_out: int = 0) -> Section:
    return Section(name, title, tuple(found), left_out=left_out)


def _size(value: Any) -> Any:
    return value if value is MISSING else count(value, "byte")


def _sizes(view: View) -> dict[str, int]:
    files = view.listing.files
    return {path: stat.size for path, stat in files.items() if stat.is_file and not path.startswith(f"{SIDECAR}/")}


def _without(mapping: Mapping[Any, Value] | None, key: str) -> dict[Any, Value] | None:
    return None if mapping is None else {name: value for name, value in mapping.items() if name != key}


def _kind(row: schedules.Fingerprint | None) -> str | None:
    return row.kind if row else None


def _sorted_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: sorted(each, key=repr) if key in _UNORDERED and isinstance(each, list) else each
        for key, each in value.items()
    }


def _group_settings(optimizer: Mapping[Any, Value] | None) -> Value:
    groups = (optimizer or {}).get("param_groups")
    if not isinstance(groups, list):
        return None
    mappings = [as_mapping(group) or {} for group in groups]
    members = [each.get("params") for each in mappings]
    every = [key for params in members if isinstance(params, list | tuple) for key in params]
    plain_order = every == list(range(len(every)))
    found = []
    for mapping, params in zip(mappings, members, strict=True):
        settings = {key: value for key, value in mapping.items() if key != "params"}
        if isinstance(params, list | tuple):
            settings["parameters"] = len(params)
            if not plain_order and not all(isinstance(key, str) for key in every):
                settings["params"] = f"{len(params)} in the order {zlib.crc32(repr(list(params)).encode()):08x}"
        found.append(settings)
    return {"param_groups": found}


def _state_facts(view: View) -> Value:
    if view.optimizer is None:
        return None
    steps = [step for step in view.numbers("optimizer-step") if step == step]
    entries = as_mapping(view.optimizer.get("state"))
    found: dict[str, Value] = {"parameters with a state": len(entries or {})}
    if steps:
        low, high = min(steps), max(steps)
        found["step"] = _number(low) if low == high else f"{_number(low)} to {_number(high)}"
    return found


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _only_tensors(value: Value) -> bool:
    """Return whether a value is a tensor or a state dict: the tensors tell of it."""
    if isinstance(value, TensorRef):
        return True
    mapping = as_mapping(value)
    return bool(mapping) and all(isinstance(each, TensorRef) for each in (mapping or {}).values())


def _generators(left: Mapping[Any, Any], right: Mapping[Any, Any], at: str = "") -> Iterator[Change]:
    for key in dict.fromkeys([*left, *right]):
        one, other = left.get(key, MISSING), right.get(key, MISSING)
        name = f"{at}{key}"
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _generators(one, other, f"{name} ")
        elif one is MISSING or other is MISSING:
            yield Change(name, *(MISSING if each is MISSING else "present" for each in (one, other)))
        elif not same(one, other):
            marks = (f"state {zlib.crc32(repr(each).encode()):08x}" for each in (one, other))
            yield Change(name, *marks)
