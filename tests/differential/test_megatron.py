"""Megatron-Core's own loading of the common state against the verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.model.findings import Purpose, Verdict
from tests.rules import damage
from tests.rules.damage import Damage

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

ITER = "iter_0000003"

CASES: list[tuple[str, Damage, bool]] = [
    ("as it was written", lambda path: None, True),
    ("metadata.json lost", damage.without("metadata.json"), False),
    ("common.pt lost", damage.without("common.pt"), False),
    ("common.pt cut", damage.cut("common.pt"), False),
    (".metadata lost", damage.without(".metadata"), False),
]


def loaded(path: Path) -> Any:
    """Return the common state and the names of all tensors, as Megatron-Core reads them."""
    pytest.importorskip("megatron.core")
    from megatron.core import dist_checkpointing

    return dist_checkpointing.load_common_state_dict(str(path)), dist_checkpointing.load_tensors_metadata(str(path))


@pytest.mark.parametrize(("done", "loads"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_megatron_refuses_is_broken(done: Damage, loads: bool, copy_of: Callable[..., Path]) -> None:
    pytest.importorskip("megatron.core")
    path = copy_of("megatron/torch-dist") / ITER
    done(path)
    report = ckpt_tools.verify(str(path), settle=0)
    try:
        found = loaded(path)
    except Exception:  # noqa: BLE001 - whatever it says, it refused
        found = None
    assert (found is not None) == loads
    assert (report.checkpoints[0].verdicts[Purpose.RESUME] is Verdict.READY) == loads


def test_names_and_iteration_are_those_that_megatron_reads(copy_of: Callable[..., Path]) -> None:
    pytest.importorskip("megatron.core")
    from ckpt_tools.layouts.match import open_run
    from ckpt_tools.layouts.view import View

    path = copy_of("megatron/torch-dist") / ITER
    common, tensors = loaded(path)
    view = View(open_run(path).checkpoints[0])
    assert view.step == common["iteration"]
    ours = {**view.assemblies[0].weights, **view.assemblies[0].tensors}
    assert {name: ref.shape for name, ref in ours.items()} == {name: t.global_shape for name, t in tensors.items()}
