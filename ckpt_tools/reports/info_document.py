"""The documents of ``ckpt info``, piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpt_tools.model.findings import Purpose
from ckpt_tools.reports.tree import document
from ckpt_tools.reports.verify import finding_document

if TYPE_CHECKING:
    from ckpt_tools.reports.info import (
        Adapter,
        Described,
        Files,
        Model,
        Progress,
        Requirement,
        Schedule,
        Space,
        TensorRow,
        Training,
        Use,
    )


def use(use: Use) -> dict[str, Any]:
    return {
        "resume": use.verdicts[Purpose.RESUME].value,
        "inference": use.verdicts[Purpose.INFERENCE].value,
        "reasons": [finding_document(finding) for finding in use.reasons],
    }


def space(space: Space | None) -> dict[str, Any] | None:
    return None if space is None else {"next_save": space.next_save, "free": space.free, "enough": space.enough}


def tensor(row: TensorRow) -> dict[str, Any]:
    inner: dict[str, Any] = document(row.ref)["$tensor"]
    chunks = {"chunks": len(row.ref.chunks)} if len(row.ref.chunks) > 1 else {}
    return {"name": row.name or row.ref.fqn, "file": row.file, **inner, "shared": row.shared, **chunks}


def described(described: Described) -> dict[str, Any]:
    return {
        "layouts": list(described.layouts),
        "progress": _progress(described.progress),
        "schedule": described.schedule and _schedule(described.schedule),
        "model": _model(described.model),
        "training": _training(described.training),
        "roles": [_files(files) for files in described.files],
        "versions": [_requirement(each) for each in described.versions],
        "notes": list(described.notes),
    }


def _progress(progress: Progress) -> dict[str, Any]:
    loss, metric, best = progress.loss, progress.metric, progress.best
    return {
        "step": progress.step,
        "max_steps": progress.max_steps,
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "learning_rates": list(progress.rates),
        "peak_learning_rates": list(progress.peaks),
        "loss": loss and {"value": loss[0], "step": loss[1]},
        "metric": metric and {"name": metric[0], "value": metric[1], "step": metric[2]},
        "best": best and {"value": best[0], "checkpoint": best[1]},
        "ended": progress.ended,
    }


def _schedule(schedule: Schedule) -> dict[str, Any]:
    return {
        "kind": schedule.kind,
        "named": schedule.named,
        "numbers": dict(schedule.numbers),
        "note": schedule.note,
    }


def _model(model: Model) -> dict[str, Any]:
    return {
        "architecture": model.architecture,
        "parameters": model.parameters,
        "tensors": model.tensors,
        "tied_names": model.tied,
        **({"chunks": model.chunks[0], "chunk_files": model.chunks[1]} if model.chunks else {}),
        "dtypes": dict(model.dtypes),
        "trained_tensors": model.trained,
        "adapters": [_adapter(adapter) for adapter in model.adapters],
    }


def _adapter(adapter: Adapter) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "type": adapter.kind,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "base": adapter.base,
        "parameters": adapter.parameters,
    }


def _training(training: Training) -> dict[str, Any]:
    return {
        "optimizer": training.optimizer,
        "optimizer_named": training.named,
        "batch_per_device": training.batch,
        "accumulation": training.accumulation,
        "world_size": training.world_size,
        "precision": training.precision,
        "warmup": training.warmup,
        **{label.replace(" ", "_"): text for label, text in training.others},
    }


def _files(files: Files) -> dict[str, Any]:
    return {"role": files.role, "files": files.count, "bytes": files.size, "names": list(files.names)}


def _requirement(requirement: Requirement) -> dict[str, Any]:
    return {
        "package": requirement.package,
        "written": requirement.written,
        "needs": requirement.needs,
        "reason": requirement.reason,
        "installed": requirement.installed,
        "fits": requirement.fits,
    }
