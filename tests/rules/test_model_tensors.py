"""CK311 to CK316: the model's tensors against its config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rules import damage
from tests.rules.damage import together, with_json
from tests.rules.damage_values import (
    ADAPTER,
    BROKEN,
    FULL,
    LORA,
    READY,
    WEIGHTS,
    Case,
    Tensors,
    check,
    in_json,
    lacking,
    renamed_tensors,
    reshaped,
    tensors,
    values,
    without_tensors,
)
from tests.rules.judge import finding, judge

CONFIG = "config.json"
TINY, BF16, SHARDED = "hf-model/tiny-llama", "hf-model/bf16", "trainer5-sharded/checkpoint-4"
ACCELERATE, DDP, TIED = "accelerate/scaler", "plain/odd/ddp.pth", "trainer5-tied/checkpoint-2"
MODEL_ONLY = damage.only(WEIGHTS, CONFIG)
INFERENCE_BROKEN = ("ready", "broken")


def prefixed(prefix: str, every: int = 1) -> Callable[[Tensors], Tensors]:
    def edit(found: Tensors) -> Tensors:
        return {
            (prefix + name if place % every == 0 else name): value for place, (name, value) in enumerate(found.items())
        }

    return edit


def in_the_middle(found: Tensors) -> Tensors:
    return {name.replace("model.", "model._orig_mod.", 1): value for name, value in found.items()}


def halved(found: Tensors) -> None:
    """Store every second tensor as bfloat16, by its upper bytes."""
    for place, (name, (_, shape, data)) in enumerate(found.items()):
        if place % 2:
            upper = b"".join(data[at + 2 : at + 4] for at in range(0, len(data), 4))
            found[name] = ("BF16", shape, upper)


def beside_zero(directory: Path) -> None:
    (directory / "global_step4").mkdir()
    (directory / "global_step4" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"PK")


CASES = [
    Case("nothing", TINY, damage.nothing, set(), READY),
    Case("no tensor", TINY, tensors(lambda found: {}), {"CK311"}, INFERENCE_BROKEN),
    Case("no tensor in an adapter", LORA, tensors(lambda found: {}, ADAPTER), {"CK311"}, BROKEN),
    Case(
        "no tensor beside ZeRO-3",
        FULL,
        together(tensors(lambda found: {}), beside_zero),
        set(),
        INFERENCE_BROKEN,
        frozenset({"CK311"}),
    ),
    Case(
        "size 0 in an adapter",
        LORA,
        tensors(reshaped("layers.0.self_attn.q_proj.lora_A", [0]), ADAPTER),
        {"CK312"},
        BROKEN,
    ),
    Case("size 0 everywhere", TINY, tensors(reshaped("", [0])), {"CK312"}, INFERENCE_BROKEN),
    Case("one tensor of size 0", TINY, tensors(reshaped("layers.0.self_attn.q_proj", [0])), set(), READY),
    Case(
        "size 0 beside ZeRO-3",
        FULL,
        together(tensors(reshaped("", [0])), beside_zero),
        set(),
        INFERENCE_BROKEN,
        frozenset({"CK312"}),
    ),
    Case("fewer rows", TINY, tensors(reshaped("embed_tokens", [30, 8])), {"CK313"}, INFERENCE_BROKEN),
    Case("a larger vocabulary", TINY, with_json(CONFIG, vocab_size=40), {"CK313"}, INFERENCE_BROKEN),
    Case("more rows", TINY, tensors(reshaped("embed_tokens", [33, 8])), {"CK313"}, INFERENCE_BROKEN),
    Case("padded rows", TINY, tensors(reshaped("embed_tokens", [64, 8])), set(), READY, frozenset({"CK313"})),
    Case("no vocabulary in the config", TINY, in_json(CONFIG, lacking("vocab_size")), set(), READY),
    Case(
        "a nested vocabulary that fits",
        TINY,
        in_json(CONFIG, values(vocab_size=99, text_config={"vocab_size": 32})),
        set(),
        READY,
    ),
    Case(
        "another model's key that fits",
        TINY,
        in_json(CONFIG, values(vocab_size=99, decoder_vocab_size=32)),
        set(),
        READY,
    ),
    Case(
        "no output layer",
        TINY,
        tensors(without_tensors("lm_head")),
        {"CK314"},
        ("degraded", "degraded"),
    ),
    Case(
        "no output layer, tied",
        TINY,
        together(tensors(without_tensors("lm_head")), with_json(CONFIG, tie_word_embeddings=True)),
        set(),
        READY,
    ),
    Case(
        "no output layer, no word of ties",
        TINY,
        together(tensors(without_tensors("lm_head")), in_json(CONFIG, lacking("tie_word_embeddings"))),
        set(),
        READY,
    ),
    Case(
        "no output layer in a classifier",
        TINY,
        together(
            tensors(without_tensors("lm_head")), with_json(CONFIG, architectures=["LlamaForSequenceClassification"])
        ),
        set(),
        READY,
    ),
    Case("no output layer, a shard missing", SHARDED, damage.without("model-00004-of-*"), set(), READY),
    Case("a compiled model's names", TINY, tensors(prefixed("_orig_mod.")), {"CK315"}, BROKEN),
    Case("DDP's names", TINY, tensors(prefixed("module.")), {"CK315"}, BROKEN),
    Case("both", TINY, tensors(prefixed("module._orig_mod.")), {"CK315"}, BROKEN),
    Case("in the middle", TINY, tensors(in_the_middle), {"CK315"}, BROKEN),
    Case("half of the names", TINY, tensors(prefixed("_orig_mod.", 2)), {"CK315"}, BROKEN),
    Case("some of the names", TINY, tensors(prefixed("_orig_mod.", 5)), {"CK315"}, ("degraded", "degraded")),
    Case(
        "a module in the middle",
        TINY,
        tensors(renamed_tensors(lambda name: name.replace("mlp.", "module."))),
        set(),
        READY,
    ),
    Case(
        "a compiled model of accelerate",
        ACCELERATE,
        tensors(prefixed("_orig_mod.")),
        set(),
        READY,
        frozenset({"CK315"}),
    ),
    Case("another type in the config", TINY, with_json(CONFIG, dtype="bfloat16"), set(), READY, frozenset({"CK316"})),
    Case("two types", TINY, tensors(halved), set(), READY, frozenset({"CK316"})),
    Case("bfloat16 as said", BF16, damage.nothing, set(), READY),
    Case("tied as said", TIED, damage.nothing, set(), READY),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tensors_and_config(case: Case, copy_of: Callable[..., Path]) -> None:
    check(case, copy_of)


def test_a_plain_loop_may_wrap_its_model(fixtures_dir: Path) -> None:
    assert not list(judge(fixtures_dir / DDP, families=("CK3",)).all_findings())


def test_prefixes_are_named_and_can_be_taken_off(copy_of: Callable[..., Path]) -> None:
    model = copy_of(TINY)
    tensors(prefixed("module._orig_mod."))(model)
    told = finding(judge(model, families=("CK3",)), "CK315")
    assert told.message == "21 of 21 names carry a wrapper's prefix"
    assert told.fix is not None
    assert told.fix.params == {"prefixes": ["module._orig_mod."]}
