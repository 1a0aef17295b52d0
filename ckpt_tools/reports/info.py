"""What ``ckpt info`` found out about a run, a checkpoint, a file, or a part of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_tools.model.findings import Finding, Purpose, Verdict
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.reports import info_document, info_text
from ckpt_tools.reports.base import Block
from ckpt_tools.reports.edit import PastEdit, edit_document
from ckpt_tools.reports.tree import Tree

SCHEMA = "ckpt-tools/info/1"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One package: the version that wrote the checkpoint, the oldest that reads it, and the one installed here.

    ``fits`` is None where one of the two sides is not known.
    """

    package: str
    written: str | None
    needs: str | None
    reason: str
    installed: str | None
    fits: bool | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training is; ``rates`` and ``peaks`` have one entry per parameter group."""

    step: int | None = None
    max_steps: int | None = None
    epoch: float | None = None
    epochs: float | None = None
    rates: tuple[float, ...] = ()
    peaks: tuple[float, ...] = ()
    loss: tuple[float, int] | None = None
    metric: tuple[str, float, int] | None = None
    best: tuple[float, str] | None = None
    ended: str | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """The scheduler's class by its saved keys, the name in the training arguments, and what decides its rate."""

    kind: str | None
    named: str | None
    numbers: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT adapter; ``name`` is empty for the one at the top."""

    name: str
    kind: str
    rank: int | None
    alpha: float | None
    base: str | None
    parameters: int


@dataclass(frozen=True, slots=True)
class Model:
    """Parameters and dtypes of the weights; ``dtypes`` is ``(dtype, parameters)``, the commonest first.

    ``tensors`` counts storages, ``tied`` further names for one that was counted already; ``chunks`` are the pieces of
    those that lie in several, and the files of these.
    """

    architecture: str | None = None
    parameters: int = 0
    tensors: int = 0
    tied: int = 0
    dtypes: tuple[tuple[str, int], ...] = ()
    trained: int | None = None
    adapters: tuple[Adapter, ...] = ()
    chunks: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """What the training arguments and the optimizer's file say."""

    optimizer: str | None = None
    named: str | None = None
    batch: int | None = None
    accumulation: int | None = None
    world_size: int | None = None
    precision: str | None = None
    warmup: str | None = None
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one role: how many, their bytes, and the first names."""

    role: str
    count: int
    size: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Use:
    """What a checkpoint is good for, and the findings that stand in the way."""

    verdicts: Mapping[Purpose, Verdict]
    reasons: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes that the next save of the same shape takes, and bytes that are free where it would go."""

    next_save: int
    free: int | None

    @property
    def enough(self) -> bool:
        return self.free is None or self.free >= self.next_save


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A tensor of the list; ``shared`` names the first tensor of the same storage where this is another view of it.

    ``file`` tells the number of chunks and of files where there are several; ``name`` is what the model calls it.
    """

    ref: TensorRef
    file: str
    shared: str | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tensors:
    """The list that ``--tensors`` asks for; ``total`` counts all tensors, filtered out ones included."""

    rows: tuple[TensorRow, ...]
    total: int
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """What is told of one checkpoint, or of the newest of a run."""

    layouts: tuple[str, ...]
    title: str
    progress: Progress
    schedule: Schedule | None
    model: Model
    training: Training
    files: tuple[Files, ...] = ()
    versions: tuple[Requirement, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunRow:
    """One checkpoint of a run; ``saved`` is local time in ISO form, a hint and nothing more."""

    path: str
    step: int | None
    saved: str | None
    size: int
    loss: float | None
    metric: float | None
    use: Use

    @property
    def saved_text(self) -> str:
        """The time to the minute, without the zone."""
        return self.saved[:16].replace("T", " ") if self.saved else "-"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run: one row per checkpoint, and what the newest whole one says about the training."""

    tool: str
    root: str
    layout: str
    rows: tuple[RunRow, ...]
    metric: str | None
    newest: tuple[str, Described] | None
    space: Space | None
    next: tuple[tuple[str, str], ...] = ()
    strays: tuple[str, ...] = ()
    exit_code: int = 0

    def blocks(self) -> Sequence[Block]:
        return info_text.run(self)

    def document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "tool": self.tool,
            "kind": "run",
            "root": self.root,
            "layout": self.layout,
            "metric": self.metric,
            "checkpoints": [
                {
                    "path": row.path,
                    "step": row.step,
                    "saved": row.saved,
                    "bytes": row.size,
                    "loss": row.loss,
                    "metric": row.metric,
                    **info_document.use(row.use),
                }
                for row in self.rows
            ],
            "newest": {"path": self.newest[0], **info_document.described(self.newest[1])} if self.newest else None,
            "space": info_document.space(self.space),
            "next": [{"what": what, "command": command} for what, command in self.next],
            "strays": list(self.strays),
        }


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint, or a single file (``file`` then has its facts and ``tree`` the beginning of its contents)."""

    tool: str
    root: str
    described: Described
    use: Use | None
    size: int
    count: int
    space: Space | None = None
    next: tuple[tuple[str, str], ...] = ()
    file: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()
    tree: Tree | None = None
    tensors: Tensors | None = None
    exit_code: int = 0
    edits: tuple[PastEdit, ...] = ()

    def blocks(self) -> Sequence[Block]:
        return info_text.checkpoint(self)

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "tool": self.tool,
            "kind": "file" if self.file else "checkpoint",
            "root": self.root,
            "bytes": self.size,
            "files": self.count,
            **info_document.described(self.described),
            **(info_document.use(self.use) if self.use else {}),
            "space": info_document.space(self.space),
            "next": [{"what": what, "command": command} for what, command in self.next],
            "edits": [edit_document(edit) for edit in self.edits],
        }
        if self.file:
            found["file"] = dict(self.file)
            found["problems"] = list(self.problems)
        if self.tree is not None:
            found["value"] = self.tree.document()
        if self.tensors is not None:
            found["tensors"] = [info_document.tensor(row) for row in self.tensors.rows]
        return found


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """Parts of a file: what ``PATH:FILE:key.path`` named."""

    tool: str
    root: str
    key: str
    trees: tuple[Tree, ...]
    found: tuple[str, ...] = field(default_factory=tuple)
    exit_code: int = 0

    def blocks(self) -> Sequence[Block]:
        return info_text.values(self)

    def document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "tool": self.tool,
            "kind": "value",
            "root": self.root,
            "key": self.key,
            "values": [
                {"key": key, "value": tree.document()} for key, tree in zip(self.found, self.trees, strict=True)
            ],
        }


InfoReport = RunInfo | CheckpointInfo | ValueInfo
