"""CK511 to CK514: the optimizer's moments against the weights.

A state dict stores no names and its numbers follow the groups, not the model, so that shapes are compared as a bag: a
moment needs *some* tensor of its shape.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from ckpt_tools.layouts import plain
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME, Severity, Spot
from ckpt_tools.model.optimizers import OptimizerState, Shape, key_name, read_state_dict, squeezed
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import as_mapping
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_SAME = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf")
_WEIGHTS_LIKE = (".safetensors", ".bin", ".pt", ".pth")
_NO_WEIGHTS = (*plain.OPTIMIZERS, *plain.SCHEDULERS, "callbacks", "loops")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "inv_freq", "position_ids")
_INTEGERS = ("int", "uint", "bool", "q")
# Sentence-transformers keep heads in directories and loss parameters nowhere.
_FOREIGN = ("modules.json", "config_sentence_transformers.json")
# Tensors that hold several others, in the names of models whose layers transformers 5 takes apart when it loads.
_FUSED = re.compile(r"qkv|kv_proj|gate_up|w13|w12|weights_in|in_proj")
_SHOWN = 10


def _optimizer(view: View) -> OptimizerState | None:
    """Return the only optimizer of the checkpoint, None where there is none or it is of another make."""
    parts = list(view.checkpoint.of(Role.OPTIMIZER, Role.COMBINED))
    return read_state_dict(view.optimizer or {}) if len(parts) == 1 else None


def _several(view: View) -> bool:
    """Whether the checkpoint is a file with more than one optimizer in it: each has a part of the model."""
    return len(list(plain.inside(view.mapping(Role.COMBINED) or {}, plain.OPTIMIZERS, "param_groups"))) > 1


def _path(checkpoint: Checkpoint) -> str:
    part = checkpoint.first(Role.OPTIMIZER, Role.COMBINED)
    return part.path if part is not None else ""


def _trained(view: View) -> dict[str, TensorRef] | None:
    """Return every tensor that the optimizer may train, None where the files cannot say.

    That is: weights in another framework's directories or in files that no layout knows (a second model, a head of
    its own), damaged or missing shards, adapters that are stored in another form than they are trained in, and
    experts, which newer loaders fuse.
    """
    checkpoint = view.checkpoint
    kinds = [str((as_mapping(value) or {}).get("peft_type")).upper() for _, value in view.values(Role.ADAPTER_CONFIG)]
    shards = [part.shard for part in view.weight_parts if part.shard is not None]
    beside = any(path.endswith(_WEIGHTS_LIKE) or path in _FOREIGN for path in checkpoint.unclaimed)
    if view.elsewhere is not None or beside or any(kind != "LORA" for kind in kinds):
        return None
    if shards and len(shards) < shards[0][1]:
        return None
    found: dict[str, TensorRef] = {}
    for part in checkpoint.of(Role.WEIGHTS, Role.ADAPTER, Role.CUSTOM, Role.COMBINED):
        content = view.content(part)
        if content is None or not content.readable or content.problems:
            return None
        own = tuple(f"{key}." for key in _NO_WEIGHTS) if part.role is Role.COMBINED else ()
        found |= {f"{part.path}:{name}": ref for name, ref in content.tensors.items() if not name.startswith(own)}
    if not found or any(".experts." in name for name in found):
        return None
    empty = sum(ref.numel == 0 for ref in found.values())  # placeholders, which CK312 tells
    return None if empty and (2 * empty > len(found) or checkpoint.has(Role.ADAPTER)) else found


def _unmatched(optimizer: OptimizerState, trained: Mapping[str, TensorRef]) -> tuple[Counter[Shape], bool]:
    """Return the shapes of moments that no tensor is left for, and whether one of them occurs nowhere at all.

    None are returned where all of them may be slices of tensors that a newer transformers splits when it loads.
    """
    stored = Counter(squeezed(ref.shape) for ref in trained.values())
    lost = optimizer.shapes() - stored
    fused = _fused(trained)
    if all(any(_is_slice(shape, whole) for whole in fused) for shape in lost):
        return Counter(), False
    return lost, any(shape not in stored for shape in lost)


def _fused(trained: Mapping[str, TensorRef]) -> set[Shape]:
    return {squeezed(ref.shape) for name, ref in trained.items() if _FUSED.search(name)}


def _is_slice(shape: Shape, whole: Shape) -> bool:
    return len(shape) == len(whole) > 0 and shape[0] < whole[0] and shape[1:] == whole[1:]


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
        shapes = {name: entry[name] for name in _SAME if squeezed(entry.get(name, ()))}
        if len(set(shapes.values())) > 1:
            said = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            at = Spot(key=f"state[{key_name(key)}]")
            yield Hit("two moments of one parameter have different shapes", _path(checkpoint), at, (said,))
            return
    if trained is None or not optimizer.numbered or len(optimizer.ids) > len(trained):
        return
    lost, nowhere = _unmatched(optimizer, trained)
    if lost and nowhere:
        yield Hit(
            "the optimizer has moments of a shape that no weight has",
            _path(checkpoint),
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

    **Known exceptions.** As for CK511; weights in files that no layout knows silence it, and so do tensors like `qkv`
    where all that is left over may be a slice of them: transformers 5 takes them apart when it loads.
    """
    optimizer, trained = _optimizer(context.view), _trained(context.view)
    if optimizer is None or trained is None or not optimizer.numbered or len(optimizer.ids) <= len(trained):
        return
    lost, _ = _unmatched(optimizer, trained)
    if not lost and _fused(trained):
        return
    yield Hit(
        f"the optimizer has {len(optimizer.ids):,} parameters, the weights have {len(trained):,} tensors",
        _path(checkpoint),
        Spot(key="param_groups"),
        (f"moments without a counterpart: {_said(lost)}",) if lost else (),
    )


@rule("CK513", "optimizer-fewer-than-weights", Severity.NOTE, Checkpoint)
def optimizer_fewer_than_weights(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer has fewer parameters than there are stored tensors.

    **Why it matters.** It is what a frozen part looks like, or a second adapter that is not trained.

    **How to repair.** Nothing needs to be done, if part of the model was meant to be frozen.

    **Known exceptions.** Buffers such as running means are not counted, and tied weights once. Of a file that holds
    more than a model, its averages for one, the model's tensors count; several optimizers in it are not judged.
    """
    optimizer, trained = _optimizer(context.view), _trained(context.view)
    if optimizer is None or trained is None or not optimizer.numbered or _several(context.view):
        return
    mixed = checkpoint.has(Role.COMBINED) and context.view.weights
    own = {id(ref) for ref in mixed.values()} if mixed else set(map(id, trained.values()))
    floats = [
        ref
        for name, ref in trained.items()
        if id(ref) in own and not name.endswith(_BUFFERS) and not ref.dtype.startswith(_INTEGERS)
    ]
    count = len({(ref.storage_id, ref.chunks) if ref.chunks else id(ref) for ref in floats})
    if len(optimizer.ids) < count:
        yield Hit(
            f"the optimizer trains {len(optimizer.ids):,} of {count:,} tensors; the rest is frozen", _path(checkpoint)
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
            related=(_path(checkpoint),),
        )


RULES: tuple[Rule, ...] = (
    moment_shape_mismatch,
    optimizer_more_than_weights,
    optimizer_fewer_than_weights,
    weights_miss_trained_tensor,
)
