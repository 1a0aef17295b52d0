"""CK51x and CK521: the optimizer's state against the weights and against itself.

A state dict stores no names and its numbers follow the groups, not the model, so that shapes are compared as a bag: a
moment needs *some* tensor of its shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_tools.containers.torch_values import numpy_scalar_value
from ckpt_tools.layouts import plain
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME, DEGRADES_RESUME, Fix, Severity, Spot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Value, as_mapping, children
from ckpt_tools.rules.base import Context, Hit, Rule, rule

Shape = tuple[int, ...]

# What optimizers keep per parameter in the parameter's own shape; the first of these that is there counts.
_MOMENTS = ("exp_avg", "exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "sum", "acc_delta", "z")
_SAME = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf")
_LOW_RANK = ("rank", "proj_type", "update_proj_gap")
_WEIGHTS_LIKE = (".safetensors", ".bin", ".pt", ".pth")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "inv_freq", "position_ids")
_INTEGERS = ("int", "uint", "bool", "q")
_MAX_SCALARS = 1000
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class _Optimizer:
    """A torch optimizer's state dict: its groups, the ids of its parameters in order, and its state by id."""

    path: str
    groups: list[Mapping[Any, Value]]
    ids: list[Value]
    state: Mapping[Any, Value]

    @property
    def numbered(self) -> bool:
        """Whether parameters are told by number; full states of FSDP use names."""
        return all(type(name) is int for name in self.ids)

    def entries(self) -> Iterator[tuple[Value, dict[str, Shape]]]:
        """Yield the shapes of the tensors kept for a parameter by their name."""
        for key, value in self.state.items():
            entry = as_mapping(value) or {}
            yield key, {str(name): ref.shape for name, ref in entry.items() if isinstance(ref, TensorRef)}

    def shapes(self) -> Counter[Shape]:
        """Return the shapes of the parameters, as far as their state tells them; none where it is of low rank."""
        if any(key in group for group in self.groups for key in _LOW_RANK):
            return Counter()
        found = (_shape(entry) for _, entry in self.entries())
        return Counter(shape for shape in found if shape is not None)


def _shape(entry: dict[str, Shape]) -> Shape | None:
    if "exp_avg_sq_row" in entry and "exp_avg_sq_col" in entry:  # Adafactor and its kin: all but one dimension each
        return _squeezed((*entry["exp_avg_sq_row"], *entry["exp_avg_sq_col"][-1:]))
    return next((_squeezed(entry[name]) for name in _MOMENTS if name in entry), None)


def _squeezed(shape: Shape) -> Shape:
    """Return ``shape`` without sizes of 1, which adapters and quantisers add and drop."""
    return tuple(size for size in shape if size != 1)


def _optimizer(view: View) -> _Optimizer | None:
    """Return the only optimizer of the checkpoint, None where there is none or it is of another make."""
    parts = list(view.checkpoint.of(Role.OPTIMIZER, Role.COMBINED))
    value = view.optimizer or {}
    groups, state = value.get("param_groups"), as_mapping(value.get("state"))
    if len(parts) != 1 or not isinstance(groups, list) or not groups or state is None:
        return None
    found = [group for value in groups if (group := as_mapping(value)) is not None]
    lists = [group["params"] for group in found if isinstance(group.get("params"), list | tuple)]
    if len(lists) != len(groups):
        return None
    return _Optimizer(parts[0].path, found, [item for ids in lists for item in ids], state)


def _trained(view: View) -> dict[str, TensorRef] | None:
    """Return every tensor that the optimizer may train, None where the files cannot say.

    That is: weights in another framework's directories or in files that no layout knows (a second model, a head of
    its own), damaged or missing shards, adapters that are stored in another form than they are trained in, and
    experts, which newer loaders fuse.
    """
    checkpoint = view.checkpoint
    kinds = [str((as_mapping(value) or {}).get("peft_type")).upper() for _, value in view.values(Role.ADAPTER_CONFIG)]
    shards = [part.shard for part in view.weight_parts if part.shard is not None]
    beside = any(path.endswith(_WEIGHTS_LIKE) for path in checkpoint.unclaimed)
    if view.elsewhere is not None or beside or any(kind != "LORA" for kind in kinds):
        return None
    if shards and len(shards) < shards[0][1]:
        return None
    found: dict[str, TensorRef] = {}
    for part in checkpoint.of(Role.WEIGHTS, Role.ADAPTER, Role.CUSTOM, Role.COMBINED):
        content = view.content(part)
        if content is None or not content.readable:
            return None
        own = tuple(f"{key}." for key in plain.OPTIMIZER_KEYS) if part.role is Role.COMBINED else ()
        found |= {f"{part.path}:{name}": ref for name, ref in content.tensors.items() if not name.startswith(own)}
    return None if not found or any(".experts." in name for name in found) else found


def _unmatched(optimizer: _Optimizer, trained: Mapping[str, TensorRef]) -> tuple[Counter[Shape], bool]:
    """Return the shapes of moments that no tensor is left for, and whether one of them occurs nowhere at all."""
    stored = Counter(_squeezed(ref.shape) for ref in trained.values())
    lost = optimizer.shapes() - stored
    return lost, any(shape not in stored for shape in lost)


def _listed(texts: Iterable[str]) -> str:
    names = list(texts)
    more = f" ... and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _said(lost: Counter[Shape]) -> str:
    return _listed(
        f"{list(shape)} ({count:,} times)" if count > 1 else str(list(shape)) for shape, count in lost.items()
    )


@rule("CK511", "moment-shape-mismatch", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def moment_shape_mismatch(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer's moments have a shape that no stored tensor has, or two moments of one parameter differ.

    **Why it matters.** torch does not look at shapes when it loads an optimizer. The first step then fails, or, with
    the fused kernels, writes beyond the end of memory: nonsense, or a crash without a word.

    **How to repair.** The optimizer is of another model, or one of the files is damaged: take both from one
    checkpoint.

    **Known exceptions.** Factored moments are put together again; low-rank (GaLore) and quantised ones, experts
    (fused at load), adapters other than LoRA and the shards of FSDP and DeepSpeed are not compared. Sizes of 1 do not
    count.
    """
    optimizer, trained = _optimizer(context.view), _trained(context.view)
    if optimizer is None:
        return
    for key, entry in optimizer.entries():
        shapes = {name: entry[name] for name in _SAME if _squeezed(entry.get(name, ()))}
        if len(set(shapes.values())) > 1:
            said = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            at = Spot(key=f"state[{key}]")
            yield Hit("two moments of one parameter have different shapes", optimizer.path, at, (said,))
            return
    if trained is None or not optimizer.numbered or len(optimizer.ids) > len(trained):
        return
    lost, nowhere = _unmatched(optimizer, trained)
    if lost and nowhere:
        yield Hit(
            "the optimizer has moments of a shape that no weight has",
            optimizer.path,
            Spot(key="state"),
            (
                f"without a counterpart: {_said(lost)}",
                "torch loads them in silence and fails at the first step, or crashes",
            ),
        )


@rule("CK512", "optimizer-more-than-weights", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def optimizer_more_than_weights(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer has more parameters than there are stored tensors.

    **Why it matters.** Either weights are missing from the file, or the optimizer is of another model: then torch
    says `parameter group that doesn't match the size of optimizer's group`.

    **How to repair.** Take optimizer and weights from one checkpoint.

    **Known exceptions.** As for CK511; weights in files that no layout knows silence it.
    """
    optimizer, trained = _optimizer(context.view), _trained(context.view)
    if optimizer is None or trained is None or not optimizer.numbered or len(optimizer.ids) <= len(trained):
        return
    lost, _ = _unmatched(optimizer, trained)
    yield Hit(
        f"the optimizer has {len(optimizer.ids):,} parameters, the weights have {len(trained):,} tensors",
        optimizer.path,
        Spot(key="param_groups"),
        (f"moments without a counterpart: {_said(lost)}",) if lost else (),
    )


@rule("CK513", "optimizer-fewer-than-weights", Severity.NOTE, Checkpoint)
def optimizer_fewer_than_weights(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer has fewer parameters than there are stored tensors.

    **Why it matters.** It is what a frozen part looks like, or a second adapter that is not trained.

    **How to repair.** Nothing needs to be done, if part of the model was meant to be frozen.

    **Known exceptions.** Buffers such as running means are not counted, and tied weights once.
    """
    optimizer, trained = _optimizer(context.view), _trained(context.view)
    if optimizer is None or trained is None or not optimizer.numbered:
        return
    floats = [
        ref for name, ref in trained.items() if not name.endswith(_BUFFERS) and not ref.dtype.startswith(_INTEGERS)
    ]
    count = len({(ref.storage_id, ref.chunks) if ref.chunks else id(ref) for ref in floats})
    if len(optimizer.ids) < count:
        yield Hit(
            f"the optimizer trains {len(optimizer.ids):,} of {count:,} tensors; the rest is frozen", optimizer.path
        )


@rule("CK514", "weights-miss-trained-tensor", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def weights_miss_trained_tensor(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The weights have fewer tensors of a shape than the optimizer has moments for.

    **Why it matters.** A tensor that was trained was not saved: it gets fresh random values, in silence.

    **How to repair.** The values are not here: fall back to an older checkpoint.

    **Known exceptions.** As for CK511, which tells it where the shape is nowhere in the weights.
    """
    optimizer, trained = _optimizer(context.view), _trained(context.view)
    if optimizer is None or trained is None or not optimizer.numbered or len(optimizer.ids) > len(trained):
        return
    lost, nowhere = _unmatched(optimizer, trained)
    if lost and not nowhere:
        yield Hit(
            "the weights miss tensors that the optimizer trains",
            detail=(f"shapes of which there are too few: {_said(lost)}",),
            related=(optimizer.path,),
        )


@rule("CK515", "parameter-ids-invalid", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def parameter_ids_invalid(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The parameters' numbers in the optimizer's groups are not 0 to n-1, each once, or the state has others.

    **Why it matters.** State is found through these numbers: with a wrong one a parameter's moments start afresh, or
    go to another parameter, in silence.

    **How to repair.** The file was edited or put together: take it from another checkpoint.

    **Known exceptions.** Full states of FSDP use names. Very old ones used addresses in memory, which only need to
    differ. A parameter without state is legal.
    """
    optimizer = _optimizer(context.view)
    if optimizer is None:
        return
    ids = optimizer.ids
    if not all(type(item) in (int, str) for item in ids):
        yield Hit("parameters are neither numbered nor named", optimizer.path, Spot(key="param_groups"))
        return
    counts = Counter(ids)
    twice = [str(item) for item, count in counts.items() if count > 1]
    outside = [str(item) for item in counts if type(item) is int and not 0 <= item < max(len(ids), 1)]
    if twice or (outside and optimizer.numbered and max(counts) < 1 << 32):
        said = f"twice: {_listed(twice)}" if twice else f"not between 0 and {len(ids) - 1:,}: {_listed(outside)}"
        yield Hit("the numbers of the parameters are not 0 to n-1", optimizer.path, Spot(key="param_groups"), (said,))
    strange = [repr(key)[:60] for key in optimizer.state if type(key) in (int, str) and key not in counts]
    if strange:
        yield Hit(
            "the state has entries for parameters that no group has",
            optimizer.path,
            Spot(key=f"state[{strange[0]}]"),
            (f"{len(strange):,} of {len(optimizer.state):,}: {_listed(strange)}",),
        )


@rule("CK516", "moments-missing", Severity.NOTE, Checkpoint)
def moments_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer has no state for some of its parameters, or for none of them though it is past its first step.

    **Why it matters.** Without any, all moments start afresh while the step and the schedule go on: an error. For
    some it is normal: parameters that never got a gradient have none.

    **How to repair.** Take the optimizer's file from another checkpoint of the run.

    **Known exceptions.** Optimizers without moments: only groups with `betas` count.
    """
    optimizer = _optimizer(context.view)
    if optimizer is None or not optimizer.ids or not any("betas" in group for group in optimizer.groups):
        return
    steps = [context.view.number(quantity) or 0 for quantity in ("step", "scheduler-step")]
    if not optimizer.state and max(steps) > 0:
        yield Hit(
            "the optimizer has no state at all",
            optimizer.path,
            Spot(key="state"),
            (f"{len(optimizer.ids):,} parameters would start with fresh moments at step {max(steps):,.0f}",),
            severity=Severity.ERROR,
            impact=DEGRADES_RESUME,
        )
    elif 0 < len(optimizer.state) < len(optimizer.ids):
        count = len(optimizer.ids) - len(optimizer.state)
        text = f"{count:,} of {len(optimizer.ids):,} parameters have no state: they never got a gradient, or lost it"
        yield Hit(text, optimizer.path, Spot(key="state"))


@rule("CK517", "group-hyperparameters-missing", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def group_hyperparameters_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A group of the optimizer lacks `lr`, or lacks `betas` where its moments are Adam's.

    **Why it matters.** The saved groups replace the new ones as a whole: the first step stops with a `KeyError`.

    **How to repair.** Take the optimizer's file from another checkpoint of the run.

    **Known exceptions.** Optimizers that name their betas otherwise (`beta1`), and groups of another rule (Muon's
    `momentum`).
    """
    optimizer = _optimizer(context.view)
    if optimizer is None:
        return
    adam = any({"exp_avg", "exp_avg_sq"} <= entry.keys() for _, entry in optimizer.entries())
    for place, group in enumerate(optimizer.groups):
        keys = {str(key) for key in group}
        other = "momentum" in keys or any(key.startswith("beta") for key in keys)
        lacking = [*(["lr"] if "lr" not in keys else []), *(["betas"] if adam and not other else [])]
        if lacking and group["params"]:
            yield Hit(
                f"group {place} of the optimizer lacks {' and '.join(lacking)}",
                optimizer.path,
                Spot(key=f"param_groups[{place}]"),
                (f"it has {_listed(sorted(keys))}",),
            )


@rule("CK521", "rate-numpy-scalar", Severity.ERROR, Part, impact=None)
def rate_numpy_scalar(part: Part, context: Context) -> Iterator[Hit]:
    """The optimizer's or scheduler's file holds a number as a numpy scalar: mostly a learning rate.

    **Why it matters.** `torch.load(weights_only=True)`, which a resume uses, refuses numpy scalars: `Unsupported
    global: numpy._core.multiarray.scalar`. Some schedules and user code make the rate one.

    **How to repair.** Write the same number as a plain float; nothing else changes.
    """
    content = context.content(part)
    if part.role not in (Role.OPTIMIZER, Role.SCHEDULER, Role.SCALER) or content is None or not content.readable:
        return
    if not any(name.endswith(".multiarray.scalar") for name in content.globals):
        return
    found = list(_scalars(content.value))
    if found:
        yield Hit(
            f"{len(found):,} number{' is a numpy scalar' if len(found) == 1 else 's are numpy scalars'}",
            part.path,
            Spot(key=found[0][0]),
            (_listed(f"{key} = {number}" for key, number in found), "a resume stops: torch.load refuses such a file"),
            fix=Fix("write them as plain numbers", True, "replace-numpy-scalar", {"keys": [key for key, _ in found]}),
            impact=context.damaged(part),
        )


def _scalars(value: Value) -> Iterator[tuple[str, float]]:
    """Yield the numpy scalars below ``value`` with their key paths."""
    work = [("", value)]
    count = 0
    while work and count < _MAX_SCALARS:
        at, item = work.pop()
        number = numpy_scalar_value(item) if isinstance(item, Opaque) else None
        if number is not None:
            count += 1
            yield at.removeprefix("."), number
        elif not isinstance(item, Opaque) or at == "":
            work += [(at + key, child) for key, child in reversed(list(children(item)))]


RULES: tuple[Rule, ...] = (
    moment_shape_mismatch,
    optimizer_more_than_weights,
    optimizer_fewer_than_weights,
    weights_miss_trained_tensor,
    parameter_ids_invalid,
    moments_missing,
    group_hyperparameters_missing,
    rate_numpy_scalar,
)
