"""A layout is a table: names of parts, where numbers are stored, what a loader needs, what is written last."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING

from ckpt_tools.core.listing import Listing
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import HARMLESS, Impact

if TYPE_CHECKING:
    from ckpt_tools.layouts.assembly import Assemble
    from ckpt_tools.layouts.view import View

_FIELDS = {
    "rank": r"(?P<rank>\d+)",
    "step": r"(?P<step>\d+)",
    "epoch": r"(?P<epoch>\d+)",
    "shard": r"(?P<shard>\d+)",
    "shards": r"(?P<shards>\d+)",
    "adapter": r"(?P<adapter>[^/]+)",
    "number": r"(?P<number>\d+)",
}

_WORDS = ("step", "global_step", "iter", "ckpt", "checkpoint", "save")
_ANY = (
    re.compile(rf"(?:(?:{'|'.join(_WORDS)})[-_]?)?(?P<step>\d{{1,18}})\Z"),
    re.compile(r"(?:epoch|ep)[-_]?(?P<epoch>\d{1,18})\Z"),
)
"""Names that people give to the checkpoints of a run where the framework leaves it to them."""

SAFETENSORS = ("safetensors",)
TORCH = ("torch-zip", "torch-legacy")
JSON = ("json",)
TEXT = ("text",)


def is_numbered(name: str) -> bool:
    """Return whether a directory may be one of the checkpoints of a run, if what is in it says so too."""
    return any(expression.match(name) for expression in _ANY)


@cache
def compile_name(pattern: str) -> re.Pattern[str]:
    """Compile a name pattern: ``{rank}``, ``{step}``, ``{shard}`` ... are numbers, ``*`` is anything but ``/``."""
    pieces = re.split(r"(\{\w+\}|\*)", pattern)
    expression = "".join(
        _FIELDS[piece[1:-1]] if piece[:1] == "{" else "[^/]*" if piece == "*" else re.escape(piece) for piece in pieces
    )
    return re.compile(rf"{expression}\Z")


@dataclass(frozen=True)
class PartPattern:
    """Names that stand for one role; ``containers`` are the byte formats that loaders read under such a name."""

    name: str
    role: Role
    containers: tuple[str, ...] = ()

    @cached_property
    def expression(self) -> re.Pattern[str]:
        return compile_name(self.name)


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """Where a quantity is stored: the role of the file and the key path in it (``[*]`` for every element).

    Quantities: ``step``, ``epoch``, ``max-steps``, ``scheduler-step``, ``optimizer-step``, ``lr``, ``initial-lr``,
    ``base-lr``, ``last-lr``.
    """

    quantity: str
    role: Role
    key: str
    editable: bool = True


@dataclass(frozen=True, slots=True)
class Need:
    """What it means for the two purposes that a role is missing, or that one of its files is damaged."""

    missing: Impact = HARMLESS
    damaged: Impact = HARMLESS


NO_NEED = Need()


@dataclass(frozen=True, slots=True)
class Tracker:
    """A text file that names the checkpoint to resume from, in the run or in a checkpoint that hosts the layout.

    ``target`` turns its text into the name of an entry beside it, None where the text makes no sense, and ``text``
    turns the name back.  ``followed`` says that the loader takes what it names and looks no further; ``without`` is
    what it does where there is none, ``""`` where that is no loss, and ``dangling`` what it does where the one that is
    named is not there.  Files called one of ``others`` stand in for it.  ``absolute`` trackers hold the whole path of
    what they name; ``suffix`` is how the file ends that stands for it where it is several.  Where checkpoints are files
    that are passed on by themselves, ``certain`` says by the contents of one whether what wrote it writes the tracker
    too: its absence is told where several of them lie beside each other.
    """

    name: str
    target: Callable[[str], str | None]
    followed: bool = True
    text: Callable[[str], str] = str
    without: str = ""
    dangling: str = "the trainer itself would stop"
    others: tuple[str, ...] = ()
    absolute: bool = False
    suffix: str = ""
    certain: Callable[[View], bool] | None = None


@dataclass(frozen=True)
class Layout:
    """One way of naming and placing parts.

    ``markers`` are names of which any one claims a directory, ``probe`` decides what they cannot.  ``directories``
    name the checkpoints inside a run; where the names are ``telling``, a directory counts by its name alone, else
    one of them has to be claimed by what is in it, and where they are ``loose``, each that is no mere number.
    ``single`` says that files beside each other may be checkpoints too, named as the parts are; ``collection`` that
    a directory which is claimed is no checkpoint but holds such files, several of which belong together where
    ``group`` gives them the same name; ``several`` names the directories in one that is named as a checkpoint, where
    each of them is one.  ``staging`` names the directories that hold a save in progress, ``tracker``
    is the file of a run that says which checkpoint is the one.  ``order`` is the order of writing; the role that
    ``commit`` names is written last, so its absence means that a save did not end, and ``unfinished`` says what a
    loader does then.  ``overlay`` layouts only add to another one, ``guest`` layouts do so where another one claims
    the directory too.  ``assemble`` puts together what lies in pieces.
    """

    name: str
    title: str
    parts: tuple[PartPattern, ...]
    markers: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    telling: bool = False
    loose: bool = False
    single: bool = False
    collection: bool = False
    group: Callable[[str], str | None] | None = None
    several: Callable[[Listing], tuple[str, ...]] | None = None
    staging: tuple[str, ...] = ()
    tracker: Tracker | None = None
    run_parts: tuple[PartPattern, ...] = ()
    slots: tuple[SlotSpec, ...] = ()
    needs: Mapping[Role, Need] = field(default_factory=dict)
    order: tuple[Role, ...] = ()
    commit: Role | None = None
    unfinished: str = ""
    overlay: bool = False
    guest: bool = False
    probe: Callable[[Listing], bool] | None = None
    assemble: Assemble | None = None

    def claims(self, listing: Listing) -> bool:
        """Return whether a directory with this listing is a checkpoint of this layout."""
        return not self.collection and self._marked(listing)

    def gathers(self, listing: Listing) -> bool:
        """Return whether files of a directory with this listing are checkpoints of this layout, each by itself."""
        return self.single and (not self.collection or self._marked(listing))

    def _marked(self, listing: Listing) -> bool:
        if any(expression.match(path) for expression in self._markers for path in listing.files):
            return True
        return self.probe is not None and self.probe(listing)

    def usual(self, role: Role) -> str:
        """Return the name that a file with ``role`` mostly has; KeyError where the layout has none."""
        for pattern in self.parts:
            if pattern.role is role:
                return re.sub(r"\{\w+\}", "0", pattern.name)
        raise KeyError(role)

    def need(self, role: Role) -> Need:
        return self.needs.get(role, NO_NEED)

    def names(self, name: str) -> bool:
        """Return whether checkpoints of this layout have names like ``name`` in a run."""
        return any(expression.match(name) for expression in self._directories)

    def counts_epochs(self, name: str) -> bool:
        """Return whether the number in the name of a checkpoint is that of an epoch."""
        found = self._match(name)
        return found is not None and "epoch" in found.groupdict()

    def number(self, name: str) -> int | None:
        """Return the number in the name of a checkpoint, whoever gave it the name; None where it has none."""
        found = self._match(name)
        return int(found.group(1)) if found is not None and found.groups() else None

    def _match(self, name: str) -> re.Match[str] | None:
        matches = (expression.match(name) for expression in (*self._directories, *_ANY))
        return next((match for match in matches if match), None)

    @cached_property
    def _markers(self) -> tuple[re.Pattern[str], ...]:
        return tuple(compile_name(marker) for marker in self.markers)

    @cached_property
    def _directories(self) -> tuple[re.Pattern[str], ...]:
        return tuple(compile_name(name) for name in self.directories)

    @cached_property
    def staging_expressions(self) -> tuple[re.Pattern[str], ...]:
        return tuple(compile_name(name) for name in self.staging)


MODEL_FILES: tuple[PartPattern, ...] = (
    PartPattern("config.json", Role.CONFIG, JSON),
    PartPattern("generation_config.json", Role.GENERATION_CONFIG, JSON),
    PartPattern("tokenizer.json", Role.TOKENIZER, JSON),
    PartPattern("tokenizer_config.json", Role.TOKENIZER, JSON),
    PartPattern("special_tokens_map.json", Role.TOKENIZER, JSON),
    PartPattern("added_tokens.json", Role.TOKENIZER, JSON),
    PartPattern("vocab.json", Role.TOKENIZER, JSON),
    PartPattern("vocab.txt", Role.TOKENIZER, TEXT),
    PartPattern("merges.txt", Role.TOKENIZER, TEXT),
    PartPattern("tokenizer.model", Role.TOKENIZER),
    PartPattern("spiece.model", Role.TOKENIZER),
    PartPattern("sentencepiece.bpe.model", Role.TOKENIZER),
    PartPattern("chat_template.jinja", Role.TOKENIZER, TEXT),
    PartPattern("preprocessor_config.json", Role.TOKENIZER, JSON),
    PartPattern("processor_config.json", Role.TOKENIZER, JSON),
    PartPattern("README.md", Role.OTHER),
    PartPattern(".tmp*", Role.TEMPORARY),
)
"""What ``save_pretrained`` of models, tokenizers and processors writes beside the weights."""

TORCH_STATE_SLOTS: tuple[SlotSpec, ...] = (
    SlotSpec("scheduler-step", Role.SCHEDULER, "last_epoch"),
    SlotSpec("base-lr", Role.SCHEDULER, "base_lrs[*]"),
    SlotSpec("last-lr", Role.SCHEDULER, "_last_lr[*]"),
    SlotSpec("optimizer-step", Role.OPTIMIZER, "state[*].step"),
    SlotSpec("lr", Role.OPTIMIZER, "param_groups[*].lr"),
    SlotSpec("initial-lr", Role.OPTIMIZER, "param_groups[*].initial_lr"),
)
"""Where ``state_dict()`` of torch's optimizers and schedulers keeps its numbers."""

TORCH_FILE_SLOTS: tuple[SlotSpec, ...] = (
    *(SlotSpec("step", Role.COMBINED, key) for key in ("global_step", "step", "iteration", "num_updates")),
    SlotSpec("epoch", Role.COMBINED, "epoch"),
    SlotSpec("lr", Role.COMBINED, "optimizer.param_groups[*].lr"),
    SlotSpec("initial-lr", Role.COMBINED, "optimizer.param_groups[*].initial_lr"),
    SlotSpec("optimizer-step", Role.COMBINED, "optimizer.state[*].step"),
    SlotSpec("scheduler-step", Role.COMBINED, "scheduler.last_epoch"),
    SlotSpec("base-lr", Role.COMBINED, "scheduler.base_lrs[*]"),
    SlotSpec("last-lr", Role.COMBINED, "scheduler._last_lr[*]"),
)
"""The same for one file with an optimizer and a scheduler in it, under the keys that most libraries give them."""
