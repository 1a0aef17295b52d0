"""What is told less loudly than by an error, each with the reason; nothing outside of this table may be."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.robustness.sweep import Case, Told

ANY = ".*"
GONE_OR_OTHER = "deleted|of another step"
WHOLE = "swapped|of another step"


@dataclass(frozen=True, slots=True)
class Row:
    """Regular expressions for fixture, file and damage, and the least that has to tell of it."""

    fixture: str
    file: str
    damage: str
    told: Told
    reason: str

    def covers(self, case: Case) -> bool:
        pairs = ((self.fixture, case.fixture), (self.file, case.file), (self.damage, case.damage))
        return all(re.fullmatch(expression, text) for expression, text in pairs)


_SEAL, _DEEP, _NOTE, _WARNING, _NOBODY = (
    Told.BY_A_SEAL,
    Told.BY_DEEP,
    Told.BY_A_NOTE,
    Told.BY_A_WARNING,
    Told.BY_NOBODY,
)
_CKPT = "checkpoint-[^/]*/"

ON_PURPOSE: tuple[Row, ...] = (
    # A bit: by the checksums of the format where it has any, else by those of a seal.
    Row(
        ANY, r".*\.(pt|pth|bin|ckpt|pkl|pth\.tar|distcp|data-\d+-of-\d+)", "bit", _DEEP, "zip and TensorFlow have CRCs"
    ),
    Row("(orbax|flax).*", "(.*/)?d/.*", "bit", _DEEP, "nodes of OCDBT have CRCs"),
    Row(ANY, ANY, "bit", _SEAL, "no checksum inside"),
    Row(
        "(tensorflow|mmengine).*",
        "checkpoint|last_checkpoint",
        "bit",
        _NOBODY,
        "another name; a seal is of checkpoints",
    ),
    # Files that are checkpoints by themselves: without one there is one checkpoint less.
    Row(
        "(detectron2|timm|ultralytics/weights|mmengine|keras|flax/(legacy|msgpack)|lightning/.*)",
        "(?!last_checkpoint)[^/]*",
        "deleted",
        _NOBODY,
        "each file is a checkpoint: a rotation deletes the same",
    ),
    Row("flax/legacy", "checkpoint_.*", "of another step", _SEAL, "the state is named by its loop, a step is not told"),
    Row("lightning/.*", r".*\.ckpt", "of another step", _WARNING, "it loads, under a name that says another step"),
    Row("detectron2|mmengine|timm|ultralytics/weights", ".*", "of another step", _WARNING, "it loads, likewise"),
    # Trackers.
    Row(
        "(deepspeed|megatron)/.*",
        "latest.*",
        "deleted",
        _WARNING,
        "training starts afresh, and says so; some name a tag",
    ),
    Row(
        "tensorflow/manager|detectron2|mmengine",
        "checkpoint|last_checkpoint",
        "deleted",
        _WARNING,
        "training starts afresh; files are passed on without it",
    ),
    Row("tensorflow/manager", "checkpoint", "half", _NOBODY, "the first line, which names the newest, is whole"),
    # TensorFlow's shards are bare numbers.
    Row("tensorflow/.*", r".*\.data-.*", "zeros|swapped|of another step", _DEEP, "numbers may be zero; the CRCs tell"),
    Row("tensorflow/.*", r".*\.index", "swapped|of another step", _DEEP, "offsets are the same; the CRCs tell"),
    # Whole files at the place of others: nothing in them says which rank or step they are of.
    Row(
        "dcp/files-per-item|fsdp/.*",
        r".*\.distcp",
        "swapped",
        _SEAL,
        "pieces of the same shapes and types, and no piece has a name",
    ),
    Row(
        "dcp/hf-writer", ".*", "swapped", _SEAL, "a header says where its pieces belong; the name of a file is nothing"
    ),
    Row("fsdp/.*", ".*(random_states|rng_state).*", "swapped", _SEAL, "each rank has another's randomness, no more"),
    Row(
        "dcp/run|torchtitan|olmo-core",
        r".*(\.metadata|\.distcp)",
        "of another step",
        _SEAL,
        "pieces of the same shapes and types; parameters may have steps of their own",
    ),
    Row(
        "olmo-core",
        "step.*/train/.*|.*config.*|.*json",
        "of another step",
        _WARNING,
        "every rank has a step of its own",
    ),
    Row("torchtitan|dcp/run", ".*", "of another step", _WARNING, "the step inside is not that of the name"),
    Row("deepspeed/moe.*", ".*expert_[01]_.*", "swapped", _WARNING, "both are experts of rank 0: they come out right"),
    Row("deepspeed/trainer-stage3.*", ".*model_states.pt", "swapped", _WARNING, "all ranks say the same in theirs"),
    Row(
        "deepspeed/universal-stage3",
        ".*model_states.pt",
        "swapped",
        _SEAL,
        "all ranks take from that of rank 0 what all say alike",
    ),
    Row("deepspeed/.*", ".*model_states.pt", "of another step", _WARNING, "it loads, at another step"),
    Row(
        "deepspeed/trainer.*",
        f"{_CKPT}model.safetensors",
        "of another step",
        _SEAL,
        "a resume takes DeepSpeed's partitions; numbers alone",
    ),
    Row("megatron/legacy", ".*", "swapped", _SEAL, "parts of tensor-parallel ranks have the same shapes"),
    # What a layout can do without.
    Row(
        "deepspeed/pipeline.*",
        ".*layer_01.*",
        "deleted",
        _NOTE,
        "the empty file of a module without tensors: a function has none, and nothing says which a layer is",
    ),
    Row(
        "deepspeed/universal-stage1",
        ".*/(frozen.*|scale)/fp32.pt",
        "deleted",
        _SEAL,
        "DeepSpeed asks for what is trained alone",
    ),
    Row(
        "deepspeed/universal-stage3",
        ".*zero_pp_rank_1_.*",
        "deleted",
        _SEAL,
        "any number of ranks loads, and all read the model states of rank 0",
    ),
    Row("(deepspeed|fsdp)/trainer.*", f"{_CKPT}training_args.bin", ANY, _WARNING, "no resume reads it"),
    Row(
        "(deepspeed|fsdp)/trainer.*",
        f"{_CKPT}(training_args.bin|generation_config.json)",
        "deleted",
        _SEAL,
        "no resume reads them; a note where others of the run have one",
    ),
    Row("(deepspeed|fsdp)/trainer.*", f"{_CKPT}config.json", "deleted", _WARNING, "a resume has the live model's"),
    Row(
        "(deepspeed|fsdp)/trainer.*",
        f"{_CKPT}model.safetensors",
        "deleted",
        _WARNING,
        "a resume takes the framework's weights",
    ),
    Row(
        "deepspeed/trainer-stage3-gathered|fsdp/trainer-full",
        f"{_CKPT}model.safetensors",
        "deleted",
        _SEAL,
        "the only checkpoint of its run: nothing tells that there was one",
    ),
    Row("(deepspeed|fsdp)/.*", ".*(rng_state|random_states).*", "deleted", _WARNING, "randomness differs, no more"),
    Row(
        "fsdp/(fsdp2|trainer)-full",
        ".*(rng_state|random_states)_1.*",
        "deleted",
        _SEAL,
        "one file of weights: nothing tells the number of ranks",
    ),
    Row("fsdp/.*", "scheduler.bin", "deleted", _SEAL, "a loop need not have one, and no other checkpoint shows one"),
    Row("llama-recipes/full", ".*optimizer-.*", "deleted", _NOTE, "saved where it was asked for"),
    Row(
        "(llama-recipes|deepspeed)/.*", ".*(train_params.yaml|README.md)", ANY, _SEAL, "for people: no loader reads it"
    ),
    Row("dcp/hf-consolidated", "sharded/.*", ANY, _SEAL, "what the files above were made of; nobody reads it again"),
    Row(
        "dcp/hf-writer",
        ".*",
        "deleted",
        _SEAL,
        "neither index nor metadata: tensors that were whole in it are forgotten",
    ),
    Row("megatron/torch-dist-current", ".*/integrity.json", "deleted", _SEAL, "written and read where it is asked for"),
    Row("megatron/torch-dist-current", ".*/integrity.json", "(?!deleted|bit).*", _WARNING, "read where asked for"),
    Row("megatron/nemo2", ".*/model.yaml", ANY, _SEAL, "for people: NeMo reads io.json"),
    Row("megatron/nemo2", ".*/io.json", "deleted", _WARNING, "a resume has the model of its script"),
    # Orbax: bookkeeping that no restore needs.
    Row(
        "(orbax|flax)/.*",
        "(.*/)?(commit_success.txt|ocdbt.process_.*)",
        ANY,
        _SEAL,
        "of the save itself: what is read was merged out of it",
    ),
    Row("(orbax|flax)/.*", "(.*/)?(_sharding|array_metadatas/.*)", ANY, _SEAL, "hints; a restore goes without"),
    Row("(orbax|flax)/.*", "(.*/)?_CHECKPOINT_METADATA", GONE_OR_OTHER, _SEAL, "old versions wrote none; times alone"),
    Row("(orbax|flax)/.*", "(.*/)?(d/.*|metadata|manifest.ocdbt)", WHOLE, _SEAL, "a whole file of another step"),
)


def least(case: Case) -> tuple[Told, tuple[Row, ...]]:
    """Return the least that has to tell of a damage, and the rows that say so."""
    rows = tuple(row for row in ON_PURPOSE if row.covers(case))
    return min((row.told for row in rows), default=Told.BY_AN_ERROR), rows
