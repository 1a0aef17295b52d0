"""A callback for the Hugging Face Trainer that seals and verifies every checkpoint as soon as it is saved.

trainer = Trainer(..., callbacks=[SealCallback()])
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ckpt_tools.core.errors import CkptError
from ckpt_tools.model.findings import Severity
from ckpt_tools.model.manifest import SealedData
from ckpt_tools.ops.seal import seal
from ckpt_tools.ops.sealed_data import sealed
from ckpt_tools.ops.verify import verify

_LOG = logging.getLogger(__name__)
_SHOWN = 3


class UnsoundCheckpointError(CkptError):
    """A checkpoint was saved and is not sound; raised with ``strict=True``."""


class SealCallback(TrainerCallback):
    """Reads each checkpoint back right after it was saved, judges it, and writes its manifest.

    Only the process of rank 0 reads; with several processes the others wait for its answer, so that no file is
    sealed while another rank writes it.  A training is never broken by this: trouble is a warning in the log of
    ``ckpt_tools.integrations.transformers``, faults of this tool included.

    Args:
        strict: raise ``UnsoundCheckpointError`` on every rank when a checkpoint has errors or could not be sealed.
        env: also note the environment in the manifest.
        data: files and directories of training data whose digests are noted too, read once, at the first save.
        jobs: threads that read; as many as processors when None.
    """

    def __init__(
        self, *, strict: bool = False, env: bool = True, data: Sequence[str] = (), jobs: int | None = None
    ) -> None:
        self.strict = strict
        self.env = env
        self.data: tuple[str | SealedData, ...] = tuple(data)
        self.jobs = jobs
        self.trouble: list[str] = []

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal ``checkpoint-<step>``; called by the Trainer on every rank after it was written."""
        together = args.world_size > 1
        if together:
            args.distributed_state.wait_for_everyone()
        trouble = self._sealed(args, state) if state.is_world_process_zero else None
        if together and self.strict:
            from accelerate.utils import broadcast_object_list

            trouble = broadcast_object_list([trouble])[0]
        if trouble is None:
            return
        self.trouble.append(trouble)
        if self.strict:
            raise UnsoundCheckpointError(trouble, hint="`ckpt verify --deep` says more")
        _LOG.warning("%s", trouble)

    def _sealed(self, args: TrainingArguments, state: TrainerState) -> str | None:
        """Seal the newest checkpoint, and return what is wrong in one sentence."""
        try:
            path = _saved(args.output_dir or "", state.global_step)
            if path is None:
                return f"checkpoint-{state.global_step} was not found in {args.output_dir}, and not sealed"
            self.data = tuple(sealed(each) if isinstance(each, str) else each for each in self.data)
            report = seal(path, env=self.env, data=self.data, deep=True, settle=0, jobs=self.jobs)
            (made,) = report.checkpoints
            if made.status not in ("sealed", "unchanged"):
                return f"{path} is not sound, and was not sealed: {'; '.join(made.reasons[:_SHOWN])}"
            wrong = [each for each in verify(path, settle=0).all_findings() if each.severity >= Severity.ERROR]
            if wrong:
                return f"{path} was sealed and is not sound: {wrong[0].message} [{wrong[0].code}]"
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here, the training goes on
            return f"checkpoint-{state.global_step} could not be sealed: {type(error).__name__}: {error}"
        return None


def _saved(output: str, step: int) -> str | None:
    """Return the checkpoint of a step; a search for hyperparameters saves in a directory of its own for each trial."""
    name = f"checkpoint-{step}"
    if os.path.isdir(os.path.join(output, name)):
        return os.path.join(output, name)
    from ckpt_tools.core.listing import Kind, scan

    try:
        entries = scan(output, depth=1).files
    except CkptError:
        return None
    trials = [trial for trial, entry in entries.items() if entry.kind is Kind.DIRECTORY and re.match(r"run-", trial)]
    found = [os.path.join(output, trial, name) for trial in trials if os.path.isdir(os.path.join(output, trial, name))]
    return max(found, key=lambda path: _written(output, path), default=None)


def _written(output: str, path: str) -> int:
    from ckpt_tools.core.listing import scan

    return max((entry.mtime_ns for entry in scan(path, depth=1).files.values()), default=0)
