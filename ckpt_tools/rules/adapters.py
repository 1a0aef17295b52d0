"""CK32x: adapters against their own config."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_INFERENCE, DEGRADES_ALL, Fix, Severity, Spot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping
from ckpt_tools.rules.base import Context, Hit, Rule, rule

PREFIX = "base_model.model."

# ``model.layers.0.self_attn.q_proj.lora_A[.name].weight``; AdaLoRA and embeddings have no ``.weight``.
_LORA = re.compile(
    r"(?P<module>.*)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.(?!bias\Z)[^.]+)?(?:\.weight)?\Z", re.DOTALL
)
_WRAPPED = re.compile(r"(?:^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NETWORK = ("//", "\\\\")
_SHOWN = 10


def _listed(names: list[str]) -> str:
    more = f" ... and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _modules(found: list[Any]) -> str:
    return f"{len(found):,} module{'' if len(found) == 1 else 's'}"


def _config(part: Part, view: View) -> Mapping[Any, Value]:
    """Return the adapter_config.json beside an adapter, empty when there is none."""
    for other, value in view.values(Role.ADAPTER_CONFIG):
        if other.adapter == part.adapter:
            return as_mapping(value) or {}
    return {}


def _kind(config: Mapping[Any, Value]) -> str:
    kind = config.get("peft_type")
    return kind.upper() if isinstance(kind, str) else ""


def _tensors(part: Part, context: Context) -> Mapping[str, TensorRef]:
    content = context.content(part) if part.role is Role.ADAPTER else None
    return content.tensors if content is not None and content.readable else {}


def _sides(tensors: Mapping[str, TensorRef]) -> dict[tuple[str, bool], dict[str, TensorRef]]:
    """Return the two halves of every LoRA pair by module, embeddings apart; halves of size 0 are left out."""
    pairs: dict[tuple[str, bool], dict[str, TensorRef]] = {}
    for name, ref in tensors.items():
        match = _LORA.match(name)
        if match is not None and ref.numel:
            pairs.setdefault((match["module"], match["kind"] is not None), {})[match["side"]] = ref
    return pairs


def _bare(name: str) -> str:
    """Return a tensor's name without PEFT's prefix or a wrapper's, which CK322 tells of."""
    return _WRAPPED.sub(".", name).removeprefix(PREFIX)


def _whole_number(value: Value) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@rule("CK321", "adapter-rank-mismatch", Severity.ERROR, Part, impact=BREAKS_INFERENCE)
def adapter_rank_mismatch(part: Part, context: Context) -> Iterator[Hit]:
    """The rank of a LoRA adapter's tensors is not the `r` of its config, or its two halves have different ranks.

    **Why it matters.** For inference the adapter is built from the config; tensors of another rank stop with `size
    mismatch`. A resume builds it from the training script's own, and stops where the halves differ.

    **How to repair.** Set `r` in `adapter_config.json` to the rank of the tensors, or copy the config that belongs
    here.

    **Known exceptions.** Every rank that `rank_pattern` names is right; with `target_parameters` several experts lie
    in one tensor, so that multiples are. Kinds other than LoRA (AdaLoRA prunes ranks, VeRA shares its matrices) are
    left alone.
    """
    config = _config(part, context.view)
    if part.role is not Role.ADAPTER or _kind(config) != "LORA" or config.get("use_bdlora"):
        return
    ranks = _stated(config)
    several = bool(config.get("target_parameters"))
    wrong: list[tuple[str, str]] = []
    halves = False
    for (module, _), sides in _sides(_tensors(part, context)).items():
        found = {side: _rank(side, ref) for side, ref in sides.items()}
        if len(set(found.values())) > 1:
            halves = True
            wrong.append((module, " and ".join(f"lora_{side} has rank {number}" for side, number in found.items())))
        elif ranks and not any(_fits(number, ranks, several) for number in found.values()):
            wrong.append((module, f"has rank {next(iter(found.values()))}"))
    if wrong:
        stated = " or ".join(str(number) for number in sorted(ranks)) or "nothing"
        yield Hit(
            f"the adapter has another rank than its config says, in {_modules(wrong)}",
            part.path,
            Spot(tensor=wrong[0][0]),
            (f"the config says {stated}; {wrong[0][0]}: {wrong[0][1]}", _listed([name for name, _ in wrong])),
            impact=BREAKS_ALL if halves else None,
        )


def _stated(config: Mapping[Any, Value]) -> set[int]:
    """Return the ranks that a config allows."""
    values = (config.get("r"), *(as_mapping(config.get("rank_pattern")) or {}).values())
    return {number for value in values if (number := _whole_number(value)) is not None}


def _rank(side: str, ref: TensorRef) -> int:
    place = 0 if side == "A" else 1
    return ref.shape[place] if len(ref.shape) > place else 1


def _fits(number: int, ranks: set[int], several: bool) -> bool:
    return number in ranks or (several and any(number % rank == 0 for rank in ranks))


@rule("CK322", "adapter-prefix", Severity.ERROR, Part)
def adapter_prefix(part: Part, context: Context) -> Iterator[Hit]:
    """LoRA tensors lack the `base_model.model.` that PEFT's names begin with, or carry a wrapper's prefix.

    **Why it matters.** Loading an adapter is not strict: names that fit nothing are ignored. A resume goes on from a
    fresh adapter, and inference gives the base model's answers, both without an error.

    **How to repair.** Rename the tensors; no tensor byte needs to change.

    **Known exceptions.** Prompt tuning and its kin have one tensor without a prefix: only names with `lora_` are
    looked at.
    """
    names = [name for name in _tensors(part, context) if _LORA.match(name)]
    wrong = [name for name in names if not name.startswith(PREFIX) or _WRAPPED.search(name)]
    if not wrong:
        return
    most = 2 * len(wrong) >= len(names)
    yield Hit(
        f"{len(wrong):,} of {len(names):,} LoRA tensors have names that no adapter has",
        part.path,
        Spot(tensor=wrong[0]),
        (f"{wrong[0]} should begin with {PREFIX}", "a loader ignores such names in silence; the adapter stays fresh"),
        fix=Fix("give the tensors the names that PEFT looks for", True, "rename-adapter-tensors", {"path": part.path}),
        impact=BREAKS_ALL if most else DEGRADES_ALL,
    )


@rule("CK323", "adapter-pair-missing", Severity.ERROR, Part, impact=DEGRADES_ALL)
def adapter_pair_missing(part: Part, context: Context) -> Iterator[Hit]:
    """A module of a LoRA adapter has `lora_A` without `lora_B`, or the other way round.

    **Why it matters.** The missing half keeps its fresh value, in silence: without B the module has no effect,
    without A what was learned is multiplied with noise.

    **How to repair.** The values are not here: copy the file again, or fall back to an older checkpoint.
    """
    if _kind(_config(part, context.view)) not in ("LORA", "ADALORA", ""):
        return
    sides: dict[tuple[str, bool], set[str]] = {}
    for name in _tensors(part, context):
        match = _LORA.match(_bare(name))
        if match is not None:
            sides.setdefault((match["module"], match["kind"] is not None), set()).add(match["side"])
    alone = [f"{module}.lora_{next(iter(found))}" for (module, _), found in sides.items() if len(found) == 1]
    if alone:
        yield Hit(
            f"the adapter has only one half of a pair in {_modules(alone)}",
            part.path,
            Spot(tensor=alone[0]),
            (_listed(alone),),
        )


@rule("CK324", "base-model-missing", Severity.WARNING, Part)
def base_model_missing(part: Part, context: Context) -> Iterator[Hit]:
    """The adapter names a base model by an absolute path that does not exist on this machine.

    **Why it matters.** An adapter is of no use without its base. A resume takes the model that the training script
    loads; loading the adapter alone (`AutoPeftModel`) stops.

    **How to repair.** Give the base model's place here when you load the adapter, or write it into
    `base_model_name_or_path` of `adapter_config.json`.

    **Known exceptions.** Names of the hub and relative paths are not looked at: what they mean depends on where the
    trainer was started. Nothing is asked of a network.
    """
    if part.role is not Role.ADAPTER_CONFIG:
        return
    content = context.content(part)
    named = (as_mapping(content.value) or {}).get("base_model_name_or_path") if content and content.readable else None
    if not isinstance(named, str) or not os.path.isabs(named) or named.startswith(_NETWORK) or "\0" in named:
        return
    if not os.path.exists(named):
        yield Hit(
            "the base model is not where the adapter says",
            part.path,
            Spot(key="base_model_name_or_path"),
            (f"there is no {named[:400]} on this machine; another machine's path?",),
        )


RULES: tuple[Rule, ...] = (
    adapter_rank_mismatch,
    adapter_prefix,
    adapter_pair_missing,
    base_model_missing,
)
