"""CK31x: the model's tensors against its config: what is empty, missing, misnamed or of another size."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import (
    BREAKS_ALL,
    BREAKS_INFERENCE,
    DEGRADES_ALL,
    HARMLESS,
    Fix,
    Severity,
    Spot,
)
from ckpt_tools.model.values import Value
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|token_embedding|shared)\.weight\Z"
)
_HEAD = re.compile(
    r"lm_head|(?:^|\.)(?:embed_out|unembed|output_layer|output|head|cls|proj_out|output_projection|lm_loss|pred_layer)\."
)
_WRAPPED = re.compile(r"(?:^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_LEADING = re.compile(r"module\.")
_FLOATS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_SHOWN = 10


def _listed(names: list[str]) -> str:
    more = f" ... and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _elsewhere(view: View) -> str:
    return f"the weights of this {view.elsewhere} checkpoint are in its own directories; this file only stands for them"


def _whole(view: View) -> bool:
    """Whether all of the model's weights were read, so that what is not there is missing."""
    parts = view.weight_parts
    if not parts or view.elsewhere is not None:
        return False
    contents = [view.content(part) for part in parts]
    if any(content is None or not content.readable or content.problems for content in contents):
        return False
    shards = {part.shard for part in parts if part.shard is not None}
    named = {file for _, value in view.values(Role.INDEX) for file in _files(value)}
    present = {part.path for part in parts}
    if shards and named:
        return named <= present
    return not shards or len(shards) == next(iter(shards))[1]


def _files(value: Value) -> set[str]:
    names = value.get("weight_map") if isinstance(value, dict) else None
    return {file for file in names.values() if isinstance(file, str)} if isinstance(names, dict) else set()


@rule("CK311", "no-tensors", Severity.ERROR, Part, impact=None)
def no_tensors(part: Part, context: Context) -> Iterator[Hit]:
    """A weights or adapter file is valid and holds no tensor at all.

    **Why it matters.** 16 to 40 bytes that every loader accepts: with ZeRO-3 each rank saved what it owned, which was
    nothing. The training looked perfect; the result is not here.

    **How to repair.** For ZeRO-3 run `ckpt merge` on its `global_step*` directory (or `zero_to_fp32.py` in the
    checkpoint), or save again with `stage3_gather_16bit_weights_on_model_save`. Otherwise fall back to an older one.

    **Known exceptions.** Beside a DeepSpeed or FSDP directory, which then holds the weights, it is a note.
    """
    content = context.content(part)
    if part.role not in (Role.WEIGHTS, Role.ADAPTER) or content is None or not content.readable or content.tensors:
        return
    if content.container not in part.containers and part.containers:
        return
    elsewhere = context.view.elsewhere is not None and part.role is Role.WEIGHTS
    yield Hit(
        "the file holds no tensor",
        part.path,
        detail=(
            f"has {content.size:,} bytes and is otherwise valid, so that loaders accept it in silence",
            *((_elsewhere(context.view),) if elsewhere else ()),
        ),
        severity=Severity.NOTE if elsewhere else None,
        impact=BREAKS_INFERENCE if elsewhere else context.damaged(part),
    )


@rule("CK312", "empty-tensors", Severity.ERROR, Part, impact=None)
def empty_tensors(part: Part, context: Context) -> Iterator[Hit]:
    """Tensors of an adapter, or most tensors of a weights file, have size 0.

    **Why it matters.** ZeRO-3 leaves placeholders of shape `[0]` in place of parameters that live on other ranks.
    Loading says `size mismatch ... torch.Size([0]) from checkpoint`.

    **How to repair.** Run `ckpt merge` on the `global_step*` directory of the checkpoint, where it has one (or
    `zero_to_fp32.py`); otherwise fall back.

    **Known exceptions.** A buffer may have size 0: in full weights it is told only when more than half are empty.
    """
    content = context.content(part)
    if part.role not in (Role.WEIGHTS, Role.ADAPTER) or content is None or not content.readable:
        return
    empty = [name for name, ref in content.tensors.items() if ref.numel == 0]
    if not empty or (part.role is Role.WEIGHTS and 2 * len(empty) <= len(content.tensors)):
        return
    elsewhere = context.view.elsewhere is not None and part.role is Role.WEIGHTS
    yield Hit(
        f"{len(empty):,} of {len(content.tensors):,} tensors have size 0",
        part.path,
        Spot(tensor=empty[0]),
        (_listed(empty), *((_elsewhere(context.view),) if elsewhere else ())),
        severity=Severity.NOTE if elsewhere else None,
        impact=BREAKS_INFERENCE if elsewhere else context.damaged(part),
    )


@rule("CK313", "embedding-rows", Severity.WARNING, Checkpoint, impact=BREAKS_INFERENCE)
def embedding_rows(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The embedding has another number of rows than `vocab_size` of the config says.

    **Why it matters.** `from_pretrained` builds the model from the config and refuses weights of another shape.
    Mostly the embedding was resized for new tokens and the config was not, or the config is of another model.

    **How to repair.** Set `vocab_size` in `config.json` to the number of rows.

    **Known exceptions.** Any `..vocab_size` of the config may be meant, nested ones too: one that fits is enough.
    More rows than tokens, rounded up to a multiple of 8, are padding and a note.
    """
    sizes = set(_vocabularies(context.view.config or {}))
    tables = [
        (name, ref.shape[0])
        for name, ref in context.view.weights.items()
        if _EMBEDDING.match(name) and len(ref.shape) == 2 and ref.dtype in _FLOATS and ref.numel
    ]
    if not sizes or not tables or any(rows in sizes for _, rows in tables) or checkpoint.has(Role.COMBINED):
        return
    name, rows = tables[0]
    expected = min(sizes, key=lambda size: abs(size - rows))
    padded = rows > expected and rows % 8 == 0 and rows - expected < max(128, expected // 100)
    config = context.view.config or {}
    certain = len(sizes) == 1 and not config.get("auto_map") and not any(key.endswith("_config") for key in config)
    yield Hit(
        f"the embedding has {rows:,} rows, the config says {expected:,}",
        context.view.weight_parts[0].path if len(context.view.weight_parts) == 1 else "",
        Spot(tensor=name),
        ("padding of the vocabulary?" if padded else "from_pretrained would stop with a size mismatch",),
        related=("config.json",),
        severity=Severity.NOTE if padded else Severity.ERROR if certain and rows < expected else None,
        impact=HARMLESS if padded else None,
    )


def _vocabularies(config: Mapping[Any, Value], depth: int = 0) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, dict) and depth < 4:
            yield from _vocabularies(value, depth + 1)
        elif str(key).endswith("vocab_size") and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield value


@rule("CK314", "output-layer-missing", Severity.WARNING, Checkpoint, impact=DEGRADES_ALL)
def output_layer_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A causal language model has no output layer in its weights, though the config says that it is not tied.

    **Why it matters.** The layer is initialised afresh, with one warning, and the model writes noise.

    **How to repair.** If the embeddings are in truth tied, set `tie_word_embeddings` to true in `config.json`;
    otherwise the layer is lost: fall back to an older checkpoint.

    **Known exceptions.** A config that does not mention `tie_word_embeddings`: for many models tied is the default.
    Models without a language head, and checkpoints of which a shard is missing.
    """
    config = context.view.config or {}
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    if config.get("tie_word_embeddings") is not False or not str(named).endswith(("ForCausalLM", "LMHeadModel")):
        return
    names = context.view.weights
    if not any(_EMBEDDING.match(name) for name in names) or any(_HEAD.search(name) for name in names):
        return
    if any(_WRAPPED.search(name) or _LEADING.match(name) for name in names) or not _whole(context.view):
        return
    parts = context.view.weight_parts
    yield Hit(
        "the output layer is missing and the config says that it is not tied to the embedding",
        parts[0].path if len(parts) == 1 else "",
        detail=(f"{named} with tie_word_embeddings false needs an lm_head; a loader would make a random one",),
        related=("config.json",),
    )


@rule("CK315", "prefixed-names", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def prefixed_names(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Names of the weights carry a wrapper's prefix: `module.` of DDP, `_orig_mod.` of `torch.compile`, and the like.

    **Why it matters.** Loading is not strict: a name that the model does not have is ignored, and the parameter keeps
    a fresh random value, at resume and in `from_pretrained`.

    **How to repair.** Take the prefix off the names; no tensor byte needs to change.

    **Known exceptions.** Files of plain loops, which wrap the model before they load it. accelerate loads into the
    wrapped model, so that `_orig_mod.` belongs there: a note. `module.` counts only at the beginning of a name.
    """
    names = list(context.view.weights)
    found = [name for name in names if _LEADING.match(name) or _WRAPPED.search(name)]
    if not found or checkpoint.has(Role.COMBINED):
        return
    most = 2 * len(found) >= len(names)
    own = checkpoint.layout == "accelerate"
    prefixes = Counter(_prefix(name) for name in found)
    parts = context.view.weight_parts
    yield Hit(
        f"{len(found):,} of {len(names):,} names carry a wrapper's prefix",
        parts[0].path if len(parts) == 1 else "",
        Spot(tensor=found[0]),
        (
            "prefixes: " + ", ".join(f"{prefix} ({count:,})" for prefix, count in prefixes.most_common(4)),
            f"{found[0]} would be ignored by a loader, which keeps fresh values",
        ),
        fix=Fix("take the prefixes off the names", True, "strip-prefixes", {"prefixes": sorted(prefixes)}),
        severity=Severity.NOTE if own else None if most else Severity.WARNING,
        impact=HARMLESS if own else None if most else DEGRADES_ALL,
    )


def _prefix(name: str) -> str:
    leading = "module." if _LEADING.match(name) else ""
    return leading + "".join(match.group().lstrip(".") for match in _WRAPPED.finditer(name))


@rule("CK316", "mixed-dtypes", Severity.NOTE, Checkpoint)
def mixed_dtypes(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The weights are stored in another float type than the config names, or in two types of some size each.

    **Why it matters.** float32 files of a bfloat16 model take twice the disk; loaders cast in silence. Norms and
    routers are often kept in float32 on purpose.

    **How to repair.** Nothing needs to be done. To halve the size load it in the config's type and save it again.
    """
    config = context.view.config or {}
    sizes: Counter[str] = Counter()
    for ref in context.view.weights.values():
        if ref.dtype in _FLOATS:
            sizes[ref.dtype] += ref.numel
    named = config.get("dtype") or config.get("torch_dtype")
    wanted = named.removeprefix("torch.") if isinstance(named, str) else None
    large = [dtype for dtype, count in sizes.most_common() if 10 * count >= sum(sizes.values())]
    masters = context.view.elsewhere == "DeepSpeed" and not context.view.weight_parts  # float32 whatever is trained
    if checkpoint.has(Role.COMBINED) or not large or masters or "quantization_config" in config:
        return
    shares = ", ".join(f"{dtype}: {sizes[dtype]:,} values" for dtype in large)
    if len(large) > 1:
        yield Hit(f"the weights are partly {large[0]} and partly {large[1]}", detail=(shares,))
    elif wanted in _FLOATS and wanted != large[0]:
        yield Hit(f"the weights are stored as {large[0]}, the config says {wanted}", detail=(shares,))


RULES: tuple[Rule, ...] = (
    no_tensors,
    empty_tensors,
    embedding_rows,
    output_layer_missing,
    prefixed_names,
    mixed_dtypes,
)
