"""CK321 to CK324: adapters against their config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rules import damage
from tests.rules.damage import together, with_json
from tests.rules.damage_values import (
    ADAPTER,
    ADAPTER_CONFIG,
    BROKEN,
    LORA,
    READY,
    Case,
    Tensors,
    check,
    in_json,
    lacking,
    renamed_tensors,
    reshaped,
    tensors,
    without_tensors,
)
from tests.rules.judge import finding, judge

RANKS, ADALORA, PROMPT, IA3 = "peft/rank-pattern", "peft/adalora", "peft/prompt", "peft/ia3"
DORA, EMBEDDING, TWO = "peft/dora", "peft/embedding", "trainer5-lora-two/checkpoint-2"
INFERENCE_BROKEN, DEGRADED = ("ready", "broken"), ("degraded", "degraded")


def with_bias(found: Tensors) -> None:
    for name in [name for name in found if "lora_B" in name]:
        found[name.replace(".weight", ".bias")] = ("F32", [8], bytes(32))


def other_prefix(every: int) -> Callable[[Tensors], Tensors]:
    return lambda found: {
        (name.removeprefix("base_model.model.") if place % every == 0 else name): value
        for place, (name, value) in enumerate(found.items())
    }


CASES = [
    Case("nothing", DORA, damage.nothing, set(), READY),
    Case("another rank in the config", DORA, with_json(ADAPTER_CONFIG, r=8), {"CK321"}, INFERENCE_BROKEN),
    Case("another rank in a checkpoint", LORA, with_json(ADAPTER_CONFIG, r=8), {"CK321"}, INFERENCE_BROKEN),
    Case("a rank of the pattern", RANKS, with_json(ADAPTER_CONFIG, r=3), {"CK321"}, INFERENCE_BROKEN),
    Case("no pattern", RANKS, with_json(ADAPTER_CONFIG, rank_pattern={}), {"CK321"}, INFERENCE_BROKEN),
    Case("a pattern as before", RANKS, damage.nothing, set(), READY),
    Case(
        "half of a pair",
        DORA,
        tensors(reshaped("layers.0.self_attn.q_proj.lora_A", [3, 8]), ADAPTER),
        {"CK321"},
        BROKEN,
    ),
    Case("an embedding's rank", EMBEDDING, tensors(reshaped("lora_embedding_B", [8, 3]), ADAPTER), {"CK321"}, BROKEN),
    Case("an embedding", EMBEDDING, damage.nothing, set(), READY),
    Case("no rank in the config", DORA, in_json(ADAPTER_CONFIG, lacking("r")), set(), READY),
    Case(
        "experts in one tensor",
        DORA,
        together(with_json(ADAPTER_CONFIG, r=1, target_parameters=["experts.gate_up_proj"])),
        set(),
        READY,
    ),
    Case("biases of the halves", DORA, tensors(with_bias, ADAPTER), set(), READY),
    Case("AdaLoRA's ranks", ADALORA, with_json(ADAPTER_CONFIG, r=99), set(), READY),
    Case("prompts have no prefix", PROMPT, damage.nothing, set(), READY),
    Case("vectors have no rank", IA3, damage.nothing, set(), READY),
    Case("the second adapter's rank", TWO, with_json(f"second/{ADAPTER_CONFIG}", r=8), {"CK321"}, INFERENCE_BROKEN),
    Case("no prefix", LORA, tensors(other_prefix(1), ADAPTER), {"CK322"}, BROKEN),
    Case("another prefix", DORA, tensors(renamed_tensors("other.{}".format), ADAPTER), {"CK322"}, BROKEN),
    Case("no prefix on some", LORA, tensors(other_prefix(3), ADAPTER), {"CK322"}, DEGRADED),
    Case(
        "a compiled base",
        DORA,
        tensors(renamed_tensors(lambda name: name.replace("model.model.", "model._orig_mod.model.", 1)), ADAPTER),
        {"CK322"},
        BROKEN,
    ),
    Case("no B", DORA, tensors(without_tensors("layers.0.self_attn.q_proj.lora_B"), ADAPTER), {"CK323"}, DEGRADED),
    Case("no A", DORA, tensors(without_tensors("layers.1.self_attn.q_proj.lora_A"), ADAPTER), {"CK323"}, DEGRADED),
    Case(
        "no B of AdaLoRA",
        ADALORA,
        tensors(without_tensors("layers.0.self_attn.q_proj.lora_B"), ADAPTER),
        {"CK323"},
        DEGRADED,
    ),
    Case(
        "another machine's base",
        DORA,
        with_json(ADAPTER_CONFIG, base_model_name_or_path="/nowhere/at/all"),
        {"CK324"},
        READY,
    ),
    Case("the hub's base", DORA, with_json(ADAPTER_CONFIG, base_model_name_or_path="org/model"), set(), READY),
    Case("a relative base", DORA, with_json(ADAPTER_CONFIG, base_model_name_or_path="../model"), set(), READY),
    Case("a share's base", DORA, with_json(ADAPTER_CONFIG, base_model_name_or_path="//host/share"), set(), READY),
    Case("no base", DORA, with_json(ADAPTER_CONFIG, base_model_name_or_path=None), set(), READY),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapters_and_their_config(case: Case, copy_of: Callable[..., Path]) -> None:
    check(case, copy_of)


def test_a_base_that_is_there_is_not_told(copy_of: Callable[..., Path]) -> None:
    adapter = copy_of(DORA)
    with_json(ADAPTER_CONFIG, base_model_name_or_path=str(copy_of("hf-model/tiny-llama")))(adapter)
    assert not list(judge(adapter, families=("CK32",)).all_findings())


def test_the_module_and_both_ranks_are_told(copy_of: Callable[..., Path]) -> None:
    adapter = copy_of(DORA)
    with_json(ADAPTER_CONFIG, r=8)(adapter)
    told = finding(judge(adapter, families=("CK32",)), "CK321")
    assert told.message == "the adapter has another rank than its config says, in 2 modules"
    assert told.detail[0].startswith("the config says 8; base_model.model.model.layers.0.self_attn.q_proj: has rank 2")
