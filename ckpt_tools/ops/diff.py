"""``ckpt diff``: what changed between two checkpoints?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import inf

from ckpt_tools._version import __version__
from ckpt_tools.containers.reader import describe as kind_name
from ckpt_tools.core.errors import UsageError
from ckpt_tools.core.progress import SILENT, Progress
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.ops import diff_groups, diff_log, diff_names, diff_reasons, diff_sealed, diff_tensors
from ckpt_tools.ops.diff_sections import Sections
from ckpt_tools.ops.diff_targets import Target, find
from ckpt_tools.reports.diff import DiffReport, Tensors

BY = ("layer", "role")
Sides = list[dict[str, TensorRef]]
Pairs = list[diff_tensors.Pair]

_NUMBERED = re.compile(r"state\.\d+\.")
"""How an optimizer's state is keyed that knows its parameters by their number."""


def diff(
    left: str,
    right: str,
    *,
    tensors: bool = True,
    maps: tuple[str, ...] = (),
    strip_prefixes: tuple[str, ...] = (),
    tolerance: float = 0.0,
    by: str | None = None,
    top: int | None = None,
    jobs: int | None = None,
    progress: Progress = SILENT,
) -> DiffReport:
    """Compare two checkpoints, or two files, or two runs by their newest good checkpoints.

    Args:
        left: a path, or ``RUN@STEP``.
        right: likewise; formats and shardings may differ.
        tensors: compare values; without it only names, dtypes and shapes.
        maps: ``REGEX=REPLACEMENT`` for names of both sides.
        strip_prefixes: beginnings of names that are taken off first.
        tolerance: tensors whose largest difference is no larger count as the same.
        by: also group the tensors by ``layer`` or by ``role`` (their kind within the layer).
        top: list so many tensors, or groups, that moved most.
        jobs: threads that read and compare.
        progress: where progress is announced.

    Raises:
        NothingFoundError: a path does not exist, or holds no checkpoint.
        UsageError: arguments that cannot be meant.
    """
    if not 0 <= tolerance < inf:
        raise UsageError(f"the tolerance must be a number of at least 0, not {tolerance}")
    if by is not None and by not in BY:
        raise UsageError(f"by is {by!r}; there are: {', '.join(BY)}")
    rename = diff_names.naming(maps, strip_prefixes)
    targets = find(left, progress), find(right, progress)
    views = targets[0].view, targets[1].view
    sections = Sections(*targets, deep=tensors)
    seals = diff_sealed.read(targets[0]), diff_sealed.read(targets[1])
    listed = (*sections.all(), *diff_sealed.sections(seals))

    names, moments, pairs, moment_pairs = _matched(targets, rename)
    every = [*pairs, *moment_pairs]
    settled = diff_sealed.settle(every, seals)
    hints = 0 if tensors else diff_sealed.checksums(every, views)
    if tensors:
        diff_tensors.compare(every, (views[0].listing, views[1].listing), jobs=jobs, progress=progress)

    grouped = partial(_grouped, compared=tensors, tolerance=tolerance, by=by)
    owners = _owners(views[0], names[0], moment_pairs) if moment_pairs else {}
    found = grouped("weights", names, pairs)
    made = grouped("optimizer state", moments, moment_pairs, owners=owners)
    reasons = tuple(diff_reasons.reasons(found, pairs, views, (list(names[0]), list(names[1])), made)) if found else ()
    report = DiffReport(
        __version__,
        targets[0].path,
        targets[1].path,
        (views[0].step, views[1].step),
        (),
        listed,
        found,
        made,
        reasons,
        tuple(_took(target, side) for target, side in zip(targets, ("left", "right"), strict=True) if target.taken),
        tuple(dict.fromkeys([*_trouble(targets), *_broken(pairs), *_broken(moment_pairs), *sections.unread()])),
        tuple(_notes(sections, seals, settled, hints)),
        tuple(diff_log.charts(views[0].state, views[1].state, (targets[0].path, targets[1].path))),
        by,
        top,
    )
    for view in views:
        view.close()
    return replace(report, headline=tuple(diff_reasons.headline(report)))


def _matched(targets: tuple[Target, Target], rename: diff_names.Naming) -> tuple[Sides, Sides, Pairs, Pairs]:
    """Return the tensors and the moments of both sides by common names, and what each has in common."""
    views = targets[0].view, targets[1].view
    models = [_model(view) for view in views]
    names = [rename.apply(model, side) for (model, _), side in zip(models, ("left", "right"), strict=True)]
    parts = {rename(name): part for _, known in models for name, part in known.items()}
    moments = _met([_moments(view, rename) for view in views], views, names)
    if targets[0].file or targets[1].file:  # one file has no say on what the other side holds beside it
        names = names if all(names) else [{}, {}]
        moments = moments if all(moments) else [{}, {}]
    pairs = diff_groups.match(names[0], names[1], parts)
    moment_pairs = diff_groups.match(moments[0], moments[1], dict.fromkeys(moments[0], "optimizer"))
    return names, moments, pairs, moment_pairs


def _grouped(
    name: str,
    sides: Sides,
    pairs: Pairs,
    *,
    compared: bool,
    tolerance: float,
    by: str | None,
    owners: diff_groups.Owners | None = None,
) -> Tensors | None:
    """Return what is told of one kind of tensors, None where neither side has any."""
    if not any(sides):
        return None
    left, right = sides
    only = diff_groups.alone(left, right), diff_groups.alone(right, left)
    return diff_groups.tensors(name, pairs, only, compared=compared, tolerance=tolerance, by=by, owners=owners)


def _took(target: Target, side: str) -> str:
    return f"{side}: took {target.path}, {target.taken}"


def _notes(
    sections: Sections, seals: tuple[diff_sealed.Sealed, diff_sealed.Sealed], settled: int, hints: int
) -> Iterator[str]:
    if settled:
        yield f"{settled:,} tensors are equal by the manifests of both sides and were not read"
    if hints:
        yield f"{hints:,} tensors have the size and the stored checksum of the other side: probably equal, not compared"
    yield from (seal.note for seal in seals if seal.note)
    yield from sections.skipped


def _model(view: View) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """Return the tensors that are the model, by name, and which part of the checkpoint each is of."""
    found = dict(view.weights)
    parts = dict.fromkeys(found, "weights")
    for adapter, tensors in view.adapters().items():
        for name, ref in tensors.items():
            name = f"{adapter}/{name}" if adapter else name
            found[name], parts[name] = ref, "adapter"
    known = {id(ref) for ref in [*found.values(), *view.optimizer_tensors.values()]}
    for part in view.checkpoint.of(Role.COMBINED):
        content = view.content(part)
        for name, ref in content.tensors.items() if content is not None else ():
            if ref.shape and id(ref) not in known and name not in found:  # a lone number is a counter
                found[name], parts[name] = ref, "other"
    return _leaves(found), parts


def _moments(view: View, rename: diff_names.Naming) -> dict[str, TensorRef]:
    """Return the optimizer's tensors by key path, but for the step counts, which a section tells."""
    found = dict(view.optimizer_tensors)
    for part in list(view.checkpoint.of(Role.OPTIMIZER))[1:]:
        content = view.content(part)
        found.update({f"{part.path}:{name}": ref for name, ref in (content.tensors if content else {}).items()})
    states = {name: ref for name, ref in found.items() if "state." in name or "/" in name}  # of torch, of TensorFlow
    inside = {name: ref for name, ref in states.items() if not name.endswith(".step")}
    renamed = {_renamed(name, rename): ref for name, ref in inside.items()}
    return _leaves(renamed if len(renamed) == len(inside) else inside)


def _renamed(key: str, rename: diff_names.Naming) -> str:
    head, mark, tail = key.partition("state.")
    return head + mark + rename(tail) if not head else key


def _met(moments: Sides, views: tuple[View, View], names: Sides) -> Sides:
    """Give moments the names of their parameters on the side that numbers them, where the other side has names."""
    numbered = [any(_NUMBERED.match(key) for key in each) for each in moments]
    if not all(moments) or numbered[0] == numbered[1]:
        return moments
    side = numbered.index(True)
    optimizer, weights = views[side].optimizer, names[side] or names[1 - side]
    known = diff_names.parameter_names(optimizer, weights) if optimizer is not None else {}
    found = list(moments)
    found[side] = diff_names.renumbered(moments[side], known)
    return found


def _leaves(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Leave out tensors that are made of others, which are named after them (quantised and sparse ones)."""
    hollow = {name for name, ref in tensors.items() if not ref.chunks and ref.kind and ref.numel}
    parents = {name.rpartition(".")[0] for name in tensors}
    return {name: ref for name, ref in tensors.items() if name not in hollow or name not in parents}


def _owners(view: View, weights: Mapping[str, TensorRef], pairs: list[diff_tensors.Pair]) -> diff_groups.Owners:
    """Return the weight's name and the moment's for every moment whose weight is known."""
    known = diff_names.parameter_names(view.optimizer, weights) if view.optimizer is not None else {}
    found = {}
    for pair in pairs:
        key = pair.name.removeprefix("state.")
        number, _, rest = key.partition(".")
        parameter, _, moment = key.rpartition(".")
        if number in known:
            found[pair.name] = known[number], rest
        elif parameter in weights:
            found[pair.name] = parameter, moment
    return found


def _trouble(targets: tuple[Target, Target]) -> list[str]:
    """Return what could not be read of either side: files, and files that are not what they should be."""
    found = []
    for target in targets:
        view = target.view
        for part in view.checkpoint.parts:
            content = view.content(part) if part.containers or part.role is Role.COMBINED else None
            if content is not None and not content.readable and part.stat.is_file:
                why = "; ".join(problem.message for problem in content.problems) or f"is {kind_name(content.container)}"
                found.append(f"{target.path}: {part.path}: {why}")
        found += [f"{target.path}: {error}" for error in view.errors.values()]
    return found


def _broken(pairs: list[diff_tensors.Pair]) -> list[str]:
    return [f"{pair.name}: {pair.why}" for pair in pairs if pair.broken][:10]


__all__ = ["BY", "DiffReport", "Tensors", "diff"]
