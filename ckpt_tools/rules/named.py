"""CK586 and CK587: files whose names say another step, epoch or expert than what is in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from ckpt_tools.layouts import by_name
from ckpt_tools.layouts.match import is_file
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import Severity
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_COUNTED = {
    "detectron2": "step",
    "mmengine": "step",
    "olmo-core": "step",
    "timm": "epoch",
    "torchtitan": "step",
    "ultralytics": "epoch",
}
_EPOCH = re.compile(r"(?:best_.*_)?epoch_\d+\.pth\Z")
_EXPERT = re.compile(r"(?:.*/)?(?:layer_\d+_)?expert_(\d+)_mp_rank_\d+_model_states\.pt\Z")
_KEY = re.compile(r"(?:.*\.)?deepspeed_experts\.(\d+)\.")


@rule("CK586", "name-count-mismatch", Severity.WARNING, Checkpoint)
def name_count(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The name says another step (or epoch) than what is inside: OLMo-core, torchtitan, detectron2, MMEngine, timm,
    Ultralytics.

    **Why it matters.** The newest is chosen by its name, and training goes on from the step inside. Files of another
    checkpoint that were copied over these look so.

    **How to repair.** Copy the right files again, or give the checkpoint a name that fits.
    """
    quantity = _COUNTED.get(checkpoint.layout)
    path = os.path.basename(os.path.abspath(context.run.root)) if checkpoint.path == "." else checkpoint.path
    name = os.path.basename(path)
    layout = by_name(checkpoint.layout)
    named = layout.number(name) if layout.names(name) else None  # others are names that somebody else gave
    if quantity is None or named is None:
        return
    if checkpoint.layout == "mmengine" and _EPOCH.match(name):
        quantity = "epoch"
    slots = [slot for slot in context.view.slots if slot.quantity == quantity and type(slot.value) is int]
    wrong = next((slot for slot in slots if slot.value != named), None)
    if wrong is not None:
        text = f"it is named for {quantity} {named:,}, and was saved at {wrong.value:,}"
        yield Hit(text, "" if checkpoint.is_file else wrong.part.path)


@rule("CK587", "expert-of-another-name", Severity.WARNING, Checkpoint)
def expert_of_another(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A file with an expert of a mixture holds another expert than its name says.

    **Why it matters.** A rank loads the files of its own experts. It does not find them among the names that it gets,
    and stops, or goes on with experts that were never loaded.

    **How to repair.** Copy the file again from its source.
    """
    for part in checkpoint.of(Role.MODEL_STATES) if not is_file(context.run) else ():
        match = _EXPERT.match(part.path)
        content = context.content(part) if match is not None else None
        if match is None or content is None or not content.readable:
            continue
        held = {int(found[1]) for name in content.tensors if (found := _KEY.match(name))}
        if held and held != {int(match[1])}:
            yield Hit(f"it is named for expert {int(match[1])}, and holds {min(held)}", part.path)


RULES: tuple[Rule, ...] = (
    name_count,
    expert_of_another,
)
