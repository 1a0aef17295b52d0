"""Names of tensors: which layer and kind they speak of, how two namings meet, and which weight a moment belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_tools.core.errors import UsageError
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping

KNOWN_PREFIXES = (
    "_orig_mod.",
    "module.",
    "model._orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "base_model.model.",
    "base_model.model.model.",
    "_fsdp_wrapped_module.",
    "model.",
    "transformer.",
    "net.",
    "student.",
)
"""What wrappers put before the names of the model inside (torch.compile, DDP, PEFT, FSDP, plain loops)."""

KNOWN_MAPS = (
    (r"\b_orig_mod\.", ""),
    (r"^model\.language_model\.", "model."),
    (r"^model\.visual\.", "visual."),
    (r"\b_fsdp_wrapped_module\.", ""),
    (r"\b_checkpoint_wrapped_module\.", ""),
)
"""Renamings inside names: wrappers in the middle, and the vision models of transformers 4.52."""

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Naming:
    """How names of both sides are rewritten before they are matched: prefixes first, then patterns in order."""

    prefixes: tuple[str, ...] = ()
    maps: tuple[tuple[re.Pattern[str], str], ...] = ()

    def __call__(self, name: str) -> str:
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        for expression, replacement in self.maps:
            name = expression.sub(replacement, name)
        return name

    def apply(self, tensors: Mapping[str, TensorRef], side: str) -> dict[str, TensorRef]:
        """Return tensors by their new names.

        Raises:
            UsageError: two tensors would get one name.
        """
        if not self.prefixes and not self.maps:
            return dict(tensors)
        found: dict[str, TensorRef] = {}
        for name, ref in tensors.items():
            new = self(name)
            if new in found:
                raise UsageError(f"on the {side}, {found[new].fqn!r} and {name!r} would both be called {new!r}")
            found[new] = ref
        return found


def naming(maps: Iterable[str], prefixes: Iterable[str]) -> Naming:
    """Return the rewriting that ``REGEX=REPLACEMENT`` texts and prefixes ask for; the last ``=`` divides.

    Raises:
        UsageError: a text has no ``=``, or its left side is no regular expression.
    """
    compiled = []
    for text in maps:
        expression, mark, replacement = text.rpartition("=")
        if not mark:
            raise UsageError(f"--map {text!r} has no '='", hint=r"it is REGEX=REPLACEMENT, as in '^model\.=' ")
        try:
            made = re.compile(expression)
            made.sub(replacement, "")
            re.compile(f"{expression}|").sub(replacement, "")
        except (re.error, IndexError) as error:
            raise UsageError(f"--map {text!r}: {error}") from None
        compiled.append((made, replacement))
    return Naming(tuple(prefixes), tuple(compiled))


def proposals(left: Sequence[str], right: Sequence[str]) -> list[str]:
    """Return options that would make names meet which do not, the best first: ready to be typed, with the number."""
    have = set(left) & set(right)
    tried: list[tuple[int, str]] = []
    for prefix in KNOWN_PREFIXES:
        met = _meet(left, right, Naming((prefix,)))
        tried.append((met, f"--strip-prefix {prefix}"))
    for expression, replacement in KNOWN_MAPS:
        met = _meet(left, right, Naming((), ((re.compile(expression), replacement),)))
        tried.append((met, f"--map '{expression}={replacement}'"))
    best = sorted((each for each in tried if each[0] > len(have)), key=lambda each: -each[0])
    if not best:
        return []
    most = best[0][0]
    return [f"{option} (then {met:,} names meet)" for met, option in best if met == most][:2]


def _meet(left: Sequence[str], right: Sequence[str], rewriting: Naming) -> int:
    new_left, new_right = [rewriting(name) for name in left], [rewriting(name) for name in right]
    if len(set(new_left)) != len(new_left) or len(set(new_right)) != len(new_right):
        return 0
    return len(set(new_left) & set(new_right))


def layer(name: str) -> str:
    """Return the layer that a tensor belongs to: the name up to its first number, else without the last word."""
    match = _NUMBER.search(name)
    if match and match.start():
        return name[: match.end()]
    return name.rpartition(".")[0] or name


def kind(name: str) -> str:
    """Return what a tensor is within its layer, the same text in every layer; further numbers become ``*``."""
    match = _NUMBER.search(name)
    if match and match.start() and match.end() < len(name):
        return _NUMBER.sub("*", name[match.end() + 1 :])
    return name.rpartition(".")[2]


def natural(name: str) -> list[tuple[int, int | str]]:
    """Return the key that sorts ``layers.2`` before ``layers.10``."""
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in re.split(r"(\d+)", name) if piece]


def ranges(names: Iterable[str]) -> list[str]:
    """Shorten names that count on from one another: ``layers.0``, ``layers.1`` become ``layers.0-1``."""
    found: list[tuple[str, int | None, int | None]] = []
    for name in names:
        head, _, last = name.rpartition(".")
        number = int(last) if last.isdecimal() else None
        if found and number is not None and found[-1][0] == head and found[-1][2] == number - 1:
            found[-1] = (head, found[-1][1], number)
        else:
            found.append((head if number is not None else name, number, number))
    return [
        head if first is None else f"{head}.{first}" if first == last_ else f"{head}.{first}-{last_}"
        for head, first, last_ in found
    ]


# The optimizer's parameters ----------------------------------------------------------------------------------


def parameter_names(optimizer: Mapping[Any, Value], weights: Mapping[str, TensorRef]) -> dict[str, str]:
    """Return the weight that each parameter index of an optimizer's state stands for; names are stored nowhere.

    The weights in the order of a decoder's modules, tables first and vectors after them as the Trainer groups them,
    are those parameters when all their shapes agree.  Where they do not, an index is named when the weights of its
    shape are of one kind, one in each layer, and as many as the parameters of that shape.
    """
    entries = as_mapping(optimizer.get("state")) or {}
    shaped: list[tuple[str, tuple[int, ...]]] = []
    for key in _order(optimizer, entries):
        entry = as_mapping(entries.get(key)) or {}
        shape = next((v.shape for v in entry.values() if isinstance(v, TensorRef) and v.shape), None)
        if shape is not None and isinstance(key, int):
            shaped.append((str(key), shape))
    ordered = _module_order(weights)
    if [shape for _, shape in shaped] == [weights[name].shape for name in ordered]:
        return dict(zip((key for key, _ in shaped), ordered, strict=True))
    shapes: dict[tuple[int, ...], list[str]] = {}
    for key, shape in shaped:
        shapes.setdefault(shape, []).append(key)
    found: dict[str, str] = {}
    for shape, keys in shapes.items():
        names = [name for name, ref in weights.items() if ref.shape == shape]
        if len(names) == len(keys) and len({(kind(name), _NUMBER.sub("*", name)) for name in names}) == 1:
            found.update(zip(keys, sorted(names, key=natural), strict=True))
    return found


def renumbered(moments: Mapping[str, TensorRef], names: Mapping[str, str]) -> dict[str, TensorRef]:
    """Return moments whose parameters are numbers (``state.0.exp_avg``) by the names of those that are known."""
    found: dict[str, TensorRef] = {}
    for key, ref in moments.items():
        number, _, moment = key.removeprefix("state.").partition(".")
        found[f"state.{names[number]}.{moment}" if number in names else key] = ref
    return found


_MODULES = (
    "embed_tokens",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
    "model.norm",
    "lm_head",
)
"""The modules of Llama and its many relatives, in the order in which the model defines them."""


def _module_order(weights: Mapping[str, TensorRef]) -> list[str]:
    """Return weights in the order in which a Trainer's optimizer has them; nothing for an unknown architecture."""
    keyed = []
    for name, ref in weights.items():
        rank = next((rank for rank, module in enumerate(_MODULES) if f"{module}." in name), None)
        if rank is None:
            return []
        number = _NUMBER.search(name)
        place = 0 if rank == 0 else 2 if number is None else 1
        depth = int(number[0]) if number and place == 1 else 0
        adapter = "lora_" in name
        keyed.append((len(ref.shape) < 2 and not adapter, place, depth, rank, name.endswith(".bias"), name))
    return [each[-1] for each in sorted(keyed)]


def _order(optimizer: Mapping[Any, Value], entries: Mapping[Any, Value]) -> list[Value]:
    groups = optimizer.get("param_groups")
    members = [(as_mapping(group) or {}).get("params") for group in groups] if isinstance(groups, list) else []
    listed = [key for params in members if isinstance(params, list | tuple) for key in params]
    return [key for key in listed if isinstance(key, int | str) and key in entries] or list(entries)
