"""Named faults of whole checkpoints, each an honest edit of a copy by the libraries that wrote the file."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Fault:
    """``change`` is given the checkpoint's directory; ``child``: a resume may kill its process.

    ``moved`` is the name under which the change leaves the checkpoint, where it is not the old one.
    """

    name: str
    fixture: str
    change: Change
    child: bool = False
    moved: str | None = None


# how files are changed


def cut(name: str, keep: float | int) -> Change:
    """Keep a share of the file (below 1), so many bytes, or all but so many (below 0)."""

    def change(directory: Path) -> None:
        path = directory / name
        size = path.stat().st_size
        os.truncate(path, int(size * keep) if 0 < keep < 1 else size + int(keep) if keep < 0 else int(keep))

    return change


def gone(*names: str) -> Change:
    return lambda directory: [(directory / name).unlink() for name in names]


def holds(name: str, data: bytes) -> Change:
    return lambda directory: (directory / name).write_bytes(data)


def zeros(name: str, start: float = 0.0) -> Change:
    def change(directory: Path) -> None:
        data = (directory / name).read_bytes()
        first = int(len(data) * start)
        (directory / name).write_bytes(data[:first] + bytes(len(data) - first))

    return change


def more(name: str, extra: bytes) -> Change:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes() + extra)


def directory_instead(name: str) -> Change:
    def change(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return change


def in_json(name: str, edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(directory: Path) -> None:
        value = json.loads((directory / name).read_text())
        edit(value)
        (directory / name).write_text(json.dumps(value, indent=2))

    return change


def as_text(name: str, edit: Callable[[str], str], encoding: str = "utf-8") -> Change:
    return lambda directory: (directory / name).write_bytes(edit((directory / name).read_text()).encode(encoding))


def in_torch(name: str, edit: Callable[[Any], Any], **how: Any) -> Change:
    def change(directory: Path) -> None:
        import torch

        value = torch.load(directory / name, weights_only=False)
        result = edit(value)
        torch.save(result if isinstance(result, dict | list) else value, directory / name, **how)

    return change


def in_weights(name: str, edit: Callable[[dict[str, Any]], Any]) -> Change:
    def change(directory: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(directory / name)
        result = edit(tensors)
        save_file(result if isinstance(result, dict) else tensors, directory / name, metadata={"format": "pt"})

    return change


def both(*changes: Change) -> Change:
    return lambda directory: [change(directory) for change in changes]


def keys(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update(values)


def without(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda value: tuple(value.pop(name) for name in names)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9000\n"
PAGE = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body></body></html>"

FULL, SHARDED, LORA = "trainer5-full", "trainer5-sharded", "trainer5-lora"
WEIGHTS, OPTIMIZER, SCHEDULER, RNG = "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"
STATE, ARGS, CONFIG, INDEX = "trainer_state.json", "training_args.bin", "config.json", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FIRST, SECOND = "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def full(name: str, change: Change, *, child: bool = False) -> Fault:
    return Fault(name, FULL, change, child)


def sharded(name: str, change: Change) -> Fault:
    return Fault(name, SHARDED, change)


def lora(name: str, change: Change) -> Fault:
    return Fault(name, LORA, change)


# edits inside


def _moment(shape: tuple[int, ...]) -> Callable[[Any], None]:
    def edit(value: Any) -> None:
        import torch

        value["state"][0]["exp_avg"] = torch.zeros(shape)

    return edit


def _unfused(value: Any) -> None:
    import torch

    for group in value["param_groups"]:
        group["fused"] = False
    value["state"][0]["exp_avg"] = torch.zeros(3, 5)


def _nan(value: Any) -> None:
    value["state"][0]["exp_avg"][:] = float("nan")


def _swapped_moments(value: Any) -> None:
    """Entries of two parameters of one shape change places."""
    state = value["state"]
    pairs = [(a, b) for a in state for b in state if a < b and state[a]["exp_avg"].shape == state[b]["exp_avg"].shape]
    first, second = pairs[0]
    state[first], state[second] = state[second], state[first]


def _swapped_groups(value: Any) -> None:
    value["param_groups"].reverse()


def _numpy_rate(value: Any) -> None:
    import numpy

    for group in value["param_groups"]:
        group["lr"] = numpy.float64(group["lr"])


def _each_group(**changes: Any) -> Callable[[Any], object]:
    return lambda value: tuple(group.update(changes) for group in value["param_groups"])


def _each_without(name: str) -> Callable[[Any], object]:
    return lambda value: tuple(group.pop(name) for group in value["param_groups"])


def _steps(number: float) -> Callable[[Any], object]:
    return lambda value: tuple(entry["step"].fill_(number) for entry in value["state"].values())


def _prefixed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def _renamed_one(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.down_projection.weight"] = tensors.pop("model.layers.0.mlp.down_proj.weight")


def _to_bfloat16(tensors: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def _fill(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors[name].fill_(value)


def _cut_rows(name: str, rows: int) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: tensors[name][:rows].clone()})


def _as_bin(directory: Path) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(directory / WEIGHTS)
    torch.save(tensors, directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()


def _torch_named_safetensors(directory: Path) -> None:
    _as_bin(directory)
    (directory / "pytorch_model.bin").rename(directory / WEIGHTS)


def _safetensors_named_bin(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


def _other_steps(name: str, other: str) -> Change:
    return lambda directory: shutil.copy2(directory.parent / other / name, directory / name)


def _linked(directory: Path) -> None:
    (directory / "blobs").mkdir()
    (directory / WEIGHTS).rename(directory / "blobs" / "0123")
    (directory / WEIGHTS).symlink_to("blobs/0123")


def _dangling(name: str) -> Change:
    return lambda directory: ((directory / name).unlink(), (directory / name).symlink_to("nowhere"))


def _map_edit(edit: Callable[[dict[str, str]], object]) -> Change:
    def change(value: dict[str, Any]) -> None:
        edit(value["weight_map"])

    return in_json(INDEX, change)


def _moved_outside(directory: Path) -> None:
    (directory / FIRST).rename(directory.parent / "outside.safetensors")
    _map_edit(
        lambda names: names.update({name: "../outside.safetensors" for name, file in names.items() if file == FIRST})
    )(directory)


def _swapped_shards(directory: Path) -> None:
    (directory / FIRST).rename(directory / "x")
    (directory / SECOND).rename(directory / FIRST)
    (directory / "x").rename(directory / SECOND)


def _renamed_shard(directory: Path) -> None:
    (directory / FIRST).rename(directory / "model-00001-of-00009.safetensors")


def _merged_beside_index(directory: Path) -> None:
    """A single file saved over a sharded one: the shards go, the index stays."""
    from safetensors.torch import load_file, save_file

    tensors = {}
    for shard in sorted(directory.glob("model-*.safetensors")):
        tensors.update(load_file(shard))
        shard.unlink()
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def _generator(**changes: Any) -> Callable[[Any], None]:
    return lambda value: value.update(changes)


def _short_generator(value: Any) -> None:
    value["cpu"] = value["cpu"][:100].clone()


def _with_object(value: Any) -> None:
    value["python"] = Path("/")


def _ordered(value: Any) -> Any:
    return OrderedDict(value)


def _defaulted(value: Any) -> Any:
    made: defaultdict[str, Any] = defaultdict(dict)
    made.update(value)
    return made


def _last_group(value: Any) -> None:
    value["param_groups"].pop()


def _first_entry(value: Any) -> None:
    del value["state"][0]


def _first_second_factor(tensors: dict[str, Any]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


FAULTS: tuple[Fault, ...] = (
    # nothing wrong, and things that only look wrong
    full("nothing", lambda directory: None),
    sharded("nothing-sharded", lambda directory: None),
    lora("nothing-lora", lambda directory: None),
    full("sidecar", lambda directory: (directory / ".ckpt-tools" / "journal").mkdir(parents=True)),
    full("stray-files", both(holds("notes.txt", b"hello"), holds(".tmpAb12Cd", bytes(4000)))),
    full("weights-linked", _linked),
    Fault(
        "directory-renamed",
        FULL,
        lambda directory: directory.rename(directory.parent / "checkpoint-40"),
        moved="checkpoint-40",
    ),
    # files that are not there
    full("weights-missing", gone(WEIGHTS)),
    full("optimizer-missing", gone(OPTIMIZER)),
    full("scheduler-missing", gone(SCHEDULER)),
    full("optimizer-and-scheduler-missing", gone(OPTIMIZER, SCHEDULER)),
    full("all-of-training-missing", gone(OPTIMIZER, SCHEDULER, RNG)),
    full("rng-missing", gone(RNG)),
    full("state-missing", gone(STATE)),
    full("arguments-missing", gone(ARGS)),
    full("config-missing", gone(CONFIG)),
    full("generation-config-missing", gone("generation_config.json")),
    full("tokenizer-missing", gone("tokenizer.json", "tokenizer_config.json")),
    sharded("shard-missing", gone(FIRST)),
    sharded("index-missing", gone(INDEX)),
    lora("adapter-missing", gone(ADAPTER)),
    lora("adapter-config-missing", gone(ADAPTER_CONFIG)),
    full("optimizer-dangling-link", _dangling(OPTIMIZER)),
    full("weights-dangling-link", _dangling(WEIGHTS)),
    # files of no bytes
    full("weights-empty", cut(WEIGHTS, 0)),
    full("optimizer-empty", cut(OPTIMIZER, 0)),
    full("scheduler-empty", cut(SCHEDULER, 0)),
    full("rng-empty", cut(RNG, 0)),
    full("state-empty", cut(STATE, 0)),
    full("arguments-empty", cut(ARGS, 0)),
    full("config-empty", cut(CONFIG, 0)),
    full("generation-config-empty", cut("generation_config.json", 0)),
    sharded("shard-empty", cut(FIRST, 0)),
    sharded("index-empty", cut(INDEX, 0)),
    lora("adapter-empty", cut(ADAPTER, 0)),
    # files cut, lengthened, zeroed
    full("weights-cut", cut(WEIGHTS, 0.5)),
    full("weights-cut-by-one", cut(WEIGHTS, -1)),
    full("weights-cut-in-header", cut(WEIGHTS, 100)),
    full("optimizer-cut", cut(OPTIMIZER, 0.5)),
    full("optimizer-cut-by-one", cut(OPTIMIZER, -1)),
    full("scheduler-cut", cut(SCHEDULER, 0.5)),
    full("rng-cut", cut(RNG, 0.9)),
    full("state-cut", cut(STATE, 0.5)),
    full("arguments-cut", cut(ARGS, 0.5)),
    full("config-cut", cut(CONFIG, 0.5)),
    sharded("shard-cut", cut(SECOND, 0.7)),
    sharded("index-cut", cut(INDEX, 0.5)),
    lora("adapter-cut", cut(ADAPTER, -4)),
    lora("adapter-config-cut", cut(ADAPTER_CONFIG, 0.5)),
    full("weights-one-byte-more", more(WEIGHTS, b"\0")),
    full("optimizer-bytes-more", more(OPTIMIZER, b"\0" * 100)),
    full("weights-zeroed", zeros(WEIGHTS)),
    full("weights-tail-zeroed", zeros(WEIGHTS, 0.6)),
    full("optimizer-zeroed", zeros(OPTIMIZER)),
    full("scheduler-zeroed", zeros(SCHEDULER)),
    full("rng-zeroed", zeros(RNG)),
    full("state-zeroed", zeros(STATE)),
    # files of another kind
    full("weights-lfs-pointer", holds(WEIGHTS, LFS)),
    full("weights-web-page", holds(WEIGHTS, PAGE)),
    full("optimizer-web-page", holds(OPTIMIZER, PAGE)),
    full("scheduler-lfs-pointer", holds(SCHEDULER, LFS)),
    full("optimizer-error-text", holds(OPTIMIZER, b'{"error":"Repository not found"}')),
    full(
        "weights-gzip",
        lambda directory: (directory / WEIGHTS).write_bytes(gzip.compress((directory / WEIGHTS).read_bytes())),
    ),
    full("weights-torch-named-safetensors", _torch_named_safetensors),
    full("weights-safetensors-named-bin", _safetensors_named_bin),
    full("weights-as-bin", _as_bin),
    full("optimizer-a-directory", directory_instead(OPTIMIZER)),
    full("weights-a-directory", directory_instead(WEIGHTS)),
    full("optimizer-old-format", in_torch(OPTIMIZER, lambda value: None, _use_new_zipfile_serialization=False)),
    full("optimizer-protocol-4", in_torch(OPTIMIZER, lambda value: None, pickle_protocol=4)),
    full("stray-fsdp-directory", lambda directory: (directory / "pytorch_model_fsdp_0").mkdir()),
    full("stray-optimizer-directory", lambda directory: (directory / "optimizer_0").mkdir()),
    full(
        "optimizer-missing-beside-its-directory",
        both(gone(OPTIMIZER), lambda directory: (directory / "optimizer_0").mkdir()),
    ),
    full("marked-incomplete", holds("checkpoint-is-incomplete.txt", b"")),
    # trainer_state.json
    full("state-a-list", holds(STATE, b"[]")),
    full("state-null", holds(STATE, b"null")),
    full("state-trailing-comma", as_text(STATE, lambda text: text.rstrip()[:-1] + ",}")),
    full("state-bom", as_text(STATE, str, "utf-8-sig")),
    full("state-utf16", as_text(STATE, str, "utf-16")),
    full("state-key-twice", as_text(STATE, lambda text: text.replace("{", '{"epoch": 0.1,', 1))),
    full("state-nan", in_json(STATE, lambda value: value["log_history"][0].update(grad_norm=float("nan")))),
    full("state-infinity", in_json(STATE, keys(best_metric=float("inf")))),
    full("state-unknown-key", in_json(STATE, keys(note="mine"))),
    full("state-without-step", in_json(STATE, without("global_step"))),
    full("state-without-history", in_json(STATE, without("log_history"))),
    full("state-without-callbacks", in_json(STATE, without("stateful_callbacks"))),
    full("state-without-max-steps", in_json(STATE, without("max_steps"))),
    full("state-without-epoch", in_json(STATE, without("epoch"))),
    full("state-empty-object", holds(STATE, b"{}")),
    full("state-batch-null", in_json(STATE, keys(train_batch_size=None))),
    full("state-step-text", in_json(STATE, keys(global_step="4"))),
    full("state-step-null", in_json(STATE, keys(global_step=None))),
    full("state-step-float", in_json(STATE, keys(global_step=4.0))),
    full("state-step-negative", in_json(STATE, keys(global_step=-1))),
    full("state-step-other", in_json(STATE, keys(global_step=2))),
    full("state-step-at-the-end", in_json(STATE, keys(global_step=6))),
    full("state-step-past-the-end", in_json(STATE, keys(global_step=60))),
    full("state-epoch-other", in_json(STATE, keys(epoch=7.5))),
    full("state-max-steps-other", in_json(STATE, keys(max_steps=100))),
    full("state-history-null", in_json(STATE, keys(log_history=None))),
    full("state-history-text", in_json(STATE, keys(log_history="lost"))),
    full("state-save-steps-null", in_json(STATE, keys(save_steps=None))),
    full("state-logging-steps-other", in_json(STATE, keys(logging_steps=50))),
    full("state-callbacks-null", in_json(STATE, keys(stateful_callbacks=None))),
    full("state-callbacks-a-list", in_json(STATE, keys(stateful_callbacks=[]))),
    full("state-best-gone", in_json(STATE, keys(best_model_checkpoint="/elsewhere/run/checkpoint-2"))),
    full("state-best-null", in_json(STATE, keys(best_model_checkpoint=None))),
    full("state-best-a-number", in_json(STATE, keys(best_model_checkpoint=5))),
    full("state-of-another-step", _other_steps(STATE, "checkpoint-2")),
    # config.json
    full("config-a-list", holds(CONFIG, b"[]")),
    full("config-not-json", holds(CONFIG, b"{'a': 1}")),
    full("config-other-size", in_json(CONFIG, keys(vocab_size=64))),
    full("generation-config-not-json", holds("generation_config.json", b"{")),
    full("tokenizer-not-json", holds("tokenizer.json", b"{")),
    # weights
    full("keys-module", in_weights(WEIGHTS, _prefixed("module."))),
    full("keys-orig-mod", in_weights(WEIGHTS, _prefixed("_orig_mod."))),
    full("key-renamed", in_weights(WEIGHTS, _renamed_one)),
    full("head-missing", in_weights(WEIGHTS, without(HEAD))),
    full(
        "layer-missing", in_weights(WEIGHTS, lambda t: {name: x for name, x in t.items() if ".layers.1." not in name})
    ),
    full("tensor-more", in_weights(WEIGHTS, lambda t: t.update(extra=t[HEAD].clone()))),
    full("no-tensors", in_weights(WEIGHTS, lambda t: {})),
    full("embedding-rows", in_weights(WEIGHTS, _cut_rows(EMBEDDING, 20))),
    full("weight-shape", in_weights(WEIGHTS, _cut_rows("model.layers.0.mlp.down_proj.weight", 4))),
    full("weight-empty", in_weights(WEIGHTS, _cut_rows("model.layers.0.mlp.down_proj.weight", 0))),
    full("all-bfloat16", in_weights(WEIGHTS, _to_bfloat16)),
    full("weight-nan", in_weights(WEIGHTS, _fill("model.layers.0.mlp.down_proj.weight", float("nan")))),
    full("weights-of-another-step", _other_steps(WEIGHTS, "checkpoint-2")),
    # sharded weights
    sharded("index-a-list", holds(INDEX, b"[]")),
    sharded("index-without-map", in_json(INDEX, without("weight_map"))),
    sharded("index-map-empty", in_json(INDEX, keys(weight_map={}))),
    sharded("index-map-a-list", in_json(INDEX, keys(weight_map=[]))),
    sharded("index-map-of-numbers", _map_edit(lambda names: names.update({HEAD: 4}))),
    sharded("index-without-metadata", in_json(INDEX, without("metadata"))),
    sharded("index-total-wrong", in_json(INDEX, keys(metadata={"total_size": 1}))),
    sharded("index-lacks-tensor", _map_edit(lambda names: names.pop(EMBEDDING))),
    sharded(
        "index-lacks-shard",
        _map_edit(lambda names: [names.pop(name) for name, file in list(names.items()) if file == FIRST]),
    ),
    sharded("index-wrong-shard", _map_edit(lambda names: names.update({EMBEDDING: SECOND}))),
    sharded("index-tensor-nowhere", _map_edit(lambda names: names.update({"model.layers.7.x": FIRST}))),
    sharded("index-file-nowhere", _map_edit(lambda names: names.update({HEAD: "model-00009-of-00009.safetensors"}))),
    sharded("index-leads-outside", _moved_outside),
    sharded("shard-lacks-tensor", in_weights(FIRST, without(EMBEDDING))),
    sharded("shard-shape", in_weights(FIRST, _cut_rows(EMBEDDING, 7))),
    sharded("shards-swapped", _swapped_shards),
    sharded("shard-renamed", _renamed_shard),
    sharded(
        "shard-of-another-run",
        lambda directory: shutil.copy2(directory / FIRST, directory / "model-00005-of-00007.safetensors"),
    ),
    sharded("single-file-beside-stale-index", _merged_beside_index),
    # optimizer.pt
    full("optimizer-group-less", in_torch(OPTIMIZER, _last_group)),
    full(
        "optimizer-group-more",
        in_torch(OPTIMIZER, lambda v: v["param_groups"].append(dict(v["param_groups"][0], params=[]))),
    ),
    full("optimizer-group-shorter", in_torch(OPTIMIZER, lambda v: v["param_groups"][0]["params"].pop())),
    full("optimizer-groups-swapped", in_torch(OPTIMIZER, _swapped_groups)),
    full("optimizer-without-groups", in_torch(OPTIMIZER, without("param_groups"))),
    full("optimizer-without-state", in_torch(OPTIMIZER, without("state"))),
    full("optimizer-state-empty", in_torch(OPTIMIZER, lambda v: v.update(state={}))),
    full("optimizer-entry-missing", in_torch(OPTIMIZER, _first_entry)),
    full(
        "optimizer-entry-text-key",
        in_torch(OPTIMIZER, lambda v: v.update(state={str(k): x for k, x in v["state"].items()})),
    ),
    full("optimizer-entry-more", in_torch(OPTIMIZER, lambda v: v["state"].update({99: v["state"][0]}))),
    full("optimizer-moment-missing", in_torch(OPTIMIZER, lambda v: v["state"][0].pop("exp_avg_sq"))),
    full("optimizer-step-missing", in_torch(OPTIMIZER, lambda v: v["state"][0].pop("step"))),
    full("optimizer-moment-shape", in_torch(OPTIMIZER, _moment((3, 5))), child=True),
    full("optimizer-moment-scalar", in_torch(OPTIMIZER, _moment(())), child=True),
    full("optimizer-moment-shape-unfused", in_torch(OPTIMIZER, _unfused)),
    full("optimizer-moment-nan", in_torch(OPTIMIZER, _nan)),
    full("optimizer-moments-swapped", in_torch(OPTIMIZER, _swapped_moments)),
    full("optimizer-betas-missing", in_torch(OPTIMIZER, _each_without("betas"))),
    full("optimizer-rate-missing", in_torch(OPTIMIZER, _each_without("lr"))),
    full("optimizer-initial-rate-missing", in_torch(OPTIMIZER, _each_without("initial_lr"))),
    full("optimizer-group-key-more", in_torch(OPTIMIZER, _each_group(mine=1))),
    full("optimizer-rate-none", in_torch(OPTIMIZER, _each_group(lr=None))),
    full("optimizer-rate-numpy", in_torch(OPTIMIZER, _numpy_rate)),
    full("optimizer-rate-other", in_torch(OPTIMIZER, _each_group(lr=0.5))),
    full("optimizer-steps-other", in_torch(OPTIMIZER, _steps(400))),
    full("optimizer-a-list", in_torch(OPTIMIZER, lambda v: [v])),
    full("optimizer-ordered", in_torch(OPTIMIZER, _ordered)),
    full("optimizer-defaultdict", in_torch(OPTIMIZER, _defaulted)),
    full("optimizer-of-another-step", _other_steps(OPTIMIZER, "checkpoint-2")),
    # scheduler.pt
    full("scheduler-base-rates-shorter", in_torch(SCHEDULER, lambda v: v["base_lrs"].pop())),
    full("scheduler-last-rates-shorter", in_torch(SCHEDULER, lambda v: v["_last_lr"].pop())),
    full("scheduler-lambdas-shorter", in_torch(SCHEDULER, lambda v: (v["lr_lambdas"].pop(),))),
    full("scheduler-lambdas-missing", in_torch(SCHEDULER, without("lr_lambdas"))),
    full("scheduler-base-rates-missing", in_torch(SCHEDULER, without("base_lrs"))),
    full("scheduler-epoch-missing", in_torch(SCHEDULER, without("last_epoch"))),
    full("scheduler-epoch-other", in_torch(SCHEDULER, keys(last_epoch=2))),
    full("scheduler-epoch-text", in_torch(SCHEDULER, keys(last_epoch="4"))),
    full("scheduler-key-more", in_torch(SCHEDULER, keys(mine=1))),
    full("scheduler-empty-object", in_torch(SCHEDULER, lambda v: {})),
    full("scheduler-a-list", in_torch(SCHEDULER, lambda v: [v])),
    full("scheduler-of-another-step", _other_steps(SCHEDULER, "checkpoint-2")),
    # rng_state.pth
    full("rng-without-python", in_torch(RNG, without("python"))),
    full("rng-without-numpy", in_torch(RNG, without("numpy"))),
    full("rng-without-cpu", in_torch(RNG, without("cpu"))),
    full("rng-short", in_torch(RNG, _short_generator)),
    full("rng-python-text", in_torch(RNG, _generator(python="seed"))),
    full("rng-a-list", in_torch(RNG, lambda v: [v])),
    full("rng-with-object", in_torch(RNG, _with_object)),
    full("rng-of-another-step", _other_steps(RNG, "checkpoint-2")),
    # adapters
    lora("adapter-no-tensors", in_weights(ADAPTER, lambda t: {})),
    lora("adapter-tensor-missing", in_weights(ADAPTER, _first_second_factor)),
    lora(
        "adapter-shape",
        in_weights(ADAPTER, lambda t: t.update({name: x[:1].clone() for name, x in t.items() if "lora_A" in name})),
    ),
    lora("adapter-size-zero", in_weights(ADAPTER, lambda t: {name: x[:0].clone() for name, x in t.items()})),
    lora("adapter-keys-renamed", in_weights(ADAPTER, _prefixed("other."))),
    lora("adapter-config-rank", in_json(ADAPTER_CONFIG, keys(r=8))),
    lora("adapter-config-a-list", holds(ADAPTER_CONFIG, b"[]")),
    lora("adapter-config-no-base", in_json(ADAPTER_CONFIG, keys(base_model_name_or_path=None))),
    lora("adapter-optimizer-missing", gone(OPTIMIZER)),
    lora("adapter-optimizer-group-less", in_torch(OPTIMIZER, _last_group)),
)
