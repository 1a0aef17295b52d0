# ruff: noqa: E501
"""``ckpt explain``: every row of the table in old and new words, as people paste them and as today's libraries print them."""

from __future__ import annotations

import gzip
import json
import re
import struct
from pathlib import Path

import pytest

from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.ops.explain import ERROR_TEXTS, explain, named_path
from ckpt_tools.render import json as json_format
from ckpt_tools.render import text as text_format
from ckpt_tools.rules import CATALOGUE, by_code

UNPICKLING = """_pickle.UnpicklingError: Weights only load failed. In PyTorch 2.6, we changed the default value of the \
`weights_only` argument in `torch.load` from `False` to `True`. Re-running `torch.load` with `weights_only` set to `False` \
will likely succeed, but it can result in arbitrary code execution. Do it only if you got the file from a trusted source.
Please file an issue with the following so that we can make `weights_only=True` compatible with your use case: \
WeightsUnpickler error: """

PASTED: list[tuple[str, str]] = [
    ("zip-cut", "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory"),
    (
        "zip-cut",
        "PytorchStreamReader failed reading zip archive: failed finding central directory. This usually means there is a "
        "high likelihood that your checkpoint file is corrupted",
    ),
    ("zip-cut", "RuntimeError: PytorchStreamReader failed reading zip archive: invalid header or archive is corrupted"),
    ("zip-cut", "OSError: [Errno 22] Invalid argument"),
    ("zip-record", "RuntimeError: PytorchStreamReader failed locating file data/1: file not found"),
    ("zip-record", "record size (8192 bytes) does not match expected size (16384 bytes for 4096 elements)"),
    ("zip-unreadable", "RuntimeError: PytorchStreamReader failed reading file data/12: file read failed"),
    ("legacy-cut", "RuntimeError: unexpected EOF, expected 12718 more bytes. The file might be corrupted."),
    ("safetensors-incomplete", "SafetensorError: Error while deserializing header: MetadataIncompleteBuffer"),
    ("safetensors-incomplete", "Error while deserializing header: incomplete metadata, file not fully covered"),
    ("safetensors-header-large", "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"),
    ("safetensors-header-large", "Error while deserializing header: header too large"),
    ("safetensors-header-small", "Error while deserializing header: HeaderTooSmall"),
    ("safetensors-header-small", "Error while deserializing header: header too small"),
    ("safetensors-header-cut", "Error while deserializing header: InvalidHeaderLength"),
    ("safetensors-header-cut", "Error while deserializing header: invalid header length"),
    ("safetensors-header-json", "Error while deserializing header: InvalidHeaderDeserialization"),
    ("safetensors-header-json", "invalid JSON in header: unknown variant `F99`, expected one of `BOOL`, `U8`"),
    ("safetensors-header-json", "Error while deserializing header: InvalidHeader"),
    ("safetensors-header-json", "invalid UTF-8 in header: invalid utf-8 sequence of 1 bytes from index 2"),
    ("safetensors-tensor", "Error while deserializing header: TensorInvalidInfo"),
    ("safetensors-tensor", "invalid shape, data type, or offset for tensor"),
    ("safetensors-tensor", 'Error while deserializing header: InvalidOffset("b.weight")'),
    ("safetensors-tensor", "invalid offset for tensor `b.weight`"),
    ("zero-filled", "invalid JSON in header: EOF while parsing a value at line 1 column 0"),
    ("zero-filled", "_pickle.UnpicklingError: invalid load key, '\\x00'."),
    ("zero-filled", "KeyError: \"filename 'storages' not found\""),
    (
        "zero-filled",
        "RuntimeError: Cannot use ``weights_only=True`` with files saved in the legacy .tar format. In PyTorch",
    ),
    ("git-lfs-pointer", "_pickle.UnpicklingError: invalid load key, 'v'."),
    ("git-lfs-pointer", UNPICKLING + "Unsupported operand 118"),
    ("web-page", "_pickle.UnpicklingError: invalid load key, '<'."),
    ("web-page", UNPICKLING + "Unsupported operand 60"),
    ("server-message", "_pickle.UnpicklingError: invalid load key, '{'."),
    ("server-message", UNPICKLING + "Unsupported operand 123"),
    ("server-message", UNPICKLING + "Unsupported operand 69"),
    ("compressed", "_pickle.UnpicklingError: invalid load key, '\\x1f'."),
    ("compressed", UNPICKLING + "Unsupported operand 31"),
    ("weights-only-operand", UNPICKLING + "Unsupported operand 149"),
    ("weights-only-operand", "_pickle.UnpicklingError: invalid load key, '\\xef'."),
    (
        "weights-only-numpy",
        UNPICKLING
        + "Unsupported global: GLOBAL numpy.core.multiarray._reconstruct was not an allowed global by default.",
    ),
    (
        "weights-only-numpy",
        UNPICKLING
        + "Unsupported global: GLOBAL numpy._core.multiarray._reconstruct was not an allowed global by default.",
    ),
    (
        "weights-only-global",
        UNPICKLING
        + "Unsupported global: GLOBAL transformers.training_args.TrainingArguments was not an allowed global",
    ),
    ("numpy-names", "ModuleNotFoundError: No module named 'numpy._core'"),
    ("numpy-names", "ModuleNotFoundError: No module named 'numpy._core.multiarray'"),
    ("no-valid-checkpoint", "ValueError: Can't find a valid checkpoint at out/"),
    ("no-valid-checkpoint", "ValueError: No valid checkpoint found in output directory (out)"),
    (
        "save-interrupted-state",
        "FileNotFoundError: [Errno 2] No such file or directory: '/data/out/checkpoint-25/trainer_state.json'",
    ),
    (
        "optimizer-groups",
        "ValueError: loaded state dict contains a parameter group that doesn't match the size of optimizer's group",
    ),
    ("optimizer-groups", "ValueError: loaded state dict has a different number of parameter groups"),
    (
        "optimizer-order",
        "RuntimeError: The size of tensor a (2048) must match the size of tensor b (7) at non-singleton dimension 1",
    ),
    (
        "placeholder",
        "size mismatch for base_model.model.lm_head.lora_B.default.weight: copying a param with shape torch.Size([0]) from "
        "checkpoint, the shape in current model is torch.Size([32000, 8]).",
    ),
    (
        "embedding-rows",
        "size mismatch for model.embed_tokens.weight: copying a param with shape torch.Size([32002, 4096]) from checkpoint, "
        "the shape in current model is torch.Size([32000, 4096]).",
    ),
    (
        "size-mismatch",
        "size mismatch for fc.weight: copying a param with shape torch.Size([3, 4]) from checkpoint, the shape in current "
        "model is torch.Size([3, 5]).",
    ),
    (
        "world-size",
        "deepspeed.runtime.zero.utils.ZeRORuntimeException: The checkpoint being loaded used a DP world size of 8 but the "
        "current world size is 16. Automatic adjustment of ZeRO's optimizer state partitioning with a new world size is not "
        "currently supported.",
    ),
    (
        "rank-files",
        "Expected 1 of '*_optim_states.pt' under './global_step100' but found 4 files. Possibly due to an overwrite",
    ),
    ("rank-files", "FileNotFoundError: 'out/global_step9/zero_pp_rank_4_mp_rank_00_optim_states.pt'"),
    (
        "deepspeed-latest",
        "ValueError: Unable to find latest file at /data/run/latest, if trying to load latest checkpoint please ensure",
    ),
    (
        "prefix",
        'Unexpected key(s) in state_dict: "_orig_mod.transformer.wte.weight", "_orig_mod.transformer.wpe.weight"',
    ),
    ("prefix", 'Missing key(s) in state_dict: "conv.weight". Unexpected key(s) in state_dict: "module.conv.weight"'),
    ("disk-full", "RuntimeError: PytorchStreamWriter failed writing file data/3: file write failed"),
    ("disk-full", "[enforce fail at inline_container.cc:424] . unexpected pos 704 vs 598"),
    ("disk-full", "SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)"),
    ("dcp-metadata", "AssertionError: assert metadata is not None"),
    (
        "dcp-metadata",
        "CheckpointException ranks:dict_keys([0]) metadata is None; global metadata read failed: [Errno 2]",
    ),
    ("pickle-cut", "_pickle.UnpicklingError: pickle data was truncated"),
    ("empty-file", "EOFError: Ran out of input"),
    ("empty-file", "EOFError"),
    ("json-damaged", "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
    ("shard-missing", "FileNotFoundError: No such file or directory: 'm/model-00002-of-00004.safetensors'"),
    ("best-model-gone", "File \"genericpath.py\", line 100, in samefile\nFileNotFoundError: 'out/checkpoint-500'"),
    ("old-state", "TypeError: TrainerState.__init__() got an unexpected keyword argument 'best_global_step'"),
    ("adapter-config", "TypeError: LoraConfig.__init__() got an unexpected keyword argument 'eva_config'"),
    ("dcp-other", "torch.distributed.checkpoint.api.CheckpointException: CheckpointException ranks:dict_keys([0])"),
]


def name_of(text: str) -> str:
    return explain(text).meanings[0].name


@pytest.mark.parametrize(("name", "text"), PASTED, ids=[f"{number}-{name}" for number, (name, _) in enumerate(PASTED)])
def test_a_pasted_message_is_recognised(name: str, text: str) -> None:
    assert name_of(text) == name
    assert explain(text).exit_code == 0


@pytest.mark.parametrize(("name", "text"), PASTED[::5], ids=str)
def test_a_traceback_and_a_progress_bar_around_it_change_nothing(name: str, text: str) -> None:
    around = 'Traceback (most recent call last):\n  File "/opt/venv/lib/python3.11/site-packages/torch/serialization.py", line 1524\n'
    assert (
        name_of(f"{around}    return f(x)\n  0%|          | 0/100 [00:00<?, ?it/s]\n{text}\nsrun: error: node17\n")
        == name
    )


def test_every_row_of_the_table_has_an_example() -> None:
    assert {row.name for row in ERROR_TEXTS} == {name for name, _ in PASTED}


def test_names_of_rows_are_unique_and_their_rules_exist() -> None:
    names = [row.name for row in ERROR_TEXTS]
    assert len(set(names)) == len(names)
    wanted = {name for row in ERROR_TEXTS for name in row.rules}
    assert {name for name in wanted if by_code(name) is None} == set()


def test_commands_name_existing_verbs() -> None:
    from ckpt_tools.cli.app import COMMANDS

    verbs = {command.split()[1] for row in ERROR_TEXTS for command in row.commands if command.startswith("ckpt ")}
    assert verbs <= set(COMMANDS)


# Paths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("No such file or directory: '/data/out/checkpoint-25/trainer_state.json'", "/data/out/checkpoint-25"),
        ("Can't find a valid checkpoint at out/lora", "out/lora"),
        ("Can't find a valid checkpoint at checkpoint-300", "checkpoint-300"),
        ("Error no file named model.safetensors found in directory ./my run/model/x.bin", "run/model/x.bin"),
        ("FileNotFoundError: 'my run/checkpoint-7/optimizer.pt'", "my run/checkpoint-7"),
        ("failed finding central directory in ../runs/a/epoch_3.pt.", "../runs/a/epoch_3.pt"),
        ('File "/usr/lib/python3/site-packages/torch/serialization.py", line 9\nEOFError', None),
        ("see https://pytorch.org/docs/stable/x.pt for more", None),
        ("Unable to find latest file at /data/run/latest, if trying", "/data/run"),
        ("header too large", None),
    ],
)
def test_the_path_in_a_message_is_found(text: str, path: str | None) -> None:
    assert named_path(text) == path


def test_the_path_goes_into_the_commands() -> None:
    report = explain(
        "FileNotFoundError: [Errno 2] No such file or directory: 'my out/checkpoint-25/trainer_state.json'"
    )
    assert report.meanings[0].commands == ("ckpt latest 'my out'", "ckpt verify 'my out/checkpoint-25'")


def test_without_a_path_the_commands_have_a_placeholder() -> None:
    assert "ckpt verify PATH" in explain("HeaderTooLarge").meanings[0].commands


# Codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", CATALOGUE, ids=lambda rule: rule.code)
def test_every_rule_is_explained_by_code_and_by_name(rule: object) -> None:
    code, name = rule.code, rule.name  # type: ignore[attr-defined]
    for word in (code, code.lower(), name, f"[{code}]", f" {code} "):
        report = explain(word)
        assert report.rule is not None
        assert (report.rule.code, report.rule.name) == (code, name)
    shown = "\n".join(text_format.render(explain(code)))
    assert shown.startswith(f"{code} {name} (")
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_a_finding_that_was_pasted_is_explained() -> None:
    report = explain("error[CK203]: something this table does not know")
    assert report.rule is not None
    assert report.rule.code == "CK203"


def test_an_unknown_code_names_the_nearest() -> None:
    with pytest.raises(NothingFoundError) as caught:
        explain("CK204999"[:5] + "9")
    assert re.search(r"CK\d{3} \(", caught.value.hint or "")
    assert caught.value.exit_code == 4


def test_an_unknown_text_ends_with_1_and_something_to_do() -> None:
    report = explain("the coffee machine is broken")
    assert report.exit_code == 1
    assert "ckpt verify" in " ".join(text_format.render(report))


def test_a_misspelt_name_gets_close_ones() -> None:
    assert ("CK203", "file-cut-short") in explain("file-cut-shrt").close


def test_long_and_hostile_text_is_no_trouble() -> None:
    for text in (
        "'/" * 50_000,
        "checkpoint-" * 20_000,
        "a/" * 50_000,
        "no such file " * 10_000,
        "\x1b[2J" * 1000,
        "",
        "[",
    ):
        report = explain(text)
        assert "\x1b" not in "\n".join(text_format.render(report))
        json.loads("".join(json_format.render(report)))


@pytest.mark.parametrize("text", ["CK203", "HeaderTooLarge in out/checkpoint-3/model.safetensors", "nothing of this"])
def test_the_document_is_json(text: str) -> None:
    document = json.loads("".join(json_format.render(explain(text))))
    assert document["schema"] == "ckpt-tools/explain/1"


# What today's libraries print -------------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
PAGE = b"<!doctype html><html><head><title>Quota exceeded</title></head></html>"
HEADER = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
WHOLE = struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 16


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("safetensors-header-small", b""),
        ("safetensors-header-small", WHOLE[:5]),
        ("safetensors-header-cut", WHOLE[:20]),
        ("safetensors-incomplete", WHOLE[:-1]),
        ("safetensors-incomplete", WHOLE + b"\0"),
        ("safetensors-header-large", LFS),
        ("safetensors-header-large", PAGE),
        ("zero-filled", b"\0" * 200),
        ("safetensors-tensor", WHOLE.replace(b"[4]", b"[5]")),
        ("safetensors-header-json", WHOLE.replace(b"F32", b"F99")),
    ],
)
def test_what_safetensors_prints_today(tmp_path: Path, name: str, data: bytes) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(Exception) as caught, safetensors.safe_open(str(path), "np") as opened:
        opened.keys()
    assert name_of(f"{type(caught.value).__name__}: {caught.value}") == name


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("empty-file", "empty"),
        ("zip-cut", "half of a large one"),
        ("zip-cut", "half of a small one"),
        ("zero-filled", "zeros"),
        ("git-lfs-pointer", "pointer"),
        ("web-page", "page"),
        ("server-message", "json"),
        ("compressed", "gzip"),
        ("legacy-cut", "legacy"),
        ("weights-only-numpy", "numpy"),
    ],
)
@pytest.mark.parametrize("weights_only", [True, False])
def test_what_torch_prints_today(tmp_path: Path, name: str, how: str, weights_only: bool) -> None:
    torch = pytest.importorskip("torch")
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "optimizer.pt"
    legacy = how == "legacy"
    size = 40_000 if how == "half of a large one" else 40
    value = {"a": numpy.zeros(3)} if how == "numpy" else {"a": torch.zeros(size)}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    if how == "numpy" and not weights_only:
        pytest.skip("loads")
    path.write_bytes(
        {
            "empty": b"",
            "zeros": b"\0" * 200,
            "pointer": LFS,
            "page": PAGE,
            "json": b'{"error": "not found"}',
            "gzip": gzip.compress(whole),
            "legacy": whole[:-100],
            "numpy": whole,
        }.get(how, whole[: len(whole) // 2])
    )
    with pytest.raises(Exception) as caught:
        torch.load(path, weights_only=weights_only)
    assert name_of(f"{type(caught.value).__name__}: {caught.value}") == name


def test_what_torch_prints_for_parameter_groups() -> None:
    torch = pytest.importorskip("torch")
    one, two = (torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))
    saved = torch.optim.AdamW(one.parameters()).state_dict()
    with pytest.raises(ValueError) as caught:
        torch.optim.AdamW(two.parameters()).load_state_dict(saved)
    assert name_of(str(caught.value)) == "optimizer-groups"
    with pytest.raises(RuntimeError) as mismatch:
        torch.nn.Linear(2, 3).load_state_dict(one.state_dict())
    assert name_of(str(mismatch.value)) == "size-mismatch"
