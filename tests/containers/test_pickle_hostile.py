"""Pickles made to hurt, each read in a child process with little memory and little time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.containers import bare_pickle, pickle_stream
from ckpt_tools.containers.base import FormatError
from ckpt_tools.core.source import BytesSource
from tests.containers import hostile

HERE = Path(__file__).resolve().parent
MEMORY = 1 << 30
SECONDS = 60

CHILD = """
import importlib.util, json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
spec = importlib.util.spec_from_file_location("hostile", {path!r})
hostile = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hostile)
from ckpt_tools.containers import bare_pickle
from ckpt_tools.core.source import BytesSource
from ckpt_tools.model.values import children
content = bare_pickle.read(BytesSource(getattr(hostile, sys.argv[1])(), "file"))
visits, work = 0, [content.value]
while work:
    value = work.pop()
    visits += 1
    work.extend(child for _, child in children(value))
print(json.dumps({{
    "readable": content.readable, "globals": dict(content.globals), "visits": visits,
    "kinds": [problem.kind for problem in content.problems],
    "modules": sorted({{"subprocess", "os.path", "torch", "numpy"}} & set(sys.modules) - {{"os.path"}}),
}}))
"""


def _run(name: str, directory: Path) -> dict[str, Any]:
    script = CHILD.format(memory=MEMORY, path=str(HERE / "hostile.py"))
    root = Path(bare_pickle.__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, name],
        cwd=directory,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


HARMLESS = {
    "memo_index",
    "memo_index_text",
    "shared_objects",
    "colliding_keys",
    "long_equal_keys",
    "call_of_calls",
    "long_names",
    "many_names",
}
STRANGE = {"wide_tensor": ["pickle-damaged"], "nested_types": ["pickle-damaged"]}


@pytest.mark.parametrize("name", [function.__name__ for function in hostile.BOMBS])
def test_bombs_are_refused_or_come_out_small(name: str, tmp_path: Path) -> None:
    answer = _run(name, tmp_path)
    assert answer["kinds"] == ([] if name in HARMLESS else STRANGE.get(name, ["resource-bomb"]))
    assert answer["visits"] < 10_000_000
    assert answer["modules"] == []


@pytest.mark.parametrize("name", [function.__name__ for function in hostile.DAMAGED])
def test_damage_is_a_format_error(name: str) -> None:
    data = getattr(hostile, name)()
    with pytest.raises(FormatError) as caught:
        pickle_stream.read(data)
    assert caught.value.problem.kind == "pickle-damaged"
    assert caught.value.problem.detail
    content = bare_pickle.read(BytesSource(data, "file"))
    assert not content.readable
    assert [problem.kind for problem in content.problems] in (["pickle-damaged"], ["file-cut-short"])


def test_an_unknown_protocol() -> None:
    """pickle refuses the number, torch only warns of it: the bare file is damaged, the same in a torch file is not."""
    data = hostile.protocol_9()
    assert pickle_stream.read(data).problems == ()
    assert [problem.kind for problem in bare_pickle.read(BytesSource(data, "file")).problems] == ["pickle-damaged"]


@pytest.mark.parametrize("name", [function.__name__ for function in hostile.INERT])
def test_attacks_are_described_and_nothing_happens(name: str, tmp_path: Path) -> None:
    answer = _run(name, tmp_path)
    assert answer["readable"]
    assert answer["kinds"] == []
    assert answer["visits"] < 100
    assert answer["modules"] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("system_call", {"os.system": 1}),
        ("system_call_inst", {"os.system": 1}),
        ("system_call_obj", {"os.system": 1}),
        ("system_call_stack_global", {"os.system": 1}),
        ("getattr_chain", {"builtins.getattr": 1, "builtins.__import__": 1}),
        ("extension", {"copyreg.extension.1": 1}),
        ("stacked", {"os.system": 1}),
    ],
)
def test_every_global_is_told(name: str, expected: dict[str, int]) -> None:
    content = bare_pickle.read(BytesSource(getattr(hostile, name)(), "file"))
    assert dict(content.globals) == expected


def test_stacked_pickles_are_counted() -> None:
    content = bare_pickle.read(BytesSource(hostile.stacked(), "file"))
    assert content.facts["stacked"] == 3
    assert content.value is None
    assert content.readable
    trailing = bare_pickle.read(BytesSource(b"K\x05.\xff\xff", "file"))
    assert trailing.value == 5
    assert trailing.facts["trailing_bytes"] == 2
