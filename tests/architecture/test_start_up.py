"""What a command imports is what its users wait for: looked at in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.architecture.package import REPOSITORY

HEAVY = frozenset({"torch", "deepdiff", "numpy", "ml_dtypes", "safetensors", "transformers"})
NOT_AT_START = HEAVY | {"tabulate", "tqdm", "importlib.metadata", "subprocess", "multiprocessing", "asyncio"}
RUN = "fixtures/trainer5-full"

PROGRAM = """
import json, sys
before = set(sys.modules)
from ckpt_tools.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(set(sys.modules) - before)]), file=sys.stderr)
"""


def imported(*arguments: str) -> tuple[int, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    code, names = json.loads(done.stderr.splitlines()[-1])
    return code, set(names)


CASES = [
    (["--version"], NOT_AT_START | {"click"}),
    (["--help"], NOT_AT_START),
    (["latest", RUN], NOT_AT_START),
    (["verify", RUN], HEAVY),
    (["verify", "--format", "json", RUN], NOT_AT_START),
    (["verify", "--select", "CK2", RUN], HEAVY),
    (["info", RUN], HEAVY),
    (["info", "--tensors", f"{RUN}/checkpoint-2/optimizer.pt"], HEAVY),
    (["history", RUN], HEAVY | {"matplotlib"}),
    (["explain", "CK203"], HEAVY),
    (["set-lr", "-n", "--format", "json", f"{RUN}/checkpoint-4", "1e-3"], NOT_AT_START),
    (["set-step", "-n", "--format", "json", f"{RUN}/checkpoint-4", "3"], NOT_AT_START),
]


@pytest.mark.parametrize(("arguments", "refused"), CASES, ids=[" ".join(arguments) for arguments, _ in CASES])
def test_a_command_imports_only_what_it_needs(arguments: list[str], refused: frozenset[str]) -> None:
    code, names = imported(*arguments)
    assert code == 0
    assert names & refused == set()


def test_verify_imports_no_rule_for_the_version() -> None:
    _, names = imported("--version")
    assert {name for name in names if name.startswith("ckpt_tools")} == {
        "ckpt_tools",
        "ckpt_tools._version",
        "ckpt_tools.cli",
    }


def test_the_version_has_one_source() -> None:
    from ckpt_tools._version import __version__

    done = subprocess.run([sys.executable, "-m", "ckpt_tools", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ckpt {__version__}\n"
    found = [
        path.name
        for path in (REPOSITORY / "ckpt_tools").rglob("*.py")
        if f'"{__version__}"' in path.read_text(encoding="utf-8")
    ]
    assert found == ["_version.py"]
    assert __version__ not in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").split("[tool.")[0]
