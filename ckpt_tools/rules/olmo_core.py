"""CK149: what OLMo-core keeps beside its model."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.layouts.match import is_file
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import DEGRADES_RESUME, Severity
from ckpt_tools.rules.base import Context, Hit, Rule, rule


@rule("CK149", "olmo-train-state-missing", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def train_state_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`train/rank0.pt` of OLMo-core is missing: the step, the epoch and the place in the data.

    **Why it matters.** OLMo-core loads model and optimizer and begins at step 0, unless `load_trainer_state=True` makes
    it stop: the schedule warms up again and the same data is seen twice.

    **How to repair.** Copy `train/` from the node that rank 0 ran on, or fall back to an older checkpoint
    (`ckpt latest RUN`).

    **Known exceptions.** A rank other than 0 without a file takes that of rank 0. A checkpoint of the model alone.
    """
    if checkpoint.layout != "olmo-core" or is_file(context.run) or Role.CUSTOM in context.view.unwritten:
        return
    trained = any(assembly.optimizer_tensors for assembly in context.view.assemblies)
    if trained and "train/rank0.pt" not in checkpoint.listing.files:
        yield Hit("train/rank0.pt is missing", detail=("OLMo-core begins at step 0, with these weights",))


RULES: tuple[Rule, ...] = (train_state_missing,)
