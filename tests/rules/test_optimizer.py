"""CK511 to CK521: the optimizer against the weights and against itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rules import damage
from tests.rules.damage import together, with_file, with_json
from tests.rules.damage_values import (
    ADAPTER,
    ADAPTER_CONFIG,
    BROKEN,
    FULL,
    LORA,
    OPTIMIZER,
    READY,
    RESUME_BROKEN,
    RESUME_DEGRADED,
    SCHEDULER,
    STATE,
    Case,
    check,
    each_group,
    in_torch,
    lacking,
    moment,
    renamed_tensors,
    reshaped,
    tensors,
    values,
    without_tensors,
)
from tests.rules.judge import codes, finding, judge

FROZEN, TIED, ADAFACTOR = (
    "trainer5-frozen/checkpoint-4",
    "trainer5-tied/checkpoint-2",
    "trainer5-adafactor-cosine/checkpoint-6",
)
SGD, TWO, SHARDED = (
    "trainer5-sgd-constant/checkpoint-4",
    "trainer5-lora-two/checkpoint-2",
    "trainer5-sharded/checkpoint-4",
)
HEAD, Q = "lm_head", "layers.0.self_attn.q_proj"


def ids(edit: Callable[[list[int]], object], place: int = 0) -> damage.Damage:
    return in_torch(OPTIMIZER, lambda value: edit(value["param_groups"][place]["params"]) and None)


def entries(edit: Callable[[Any], object]) -> damage.Damage:
    return in_torch(OPTIMIZER, lambda value: edit(value["state"]) and None)


def addresses(value: Any) -> None:
    """Number the parameters as torch did long ago, by their place in memory."""
    start = 139_000_000_000_000
    value["state"] = {start + 64 * key: entry for key, entry in value["state"].items()}
    for group in value["param_groups"]:
        group["params"] = [start + 64 * key for key in group["params"]]


def names(value: Any) -> None:
    """Name the parameters, as a full state of FSDP does."""
    value["state"] = {f"p.{key}": entry for key, entry in value["state"].items()}
    for group in value["param_groups"]:
        group["params"] = [f"p.{key}" for key in group["params"]]


def low_rank(value: Any) -> None:
    """What GaLore leaves in the group of its parameters."""
    moment((4, 8))(value)
    value["param_groups"][0].update(rank=4, update_proj_gap=200, scale=0.25, proj_type="std")


def quantised(value: Any) -> None:
    """8-bit moments of bitsandbytes, under their own names."""
    torch = pytest.importorskip("torch")
    for entry in value["state"].values():
        del entry["exp_avg"], entry["exp_avg_sq"]
        entry["__bnb_optimizer_quant_state__"] = {
            "state1": torch.zeros(5, dtype=torch.uint8),
            "qmap1": torch.zeros(256),
        }


def numpy_rate(value: Any) -> None:
    numpy = pytest.importorskip("numpy")
    for group in value["param_groups"]:
        group["lr"] = numpy.float64(group["lr"])


def split(value: Any) -> None:
    """Parameters of a layer that is one tensor in the file: 24 rows of three times 8."""
    for number in (1, 2, 3):
        moment((8, 8), of=number)(value)


CASES = [
    Case("nothing", FULL, damage.nothing, set(), READY),
    Case("both moments of another shape", FULL, in_torch(OPTIMIZER, moment((9, 5))), {"CK511"}, RESUME_BROKEN),
    Case("one moment of another shape", FULL, in_torch(OPTIMIZER, moment((3, 5), "exp_avg")), {"CK511"}, RESUME_BROKEN),
    Case("a moment of no size", FULL, in_torch(OPTIMIZER, moment((), "exp_avg")), {"CK511"}, RESUME_BROKEN),
    Case("a moment less in shards", SHARDED, in_torch(OPTIMIZER, moment((9, 5))), {"CK511"}, RESUME_BROKEN),
    Case("a moment of an adapter", LORA, in_torch(OPTIMIZER, moment((3, 8))), {"CK511"}, RESUME_BROKEN),
    Case(
        "a factored moment", ADAFACTOR, in_torch(OPTIMIZER, moment((31,), "exp_avg_sq_row")), {"CK511"}, RESUME_BROKEN
    ),
    Case("factored moments", ADAFACTOR, damage.nothing, set(), READY),
    Case("a weight of another shape", FULL, tensors(reshaped(Q, [9, 8])), {"CK514"}, BROKEN),
    Case("a weight of a shape of its own", FULL, tensors(reshaped("mlp.down_proj", [8, 17])), {"CK511"}, RESUME_BROKEN),
    Case("a weight of size 0", FULL, tensors(reshaped(Q, [0, 8])), {"CK514"}, BROKEN),
    Case("low-rank moments", FULL, in_torch(OPTIMIZER, low_rank), set(), READY),
    Case("quantised moments", FULL, in_torch(OPTIMIZER, quantised), set(), READY),
    Case(
        "experts",
        FULL,
        together(
            tensors(renamed_tensors(lambda name: name.replace(".mlp.", ".mlp.experts.0."))),
            in_torch(OPTIMIZER, moment((2, 16, 8))),
        ),
        set(),
        READY,
    ),
    Case(
        "a tensor that newer loaders split",
        FULL,
        together(
            tensors(renamed_tensors(lambda name: name.replace("0.mlp.up_proj", "0.attn.qkv"))),
            in_torch(OPTIMIZER, moment((5, 8), of=7)),
        ),
        set(),
        READY,
    ),
    Case("a sum of 1 in a shape", FULL, tensors(reshaped("model.norm", [8, 1])), set(), READY),
    Case("a weight less", FULL, tensors(without_tensors("layers.0.mlp.up_proj")), {"CK512"}, RESUME_BROKEN),
    Case(
        "an adapter's tensor less",
        LORA,
        tensors(without_tensors(f"{Q}.lora_A"), ADAPTER),
        {"CK323", "CK512"},
        ("broken", "degraded"),
    ),
    Case(
        "a weight less, another beside",
        FULL,
        together(tensors(without_tensors("layers.0.mlp.up_proj")), with_file("2_Dense/model.safetensors")),
        set(),
        READY,
    ),
    Case(
        "heads of sentence-transformers",
        FULL,
        together(tensors(without_tensors("layers.0.mlp.up_proj")), with_file("modules.json", b"[]")),
        set(),
        READY,
    ),
    Case(
        "another kind of adapter",
        LORA,
        together(tensors(without_tensors(f"{Q}.lora"), ADAPTER), with_json(ADAPTER_CONFIG, peft_type="VERA")),
        set(),
        READY,
    ),
    Case("a frozen part", FROZEN, damage.nothing, set(), READY, frozenset({"CK513"})),
    Case("a second adapter", TWO, damage.nothing, set(), READY, frozenset({"CK513"})),
    Case("tied weights", TIED, damage.nothing, set(), READY),
    Case("a trained weight less", FROZEN, tensors(without_tensors("layers.1.input_layernorm")), set(), READY),
    Case("trained weights less", FROZEN, tensors(without_tensors("layernorm")), {"CK514"}, BROKEN),
    Case("an id less", FULL, ids(lambda found: found.pop()), {"CK515"}, RESUME_BROKEN),
    Case("an id twice", FULL, ids(lambda found: found.__setitem__(3, 2)), {"CK515"}, RESUME_BROKEN),
    Case(
        "ids that are texts and numbers", FULL, ids(lambda found: found.__setitem__(3, 2.5)), {"CK515"}, RESUME_BROKEN
    ),
    Case(
        "groups that changed places",
        FULL,
        in_torch(OPTIMIZER, lambda v: v["param_groups"].reverse()),
        {"CK515"},
        RESUME_BROKEN,
    ),
    Case(
        "state under texts",
        FULL,
        in_torch(OPTIMIZER, lambda v: v.update(state={str(key): entry for key, entry in v["state"].items()})),
        {"CK515"},
        RESUME_DEGRADED,
    ),
    Case("state for one more", FULL, entries(lambda state: state.update({99: state[0]})), {"CK515"}, READY),
    Case("ids of old", FULL, in_torch(OPTIMIZER, addresses), set(), READY),
    Case("names for ids", FULL, in_torch(OPTIMIZER, names), set(), READY),
    Case("an entry less", FULL, entries(lambda state: state.pop(0)), set(), READY, frozenset({"CK516"})),
    Case("no state", FULL, entries(lambda state: state.clear()), {"CK516"}, RESUME_DEGRADED),
    Case(
        "no state at step 0",
        FULL,
        together(
            entries(lambda state: state.clear()),
            with_json(STATE, global_step=0, log_history=[]),
            in_torch(SCHEDULER, values(last_epoch=0)),
        ),
        {"CK501"},
        READY,
    ),
    Case("SGD has none", SGD, damage.nothing, set(), READY),
    Case(
        "no betas",
        FULL,
        in_torch(OPTIMIZER, lambda v: v["param_groups"][0].pop("betas") and None),
        {"CK517"},
        RESUME_BROKEN,
    ),
    Case(
        "no rate",
        FULL,
        in_torch(OPTIMIZER, lambda v: v["param_groups"][1].pop("lr") and None),
        {"CK517"},
        RESUME_BROKEN,
    ),
    Case("a null rate", FULL, in_torch(OPTIMIZER, each_group(lr=None)), {"CK517"}, RESUME_BROKEN),
    Case("Adafactor's null rate", ADAFACTOR, in_torch(OPTIMIZER, each_group(lr=None)), set(), READY),
    Case(
        "no rate in an empty group",
        LORA,
        in_torch(OPTIMIZER, lambda v: v["param_groups"][1].pop("lr") and None),
        set(),
        READY,
    ),
    Case("no groups", FULL, in_torch(OPTIMIZER, lacking("param_groups")), {"CK518"}, RESUME_BROKEN),
    Case("no state in the file", FULL, in_torch(OPTIMIZER, lacking("state")), {"CK518"}, RESUME_BROKEN),
    Case("a list", FULL, in_torch(OPTIMIZER, lambda value: [value]), {"CK518"}, RESUME_BROKEN),
    Case("a moment missing", FULL, entries(lambda state: [state[0].pop("exp_avg_sq")]), {"CK519"}, RESUME_BROKEN),
    Case("a step missing", FULL, entries(lambda state: [state[0].pop("step")]), {"CK519"}, RESUME_BROKEN),
    Case("a numpy rate", FULL, in_torch(OPTIMIZER, numpy_rate), {"CK521"}, RESUME_BROKEN),
    Case(
        "a numpy rate in a schedule",
        FULL,
        in_torch(
            SCHEDULER, lambda v: v["base_lrs"].__setitem__(0, pytest.importorskip("numpy").float64(v["base_lrs"][0]))
        ),
        {"CK521"},
        RESUME_BROKEN,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_optimizer(case: Case, copy_of: Callable[..., Path]) -> None:
    check(case, copy_of)


def test_numpy_scalars_are_named_with_their_values(copy_of: Callable[..., Path]) -> None:
    directory = copy_of("trainer5-full") / "checkpoint-4"
    in_torch(OPTIMIZER, numpy_rate)(directory)
    told = finding(judge(directory, families=("CK5", "CK7")), "CK521")
    assert told.message == "2 numbers are numpy scalars"
    assert told.at.key == "param_groups[0].lr"
    assert told.detail[0] == "param_groups[0].lr = 0.064, param_groups[1].lr = 0.064"
    assert told.fix is not None
    assert (told.fix.kind, told.fix.safe) == ("replace-numpy-scalar", True)
    assert told.fix.params == {"keys": ["param_groups[0].lr", "param_groups[1].lr"]}


def test_shapes_without_a_counterpart_are_told(copy_of: Callable[..., Path]) -> None:
    directory = copy_of("trainer5-full") / "checkpoint-4"
    in_torch(OPTIMIZER, moment((9, 5)))(directory)
    told = finding(judge(directory, families=("CK5",)), "CK511")
    assert told.message == "the optimizer has moments of a shape that no weight has"
    assert told.detail[0] == "without a counterpart: [9, 5]"


@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta"])
def test_every_optimizer_of_torch_is_taken_as_it_is(name: str, fixtures_dir: Path) -> None:
    assert not codes(judge(fixtures_dir / f"plain/optimizers/{name}.pt", families=("CK5",)))


def test_moments_in_a_plain_file_are_compared_too(copy_of: Callable[..., Path]) -> None:
    file = copy_of("plain/optimizers/Adam.pt")
    in_torch(file.name, lambda value: moment((7, 6), "exp_avg", "exp_avg_sq", "max_exp_avg_sq")(value["optimizer"]))(
        file.parent
    )
    assert codes(judge(file, families=("CK5",))) == {"CK511"}
