"""Damages to checkpoints of TensorFlow, JAX and the libraries around PyTorch, with what each of them has to give.

Only the standard library is imported: the same table was run through TensorFlow, Orbax, Flax and Keras themselves.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

from tests.rules.damage import Damage, cut, inside, together, with_copy, with_file, without

TF, ORBAX, ZARR = "tensorflow/manager", "orbax/manager", "orbax/zarr"
READY, BROKEN, RESUME = ("ready", "ready"), ("broken", "broken"), ("broken", "ready")


class Case(NamedTuple):
    """A damage to a fixture; ``checkpoint`` is the one that ``verdicts`` are about, ``loads`` what its library does."""

    name: str
    fixture: str
    damage: Damage
    codes: set[str]
    checkpoint: str
    verdicts: tuple[str, str]
    loads: bool | None
    deep: bool = False


def flipped(name: str, place: float) -> Damage:
    """Change one bit at a share of a file."""

    def damage(directory: Path) -> None:
        (path,) = directory.glob(name)
        data = bytearray(path.read_bytes())
        data[int(len(data) * place)] ^= 0x10
        path.write_bytes(data)

    return damage


def zeroed(name: str) -> Damage:
    return lambda directory: (directory / name).write_bytes(bytes((directory / name).stat().st_size)) and None


def cut_all(pattern: str, fraction: float = 0.5) -> Damage:
    def damage(directory: Path) -> None:
        found = list(directory.glob(pattern))
        assert found
        for path in found:
            cut(path.relative_to(directory).as_posix(), fraction)(directory)

    return damage


def appended(name: str, data: bytes = b"more") -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).write_bytes((directory / name).read_bytes() + data)

    return damage


def without_member(name: str, member: str) -> Damage:
    """Write a zip again without one of its members."""

    def damage(directory: Path) -> None:
        with zipfile.ZipFile(directory / name) as archive:
            held = {each.filename: archive.read(each) for each in archive.infolist() if each.filename != member}
        with zipfile.ZipFile(directory / name, "w") as archive:
            for each, data in held.items():
                archive.writestr(each, data)

    return damage


def uncommitted(directory: Path) -> None:
    """Set the time of the commit to null, as it is while a save goes on."""
    path = directory / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit_timestamp_nsecs": None}))


def pointing_at(name: str, text: str) -> Damage:
    return lambda directory: (directory / name).write_text(text) and None


NEWEST, DATA, INDEX = "ckpt-3", "ckpt-3.data-00000-of-00001", "ckpt-3.index"

TENSORFLOW = (
    Case("index lost", TF, without(INDEX), {"CK132", "CK171"}, NEWEST, BROKEN, False),
    Case("index cut", TF, cut(INDEX), {"CK134", "CK203"}, NEWEST, BROKEN, False),
    Case("index without its footer", TF, cut(INDEX, 0.97), {"CK134", "CK203"}, NEWEST, BROKEN, False),
    Case("index flipped", TF, flipped(INDEX, 0.3), {"CK134", "CK270"}, NEWEST, BROKEN, False),
    Case("index flipped near its end", TF, flipped(INDEX, 0.945), {"CK134", "CK270"}, NEWEST, BROKEN, False),
    Case("shard lost", TF, without(DATA), {"CK134", "CK170"}, NEWEST, BROKEN, False),
    Case("shard cut", TF, cut(DATA), {"CK134", "CK203"}, NEWEST, BROKEN, False),
    Case("shard empty", TF, cut(DATA, 0), {"CK134", "CK203"}, NEWEST, BROKEN, False),
    Case("shard longer", TF, appended(DATA), {"CK271"}, NEWEST, READY, True),
    Case("shard flipped", TF, flipped(DATA, 0.1), {"CK134", "CK401"}, NEWEST, BROKEN, False, deep=True),
    Case("graph of objects flipped", TF, flipped(DATA, 0.5), {"CK134", "CK401"}, NEWEST, BROKEN, False, deep=True),
    Case("length of a text flipped", TF, flipped(DATA, 0.255), {"CK134", "CK401"}, NEWEST, BROKEN, False, deep=True),
    Case("pointer lost", TF, without("checkpoint"), {"CK130"}, NEWEST, READY, True),
    Case(
        "pointer behind",
        TF,
        pointing_at("checkpoint", 'model_checkpoint_path: "ckpt-2"\n'),
        {"CK133"},
        NEWEST,
        READY,
        True,
    ),
    Case("directory of a save", TF, with_file("ckpt-4_temp/part-00000-of-00001.index"), {"CK172"}, NEWEST, READY, True),
    Case("pointer of a save", TF, with_file("checkpoint.tmp0f1e2d"), {"CK172"}, NEWEST, READY, True),
    Case(
        "pointer to none",
        TF,
        pointing_at("checkpoint", 'model_checkpoint_path: "ckpt-9"\n'),
        {"CK132"},
        NEWEST,
        READY,
        True,
    ),
)

ORBAX_CASES = (
    Case("item lost", ORBAX, inside("10", without("state")), {"CK173"}, "10", BROKEN, False),
    Case("tree lost", ORBAX, inside("10/state", without("_METADATA")), {"CK174"}, "10", BROKEN, False),
    Case("manifest lost", ORBAX, inside("10/state", without("manifest.ocdbt")), {"CK174"}, "10", BROKEN, False),
    Case("manifest cut", ORBAX, inside("10/state", cut("manifest.ocdbt")), {"CK203"}, "10", BROKEN, False),
    Case("manifest flipped", ORBAX, inside("10/state", flipped("manifest.ocdbt", 0.6)), {"CK272"}, "10", BROKEN, False),
    Case("data lost", ORBAX, inside("10/state", without("d/*")), {"CK174"}, "10", BROKEN, False),
    Case("data cut", ORBAX, inside("10/state", cut_all("d/*")), {"CK203"}, "10", BROKEN, False),
    Case("data flipped", ORBAX, inside("10/state", flipped("d/*", 0.5)), {"CK401"}, "10", BROKEN, False, deep=True),
    Case(
        "data of a process cut",
        ORBAX,
        inside("10/state", cut_all("ocdbt.process_0/d/*")),
        {"CK203"},
        "10",
        READY,
        True,
    ),
    Case("JSON item lost", ORBAX, inside("10", without("meta/metadata")), {"CK174"}, "10", BROKEN, False),
    Case("not committed", ORBAX, inside("10", uncommitted), {"CK175"}, "10", READY, True),
    Case("no root file", ORBAX, inside("10", without("_CHECKPOINT_METADATA")), {"CK175"}, "10", READY, True),
    Case(
        "save in its temporary place",
        ORBAX,
        together(with_copy("10", "12.orbax-checkpoint-tmp"), without("12.orbax-checkpoint-tmp/commit_success.txt")),
        {"CK172"},
        "10",
        READY,
        True,
    ),
    Case("item in its temporary place", ORBAX, inside("10", with_copy("state", "more.orbax-checkpoint-tmp")),
         {"CK176"}, "10", READY, True),
    Case("chunk cut", ZARR, cut("dense.kernel/0.0"), {"CK203"}, ".", BROKEN, False),
    Case("chunk without its last byte", ZARR, cut("dense.kernel/0.0", 0.999), {"CK203"}, ".", BROKEN, False),
    Case("chunk longer", ZARR, appended("dense.kernel/0.0"), {"CK276"}, ".", BROKEN, False),
    Case("chunk zeroed", ZARR, zeroed("dense.kernel/0.0"), {"CK276"}, ".", BROKEN, False),
    Case("chunk of another array", ZARR, with_copy("head.kernel/0.0", "dense.kernel/0.0"), {"CK276"}, ".", BROKEN,
         False),
    Case("chunk lost", ZARR, without("dense.kernel/0.0"), {"CK174"}, ".", BROKEN, False),
    Case("array lost", ZARR, without("dense.kernel"), {"CK174"}, ".", BROKEN, False),
    Case("description lost", ZARR, without("head.bias/.zarray"), {"CK174"}, ".", BROKEN, False),
)  # fmt: skip

FLAX_AND_KERAS = (
    Case("msgpack cut", "flax/legacy", cut("checkpoint_4"), {"CK203"}, "checkpoint_4", BROKEN, False),
    Case("msgpack longer", "flax/legacy", appended("checkpoint_4"), {"CK273"}, "checkpoint_4", BROKEN, False),
    Case("msgpack flipped", "flax/legacy", flipped("checkpoint_4", 0.0443), {"CK273"}, "checkpoint_4", BROKEN, False),
    Case("weights cut", "keras", cut("model.weights.h5"), {"CK203"}, "model.weights.h5", BROKEN, False),
    Case("old file cut", "keras", cut("legacy.h5", 0.99), {"CK203"}, "legacy.h5", BROKEN, False),
    Case("archive cut", "keras", cut("model.keras"), {"CK203"}, "model.keras", BROKEN, False),
    Case("archive flipped", "keras", flipped("model.keras", 0.5), {"CK401"}, "model.keras", BROKEN, False, deep=True),
    Case(
        "archive without weights",
        "keras",
        without_member("model.keras", "model.weights.h5"),
        {"CK275"},
        "model.keras",
        BROKEN,
        False,
    ),
)

LIBRARIES = (
    Case("timm killed", "timm", with_file("tmp.pth.tar"), {"CK172"}, "last.pth.tar", READY, None),
    Case("pointer to none", "mmengine", without("epoch_3.pth"), {"CK132"}, "epoch_2.pth", READY, None),
    Case("pointer empty", "mmengine", cut("last_checkpoint", 0), {"CK131"}, "epoch_3.pth", READY, None),
    Case("pointer to none", "detectron2", without("model_final.pth"), {"CK132"}, "model_0000005.pth", READY, None),
    Case("pointer lost", "detectron2", together(without("last_checkpoint"), with_file("metrics.json")), {"CK130"},
         "model_final.pth", READY, None),
    Case("newest cut", "mmengine", cut("epoch_3.pth"), {"CK134", "CK203"}, "epoch_3.pth", BROKEN, None),
    Case("metadata lost", "torchtitan", inside("checkpoint/step-4", without(".metadata")), {"CK101"},
         "checkpoint/step-4", BROKEN, None),
    Case("last file lost", "olmo-core", inside("step4", without(".metadata.json")), {"CK101"}, "step4", RESUME, None),
    Case("save in its temporary place", "olmo-core", with_copy("step4", "step6-tmp"), {"CK172"}, "step4", READY, None),
)  # fmt: skip

CASES = (*TENSORFLOW, *ORBAX_CASES, *FLAX_AND_KERAS, *LIBRARIES)
