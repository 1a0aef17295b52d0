"""Where the numbers of any checkpoint lie, and whose numbers decide nothing.

The states of all kinds of files are those of one training: an optimizer in a distributed checkpoint has its
scheduler, and the trainer's state, in files of their own beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.edits import counters, states, states_dcp, states_zero
from ckpt_tools.edits.outcome import VERIFY
from ckpt_tools.edits.states import Place, State, States
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.values import as_mapping, whole

_DEEPSPEED = "DeepSpeed"
_RANK_FILE = re.compile(r"(optimizer_\d+)_rank\d+\.bin\Z")

_MEGATRON = (
    "Megatron-LM computes the rate of every step from its schedule, so that no number of the optimizer lasts, and stops"
    " where its command line is not what was saved",
    "resume with the new --lr and --min-lr, and with --override-opt_param-scheduler",
)
_LAUNCHED = {
    "megatron": _MEGATRON,
    "megatron-torch": _MEGATRON,
    "nemo": ("the rates of NeMo are in files that are not edited by this version", None),
    "olmo-core": (
        "OLMo-core computes the rate of every step from its configuration, which a load does not change (`initial_lr`"
        " is a fixed field)",
        "resume with the new lr in the configuration of the optimizer",
    ),
}
_MEGATRON_COUNTS = "Megatron-LM counts iterations and samples in several files, which are not edited by this version"
_LIBRARIES = {"orbax": "Orbax", "flax": "Flax", "keras": "Keras", "tensorflow": "TensorFlow"}
"""Whose files are read, and none of them edited."""

_FAIRSEQ_RATES = (
    "fairseq computes the rate of every update from its schedule and the count of updates: no stored rate lasts",
    "resume with the new --lr; under reduce_lr_on_plateau, which goes on from the optimizer, also with"
    " --optimizer-overrides \"{'lr': RATE}\"",
)
_FAIRSEQ_COUNTS = (
    "fairseq counts updates in `optimizer_history`, and where it is in the data in `extra_state.train_iterator`, which"
    " are not edited by this version"
)
_TORCHTUNE_COUNTS = "torchtune counts epochs alone in this file (`epochs_run`), and computes the step from them"
_COUNTED = {
    "megatron": _MEGATRON_COUNTS,
    "megatron-torch": _MEGATRON_COUNTS,
    "nemo": "NeMo counts steps and samples in files that are not edited by this version",
    "olmo-core": "OLMo-core counts steps and tokens in files that are not edited by this version",
}


def find(view: View) -> States:
    """Return the state dicts of a checkpoint.

    Raises:
        EditRefusedError: they are in files that are not edited, or one of these is damaged.
        SourceError: a file could not be read.
    """
    found = states.find(view)
    if view.elsewhere == _DEEPSPEED:
        return states_zero.find(view, found)
    if view.elsewhere is None:
        return found
    chunks = states_dcp.find(view)
    optimizers = (*found.optimizers, *chunks.optimizers, *_of_ranks(view))
    trainer = found.trainer or chunks.trainer
    schedulers = (*found.schedulers, *chunks.schedulers)
    return States(optimizers, schedulers, trainer, chunks.beside, chunks.staying)


def refuse_rates(view: View) -> None:
    """Refuse a checkpoint whose trainer takes no rate from it.

    Raises:
        EditRefusedError: it is one; the hint names the setting that decides.
    """
    _refuse_libraries(view)
    for layout in view.checkpoint.layouts:
        if layout in _LAUNCHED:
            why, hint = _LAUNCHED[layout]
            raise EditRefusedError(why, hint=hint)
    if _is_fairseq(view):
        raise EditRefusedError(_FAIRSEQ_RATES[0], hint=_FAIRSEQ_RATES[1])
    if view.elsewhere == _DEEPSPEED:
        states_zero.refuse_rates(view)


def refuse_steps(view: View) -> None:
    """Refuse a checkpoint whose counters are out of reach.

    Raises:
        EditRefusedError: it is one.
    """
    _refuse_libraries(view)
    for layout in view.checkpoint.layouts:
        if layout in _COUNTED:
            raise EditRefusedError(_COUNTED[layout])
    if _is_fairseq(view):
        raise EditRefusedError(_FAIRSEQ_COUNTS)
    held = view.mapping(Role.COMBINED) or {}
    if counters.is_recipe(held) and whole(held.get("steps_run")) is None:
        raise EditRefusedError(_TORCHTUNE_COUNTS)


def _is_fairseq(view: View) -> bool:
    """Return whether a file is fairseq's, whatever it is called."""
    return {"optimizer_history", "extra_state"} <= set(view.mapping(Role.COMBINED) or ())


def _refuse_libraries(view: View) -> None:
    for layout in view.checkpoint.layouts:
        if layout in _LIBRARIES:
            name = _LIBRARIES[layout]
            hint = f"restore it with {name}, change it and save it"
            raise EditRefusedError(f"what {name} saved is not edited by this version", hint=hint)


def _of_ranks(view: View) -> Iterator[State]:
    """Yield the optimizers of which every rank saved a file of its own, which all say the same of rates and steps."""
    files: dict[str, list[Part]] = {}
    for part in view.checkpoint.of(Role.OPTIMIZER_STATES):
        match = _RANK_FILE.match(part.path)
        if match is not None:
            files.setdefault(match[1], []).append(part)
    saved = {part.rank for part in view.checkpoint.of(Role.MODEL_STATES, Role.RNG)}
    for name, parts in sorted(files.items()):
        ranks = {part.rank for part in parts}
        missing = sorted((saved | set(range(len(parts)))) - ranks - {None}, key=lambda rank: rank or 0)
        if missing:
            raise EditRefusedError(
                f"{name}_rank{missing[0]}.bin is missing; the files of all ranks are changed, or none",
                hint=VERIFY,
            )
        parts.sort(key=lambda part: part.rank or 0)
        content = view.content(parts[0])
        mapping = as_mapping(content.value) if content is not None and content.readable else None
        if mapping is None:
            raise EditRefusedError(f"{parts[0].path}: holds no state dict", hint=VERIFY)
        yield State(mapping, tuple(Place(part) for part in parts))
