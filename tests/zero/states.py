"""DeepSpeed's files, changed as a hand or a mixed copy changes them; its classes are stood in for without it."""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.rules.damage import Damage

MODEL = "mp_rank_00_model_states.pt"


def optimizer(dp: int, mp: int = 0, prefix: str = "") -> str:
    return f"{prefix}zero_pp_rank_{dp}_mp_rank_{mp:02d}_optim_states.pt"


def model(dp: int) -> str:
    """The name of the model states of a rank in stage 3."""
    return f"zero_pp_rank_{dp}_mp_rank_00_model_states.pt"


class _Plain:
    """Whatever a pickle sets."""


def _stand_in(module: str, name: str) -> type:
    made = (
        enum.IntEnum(name, {f"stage_{n}": n for n in range(4)})
        if name == "ZeroStageEnum"
        else type(name, (_Plain,), {})
    )
    made.__module__, made.__qualname__ = module, name
    return made


@contextmanager
def deepspeed_classes() -> Iterator[None]:
    """Make the classes that DeepSpeed's pickles name importable, the real ones where they are."""
    names = (
        ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
        ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
        ("deepspeed.utils.tensor_fragment", "fragment_address"),
    )
    added: list[str] = []
    if "deepspeed" not in sys.modules:
        for module, name in names:
            pieces = module.split(".")
            for end in range(1, len(pieces) + 1):
                path = ".".join(pieces[:end])
                if path not in sys.modules:
                    sys.modules[path] = types.ModuleType(path)
                    added.append(path)
            setattr(sys.modules[module], name, _stand_in(module, name))
    try:
        yield
    finally:
        for path in added:
            del sys.modules[path]


def changed(name: str, edit: Callable[[Any], object]) -> Damage:
    """Load a file of the directory, let ``edit`` change what is in it, and save it again."""
    torch = pytest.importorskip("torch")

    def done(directory: Path) -> None:
        with deepspeed_classes():
            value = torch.load(directory / name, weights_only=False)
            edit(value)
            torch.save(value, directory / name)

    return done


def inner(edit: Callable[[dict[str, Any]], object]) -> Callable[[Any], object]:
    """Change the states below ``optimizer_state_dict``."""
    return lambda value: edit(value["optimizer_state_dict"])


def base(edit: Callable[[dict[str, Any]], object]) -> Callable[[Any], object]:
    """Change the inner optimizer's ``state_dict``, at whichever stage."""

    def done(value: Any) -> None:
        state = value["optimizer_state_dict"]
        edit(state["base_optimizer_state"] if "base_optimizer_state" in state else state["optimizer_state_dict"])

    return done


def values(**entries: Any) -> Callable[[Any], object]:
    return lambda value: value.update(entries)


def stepped(number: float) -> Callable[[Any], object]:
    return base(lambda state: [entry["step"].fill_(number) for entry in state["state"].values()])


def shortened(state: dict[str, Any]) -> None:
    """Take one element from the first flat vector."""
    key = "fp32_flat_groups" if "fp32_flat_groups" in state else "single_partition_of_fp32_groups"
    state[key][0] = state[key][0][:-1].clone()


def streamed(*names: str) -> Damage:
    """Save files again as writers do that open them themselves: no archive has the name of its file then."""
    torch = pytest.importorskip("torch")

    def done(directory: Path) -> None:
        for name in names:
            with deepspeed_classes():
                value = torch.load(directory / name, weights_only=False)
                with (directory / name).open("wb") as file:
                    torch.save(value, file)

    return done


def other(step: str, name: str, target: str | None = None) -> Damage:
    """Take a file from another tag of the run."""
    return lambda directory: (
        (directory / (target or name)).write_bytes((directory.parent / step / name).read_bytes()) and None
    )
