"""CK701 to CK706: globals of pickles, paths and names that lead elsewhere, resource bombs."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.model.findings import Severity
from ckpt_tools.rules import safety
from tests.rules import damage
from tests.rules.damage import with_file
from tests.rules.damage_values import (
    BROKEN,
    FULL,
    OPTIMIZER,
    READY,
    RESUME_BROKEN,
    RESUME_DEGRADED,
    RNG,
    SCHEDULER,
    Case,
    calling,
    check,
    hostile,
    in_torch,
    torch_zip,
    values,
)
from tests.rules.judge import codes, finding, judge

ARGS, BIN, ACCELERATE = "training_args.bin", "trainer4-bin/checkpoint-4", "accelerate/bin"
OLD, LAST = "trainer431-bin/checkpoint-4", "plain/odd/last.ckpt"


def numpy_array(value: Any) -> None:
    value["extra"] = pytest.importorskip("numpy").zeros(3)


def a_path(value: Any) -> None:
    value["extra"] = Path("/")


def unpacked_elsewhere(directory: Path) -> None:
    """Give the optimizer's file a record that unpacking would write beside the directory."""
    with zipfile.ZipFile(directory / OPTIMIZER, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("../../evil.py", b"x")


def unfolding(name: str) -> damage.Damage:
    """Some hundred bytes in which a list holds the one before it twice, sixty times over."""
    steps = b"".join(b"(h" + bytes([at]) + b"h" + bytes([at]) + b"lq" + bytes([at + 1]) for at in range(60))
    return hostile(name, b"\x80\x02]q\x00" + steps + b".")


CASES = [
    Case("nothing", FULL, damage.nothing, set(), READY),
    Case("an array in the optimizer", FULL, in_torch(OPTIMIZER, numpy_array), {"CK701"}, RESUME_BROKEN),
    Case("a path in the schedule", FULL, in_torch(SCHEDULER, a_path), {"CK701"}, RESUME_BROKEN),
    Case("a path in the random state", FULL, in_torch(RNG, a_path), {"CK701"}, RESUME_BROKEN),
    Case("protocol 4", FULL, in_torch(OPTIMIZER, lambda value: None, pickle_protocol=4), {"CK701"}, RESUME_BROKEN),
    Case("a path in the weights", BIN, in_torch("pytorch_model.bin", a_path), {"CK701"}, BROKEN),
    Case("an array in accelerate's optimizer", ACCELERATE, in_torch("optimizer.bin", numpy_array), set(), READY),
    Case("a path in accelerate's optimizer", ACCELERATE, in_torch("optimizer.bin", a_path), {"CK701"}, RESUME_BROKEN),
    Case(
        "a path in accelerate's random state",
        ACCELERATE,
        in_torch("random_states_0.pkl", a_path),
        {"CK701"},
        RESUME_DEGRADED,
    ),
    Case("numpy 1's random state", OLD, damage.nothing, set(), READY, frozenset({"CK703"})),
    Case(
        "numpy 2's random state of old",
        FULL,
        damage.with_json("config.json", transformers_version="4.46.3"),
        set(),
        READY,
        frozenset({"CK703"}),
    ),
    Case("a command in the optimizer", FULL, hostile(OPTIMIZER, calling("os", "system")), {"CK518", "CK705"}, BROKEN),
    Case("a command in the arguments", FULL, hostile(ARGS, calling("posix", "system")), {"CK705"}, BROKEN),
    Case("a command of Python 2", FULL, hostile(ARGS, calling("__builtin__", "eval")), {"CK705"}, BROKEN),
    Case("getattr in the arguments", FULL, hostile(ARGS, calling("__builtin__", "getattr")), set(), READY),
    Case(
        "an import in the random state",
        FULL,
        hostile(RNG, calling("importlib", "import_module")),
        {"CK541", "CK705"},
        BROKEN,
    ),
    Case("a name that leads out", FULL, unpacked_elsewhere, {"CK704"}, RESUME_BROKEN),
    Case("a bomb in the optimizer", FULL, unfolding(OPTIMIZER), {"CK706"}, RESUME_BROKEN),
    Case("a bomb in the state", FULL, with_file("trainer_state.json", b"[" * 40_000_000), {"CK706"}, RESUME_BROKEN),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_file_could_do(case: Case, copy_of: Callable[..., Path]) -> None:
    check(case, copy_of)


def test_nothing_is_run_or_imported(tmp_path: Path) -> None:
    torch_zip(tmp_path / "model.pt", calling("subprocess", "getoutput", f"touch {tmp_path}/ran"))
    torch_zip(tmp_path / "other.pt", calling("antigravity_of_mine", "fly"))
    found = {told.code for told in judge(tmp_path, families=("CK7",)).all_findings()}
    assert found == {"CK701", "CK705"}
    assert not (tmp_path / "ran").exists()
    assert "antigravity_of_mine" not in sys.modules


def test_a_plain_file_with_objects_is_a_note(fixtures_dir: Path) -> None:
    told = finding(judge(fixtures_dir / LAST, families=("CK7",)), "CK701")
    assert told.severity is Severity.NOTE
    assert told.impact.harmless
    assert told.message == "names 4 objects that a safe load refuses"


@pytest.mark.parametrize(
    ("fixture", "told"), [("timm", []), ("ultralytics/weights", []), ("mmengine", ["epoch_3.pth"])]
)
def test_what_a_library_loads_itself_is_told_once_at_most(
    fixture: str, told: list[str], copy_of: Callable[..., Path]
) -> None:
    home = copy_of(fixture)
    notes = judge(home, families=("CK7",)).all_findings()
    assert [(note.code, note.path) for note in notes] == [("CK701", path) for path in told]
    victim = next(path for path in sorted(home.iterdir()) if path.suffix in (".pth", ".pt", ".tar"))
    torch_zip(victim, calling("os", "system", "true"))
    found = [each for each in judge(home, families=("CK7",)).all_findings() if each.path == victim.name]
    assert [each.code for each in found] == ["CK705"]


@pytest.mark.parametrize(("module", "told"), [("torchao.optim", set()), ("mine.optim", {"CK701"})])
def test_libraries_that_allow_their_own_classes(module: str, told: set[str], copy_of: Callable[..., Path]) -> None:
    directory = copy_of("trainer5-full") / "checkpoint-4"
    hostile(OPTIMIZER, calling(module, "OptimState8bit"))(directory)
    assert codes(judge(directory, families=("CK7",))) == told


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arguments_are_left_alone(protocol: int, copy_of: Callable[..., Path]) -> None:
    directory = copy_of("trainer5-full") / "checkpoint-4"
    in_torch(OPTIMIZER, values(), pickle_protocol=protocol)(directory)
    (directory / OPTIMIZER).replace(directory / ARGS)
    (directory / OPTIMIZER).write_bytes((directory.parent / "checkpoint-2" / OPTIMIZER).read_bytes())
    assert not codes(judge(directory, families=("CK7",)))


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "nt.system",
        "subprocess.Popen",
        "builtins.exec",
        "builtins.__import__",
        "runpy.run_path",
        "importlib.import_module",
        "shutil.rmtree",
        "socket.create_connection",
        "ctypes.CDLL",
        "sys.modules",
        "pty.spawn",
        "torch.hub.load",
        "torch.serialization.load",
        "pickle.loads",
        "types.CodeType",
        "operator.methodcaller",
        "webbrowser.open",
        "code.interact",
        "multiprocessing.util.spawnv_passfds",
    ],
)
def test_dangerous_names(name: str) -> None:
    assert safety._is_dangerous(name)


@pytest.mark.parametrize(
    "name",
    [
        *("builtins.getattr", "builtins.set", "builtins.slice", "_codecs.encode", "collections.OrderedDict"),
        *("numpy._core.multiarray._reconstruct", "numpy.core.multiarray.scalar", "numpy.dtype", "numpy.ndarray"),
        *("pathlib.PosixPath", "argparse.Namespace", "types.SimpleNamespace", "enum.Enum", "functools.partial"),
        *(
            "transformers.training_args.OptimizerNames",
            "accelerate.state.PartialState",
            "torch.device",
            "code.model.Args",
        ),
        *(
            "osgeo.Thing",
            "system.Config",
            "posixpath.join",
            "omegaconf.dictconfig.DictConfig",
            "_io.BytesIO",
            "sysconf.X",
        ),
    ],
)
def test_ordinary_names(name: str) -> None:
    assert not safety._is_dangerous(name)


def test_the_allow_list_is_torchs_own() -> None:
    unpickler = pytest.importorskip("torch._weights_only_unpickler")
    today = set(unpickler._get_allowed_globals())
    assert today - safety.ALLOWED == set(), "a newer torch: add its names"
    assert safety.ALLOWED - today == set()
