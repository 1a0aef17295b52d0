"""From the fixes that findings offer to plans: the table of the kinds, and fixes that no rule can offer itself.

Rules look at one checkpoint and never write.  Whether a fix can be made, and out of what, is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ckpt_tools.edits import (
    repair_crc,
    repair_files,
    repair_index,
    repair_names,
    repair_pickles,
    repair_state,
    repair_steps,
    repair_trackers,
    repair_zip,
)
from ckpt_tools.edits.repair_base import CannotRepairError, Draft, Planner, Subject
from ckpt_tools.edits.repair_files import INVARIANT, siblings_disagree
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import Finding, Fix, Severity

PLANNERS: Mapping[str, Planner] = {
    "rebuild-zip-directory": repair_zip.rebuild_directory,
    "refresh-checksums": repair_crc.refresh,
    "cut-trailing": repair_files.cut_trailing,
    "copy-beside": repair_files.copy_beside,
    "strip-prefixes": repair_names.strip_prefixes,
    "rename-adapter-tensors": repair_names.rename_adapter,
    "restore-state": repair_state.restore,
    "rebuild-index": repair_index.rebuild,
    "set-aside": repair_files.set_aside,
    "replace-numpy-scalar": repair_pickles.replace_numpy,
    "align-step": repair_steps.align,
    "portable-rng": repair_pickles.portable_rng,
    "set-best": repair_state.set_value,
    "name-for-step": repair_steps.rename,
    "restore-name": repair_files.restore_name,
    "promote-metadata": repair_trackers.promote,
    "rewrite-tracker": repair_trackers.rewrite,
    "quarantine": repair_files.quarantine,
}
"""The kinds of fixes, in the order in which they are made: later ones may need what earlier ones gave back."""

_DAMAGE = ("CK2",)
_CHECKSUMS = ("record-checksum-mismatch", "sealed-file-changed")
_COUNTERS = ("step-mismatch", "scheduler-step-mismatch", "optimizer-step-mismatch", "parts-of-different-steps")


def plan(fix: Fix, subject: Subject) -> Draft:
    """Return what a fix comes to on what is there now.

    Raises:
        CannotRepairError: it cannot be made; the reason says why.
    """
    planner = PLANNERS.get(fix.kind)
    if planner is None:
        raise CannotRepairError(f"this version has no repair of the kind {fix.kind!r}")
    return planner(fix, subject)


def rank(fix: Fix) -> int:
    """Return the place of a fix in the order of making."""
    kinds = list(PLANNERS)
    return kinds.index(fix.kind) if fix.kind in PLANNERS else len(kinds)


def offer(finding: Finding, subject: Subject) -> Fix | None:
    """Return the fix of a finding: the one that its rule offers, or one that needs more than a rule may look at."""
    part = _part(finding, subject)
    fix = finding.fix if finding.fix is not None else _own(finding, part, subject)
    if fix is None:
        return None
    if part is not None and fix.kind == "replace-numpy-scalar":
        return replace(fix, params={**fix.params, "path": part.path})
    if fix.kind == "strip-prefixes" and finding.severity is Severity.NOTE:
        return replace(fix, safe=False)  # the wrapped model is loaded into: the names may belong there
    if fix.kind == "copy-beside" and siblings_disagree(subject, str(fix.params["name"])):
        return replace(fix, title="take that of the nearest checkpoint; they are not the same in all", safe=False)
    return fix


def _own(finding: Finding, part: Part | None, subject: Subject) -> Fix | None:
    """Return a fix that the finding's rule could not offer: it takes a look at other files or checkpoints."""
    if finding.name == "rng-needs-allow-list":
        return Fix("write it so that every version can load it", True, "portable-rng")
    if finding.name in _CHECKSUMS and part is not None and repair_crc.doubtful(subject, part.path):
        title = "write the checksums again that the manifest proves"
        return Fix(title, True, "refresh-checksums", {"path": part.path})
    damaged = finding.code.startswith(_DAMAGE) and finding.severity >= Severity.WARNING
    if part is not None and damaged and _lost_directory(finding, part, subject):
        title = "make the zip directory again from the records, in a new file"
        return Fix(title, True, "rebuild-zip-directory", {"path": part.path})
    if part is not None and damaged:
        if part.role is Role.INDEX:
            title = "write the index again from the headers of the shards"
            return Fix(title, True, "rebuild-index", {"path": part.path})
        if part.role in INVARIANT:
            return Fix("take it from another checkpoint of the run", True, "copy-beside", {"name": part.path})
        if part.role is Role.TRAINER_STATE:
            return Fix("write it again from the state of a later checkpoint", False, "restore-state")
    if finding.name == "best-model-missing":
        params = {"path": "trainer_state.json", "key": "best_model_checkpoint", "value": None}
        return Fix("clear best_model_checkpoint", False, "set-best", params)
    if finding.name in _COUNTERS and finding.severity >= Severity.WARNING:
        return repair_steps.fix_of(subject)
    trainer = subject.checkpoint is not None and subject.checkpoint.layout == "hf-trainer"
    if finding.name == "save-interrupted" and trainer:
        return Fix("write trainer_state.json from the state of a later checkpoint", False, "restore-state")
    return repair_trackers.offer(finding, subject)


def _part(finding: Finding, subject: Subject) -> Part | None:
    checkpoint = subject.checkpoint
    if checkpoint is None:
        return None
    return next((part for part in checkpoint.parts if checkpoint.place(part.path) == finding.path), None)


def _lost_directory(finding: Finding, part: Part, subject: Subject) -> bool:
    content = subject.view.content(part) if subject.view is not None else None
    return (
        content is not None
        and content.container in ("torch-zip", "zip")
        and finding.name in ("file-cut-short", "zip-damaged")
        and part.role not in INVARIANT
    )
