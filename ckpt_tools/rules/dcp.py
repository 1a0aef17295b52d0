"""CK14x, CK29x, CK36x, CK56x: directories of torch.distributed.checkpoint, wherever they lie."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import replace

from ckpt_tools.layouts import assembly_dcp_fit as fit
from ckpt_tools.layouts.assembly_dcp import DcpAssembly
from ckpt_tools.layouts.assembly_dcp_safetensors import ShardedSafetensors
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME, Severity
from ckpt_tools.rules.base import Context, Hit, Rule, relay, rule


def _assemblies(context: Context) -> Iterator[DcpAssembly]:
    return (each for each in context.view.assemblies if isinstance(each, DcpAssembly))


def _told(context: Context, kind: str) -> Iterator[Hit]:
    """Yield a hit for every misfit of this kind; what hurts inference is told by what the pieces are."""
    for made in _assemblies(context):
        for path, problem, impact in made.misfits:
            if problem.kind == kind:
                yield Hit(problem.message, path, problem.at, problem.detail, help=problem.help, impact=impact)


@rule("CK140", "dcp-metadata-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def metadata_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A directory of a distributed checkpoint has data files and no `.metadata`.

    **Why it matters.** The metadata says which tensor lies where; without it nothing loads (`metadata is None`). It is
    written last, so that a save that was killed leaves none. And its name begins with a dot: `cp dir/*` and many
    upload filters leave it out.

    **How to repair.** Look for `.metadata` where the directory was copied from. If the save did not end, fall back to
    an older checkpoint (`ckpt latest RUN`).

    **Known exceptions.** Where the whole checkpoint is such a directory, CK101 tells it.
    """
    told = Role.METADATA in context.view.unwritten
    for made in _assemblies(context):
        if made.metadata or not made.data or told:
            continue
        temporary = posixpath.join(made.place, ".metadata.tmp") in checkpoint.listing.files
        cause = "its save did not end" if temporary else "its save did not end, or a copy left the hidden file out"
        files = "1 data file is there" if len(made.data) == 1 else f"{len(made.data):,} data files are there"
        detail = (f"{files}; {cause}", "torch stops with `metadata is None`")
        optimizer = made.place.startswith("optim")
        yield Hit(".metadata is missing", made.place, detail=detail, impact=BREAKS_RESUME if optimizer else None)


@rule("CK141", "dcp-data-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def data_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A data file (`__0_0.distcp`) that the metadata speaks of is not there.

    **Why it matters.** Each rank wrote files of its own; every tensor with a part in the missing one is lost. A node
    whose files were never copied leaves just this.

    **How to repair.** Copy the missing files from the node that wrote them, or fall back to an older checkpoint.
    """
    yield from _told(context, "dcp-data-missing")


@rule("CK142", "dcp-orphan-files", Severity.WARNING, Checkpoint)
def orphan_files(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Data files lie in the directory that its metadata does not speak of.

    **Why it matters.** They are from another save into the same directory, mostly one of more ranks. No loader reads
    them; they take space.

    **How to repair.** Set them aside. Save into a fresh directory each time.

    **Known exceptions.** An empty data file belongs to a rank that had nothing to save.
    """
    yield from _told(context, "dcp-orphan-files")


@rule("CK143", "dcp-rank-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def rank_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Each rank wrote metadata of its own (`use_collectives=False`), and that of some ranks is missing.

    **Why it matters.** A load goes through: it takes what is there, and leaves the rest of every tensor as it was. With
    more ranks than saved, those without metadata stop.

    **How to repair.** Copy the files of the missing ranks, or fall back to an older checkpoint.

    **Known exceptions.** How many ranks there were is stored nowhere: the highest number of any file tells. For
    another number of ranks see CK137 (`--world-size`).
    """
    yield from _told(context, "dcp-rank-missing")


@rule("CK144", "dcp-metadata-left-over", Severity.WARNING, Checkpoint)
def metadata_left_over(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A `.metadata.tmp` lies beside a `.metadata`: a save over this directory was killed at its end.

    **Why it matters.** The data files were written over before: they are those of the killed save, and `.metadata` is
    that of the one before. A load may stop, or take new values by old places.

    **How to repair.** If `ckpt verify --deep` finds nothing else, the new metadata may be whole: compare it. Otherwise
    fall back to an older checkpoint. Save into a fresh directory each time.
    """
    names = checkpoint.listing.files
    for path in names:
        home, name = posixpath.split(path)
        final = posixpath.join(home, name.removesuffix(".tmp"))
        if name.endswith(".metadata.tmp") and name.startswith((".", "__")) and final in names:
            detail = ("the data files are written before it, and may be newer than what .metadata says",)
            yield Hit("left by a save into this directory that did not end", path, detail=detail)


@rule("CK290", "dcp-metadata-invalid", Severity.ERROR, Part, impact=None)
def metadata_invalid(part: Part, context: Context) -> Iterator[Hit]:
    """The metadata of a distributed checkpoint is a pickle of something else, or parts of it have another form.

    **Why it matters.** torch reads the file with plain `pickle.load` and takes its fields as they are: it stops, or
    loads less than there is. Nothing of the pickle was run here.

    **How to repair.** Copy the file again, or fall back to an older checkpoint.
    """
    yield from relay(part, context, "dcp-metadata-invalid")


@rule("CK291", "dcp-maps-differ", Severity.ERROR, Part, impact=None)
def maps_differ(part: Part, context: Context) -> Iterator[Hit]:
    """The two maps of the metadata do not agree: what is described is not stored, or stored twice, or the reverse.

    **Why it matters.** `state_dict_metadata` says what there is, `storage_data` where each chunk of it lies. A load
    stops with a `KeyError` at what is not stored, and does not see what is not described.

    **How to repair.** No writer leaves such a file; copy it again, or fall back to an older checkpoint.
    """
    yield from relay(part, context, "dcp-maps-differ")


@rule("CK292", "dcp-path-outside", Severity.ERROR, Part, impact=BREAKS_ALL)
def path_outside(part: Part, context: Context) -> Iterator[Hit]:
    """The metadata names a data file by a path that leads out of its directory.

    **Why it matters.** A loader would open that file, whatever it is; no writer of torch names one. This tool does not
    follow it.

    **How to repair.** Do not load it. Get the files from a source that you trust.
    """
    content = context.content(part)
    for problem in content.problems if content is not None else ():
        if problem.kind == "dcp-path-outside":
            yield Hit(problem.message, part.path, detail=problem.detail)


@rule("CK293", "dcp-blob-damaged", Severity.ERROR, Part, impact=None)
def blob_damaged(part: Part, context: Context) -> Iterator[Hit]:
    """A piece of a data file, where the metadata says that one begins, is no torch file or a damaged one.

    **Why it matters.** Each tensor and object is a small file of `torch.save` inside the data file. A load stops at a
    damaged one (`failed finding central directory`), and only when it comes to it: others load. Pieces that begin in
    the wrong places tell of a save over this directory that did not end.

    **How to repair.** Copy the file again, or fall back to an older checkpoint (`ckpt latest RUN`).

    **Known exceptions.** Without `--deep` a sample of a large checkpoint is looked at.
    """
    yield from _of_piece(part, context, "dcp-blob-damaged")


@rule("CK364", "dcp-blob-mismatch", Severity.ERROR, Part, impact=None)
def blob_mismatch(part: Part, context: Context) -> Iterator[Hit]:
    """The tensor in a data file has another type or shape than the metadata says.

    **Why it matters.** Metadata and data are of two saves. A load stops where the shapes differ (`size mismatch`), and
    converts without a word where only the types do.

    **How to repair.** Bring together the files of one save, or fall back to an older checkpoint.
    """
    yield from _of_piece(part, context, "dcp-blob-mismatch")


def _of_piece(part: Part, context: Context, kind: str) -> Iterator[Hit]:
    """Yield hits with the meaning of the pieces that they name: the optimizer's do not hurt inference."""
    for hit in relay(part, context, kind):
        made = next((made for made in _assemblies(context) if part.path in made.data), None)
        hurt = made.impact(part, kind) if made is not None else hit.impact
        yield Hit(hit.message, hit.path, hit.at, hit.detail, severity=hit.severity, impact=hurt)


@rule("CK294", "dcp-not-loadable", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def not_loadable(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The data files hold their tensors in the form of safetensors, which torch's own reader does not read back.

    **Why it matters.** `FileSystemWriter(serialization_format=SAFETENSORS)` writes what `dcp.load` refuses with a
    `weights_only` error. The tensors are all there: this tool reads them.

    **How to repair.** Convert the weights (`ckpt merge`), and save with the default format or with
    `HuggingFaceStorageWriter`.
    """
    for made in _assemblies(context):
        if made.packed:
            first = next(iter(made.packed))
            files = f"{len(made.packed):,} data files, the first is {first}"
            message = "written in the form of safetensors, which torch does not load again"
            detail = (files, "dcp.load stops with a weights_only error")
            yield Hit(message, made.place, detail=detail, help="`ckpt merge` reads the weights, and writes them anew")


@rule("CK360", "dcp-range-outside-file", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def range_outside(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A data file is shorter than the metadata says.

    **Why it matters.** The file was cut, or the directory was saved into again and the save was killed: the data is new
    then, and the metadata old. Tensors that lie before the end still load, so that a resume may go far before it stops.

    **How to repair.** If this is a copy, copy it again. Otherwise fall back to an older checkpoint.
    """
    yield from _told(context, "dcp-range-outside-file")


@rule("CK361", "dcp-ranges-overlap", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def ranges_overlap(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Two pieces of a data file lie on the same bytes.

    **Why it matters.** Writers put one behind the other. One of the two at least is not what the metadata says.

    **How to repair.** Copy the metadata again, or fall back to an older checkpoint.
    """
    yield from _told(context, "dcp-ranges-overlap")


@rule("CK362", "dcp-chunks-missing", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def chunks_missing(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The chunks of a tensor do not cover it: a part of it is stored nowhere.

    **Why it matters.** A load copies the chunks that there are and keeps the rest as it was, mostly random or zero. It
    says nothing.

    **How to repair.** Fall back to an older checkpoint. Where each rank wrote its own metadata, copy the missing ones.

    **Known exceptions.** Chunks of no elements are legal: more ranks than rows leave some.
    """
    yield from _told(context, "dcp-chunks-missing")
    for made in context.view.assemblies:
        if isinstance(made, ShardedSafetensors) and not checkpoint.is_file:
            for path, problem in made.problems:
                yield Hit(problem.message, path, problem.at, problem.detail)


@rule("CK363", "dcp-chunks-overlap", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def chunks_overlap(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Chunks of a tensor cover the same elements, or reach beyond it.

    **Why it matters.** Which of the values a load ends up with is chance. torch checks this when it saves; such
    metadata was damaged or made by hand.

    **How to repair.** Copy the metadata again, or fall back to an older checkpoint.
    """
    yield from _told(context, "dcp-chunks-overlap")


@rule("CK560", "dcp-file-longer", Severity.WARNING, Checkpoint)
def file_longer(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A data file goes on behind the last piece that the metadata knows.

    **Why it matters.** Writers leave no rest. The file is of a larger save into the same directory that did not end:
    what the metadata says of the bytes before may be wrong too.

    **How to repair.** `ckpt verify --deep` opens every piece. Save into a fresh directory each time.
    """
    yield from _told(context, "dcp-file-longer")


@rule("CK561", "dcp-data-newer", Severity.NOTE, Checkpoint)
def data_newer(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Data files were written later than the metadata that describes them.

    **Why it matters.** The metadata is written last. Data that is newer may be of another save into the same directory,
    one that has not ended: a load then mixes the two. With a file that is longer than it should be (CK560) this is a
    warning.

    **How to repair.** `ckpt verify --deep` opens every piece. Save into a fresh directory each time.

    **Known exceptions.** Copies that do not keep times leave the same. What `ckpt` edited is known by its journal.
    """
    longer = any(True for _ in _told(context, "dcp-file-longer"))
    for hit in _told(context, "dcp-data-newer"):
        yield replace(hit, severity=Severity.WARNING if longer else None)


@rule("CK562", "dcp-metadata-misplaced", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def metadata_misplaced(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The metadata that one rank wrote (`__0.metadata`, by `use_collectives=False`) is that of another rank.

    **Why it matters.** A rank reads its own metadata alone. In that of another it finds none of the pieces that it
    asks for, leaves its tensors as they were, and says nothing.

    **How to repair.** Where two were swapped, give them their names back; else copy them again.

    **Known exceptions.** Tensors that every rank wrote as a whole can be read by the metadata of any.
    """
    yield from _told(context, "dcp-metadata-misplaced")


@rule("CK563", "dcp-data-mixed", Severity.WARNING, Checkpoint)
def data_mixed(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Data files of a distributed checkpoint are of different steps, by what the optimizer counts for each parameter.

    **Why it matters.** Pieces have no names and no checksums of the whole: a data file of another save of the same
    shapes loads without a word, and a part of all tensors is then that of another step.

    **How to repair.** Bring together the files of one save, or fall back to an older checkpoint.

    **Known exceptions.** Parameters that began later than others count fewer steps. So this is told only where each
    file agrees with itself, while layers, and kinds of modules, do not; or where one is ahead of the training, and the
    others are not. Mostly a few files hold all counts, and then a mixture is not seen: only a sealed checkpoint
    (`ckpt seal`) knows each of its files.
    """
    for made in _assemblies(context):
        found = fit.of_two_steps(made)
        if found is not None:
            yield Hit(found[1].message, found[0], detail=found[1].detail)


@rule("CK147", "dcp-weights-alone", Severity.NOTE, Checkpoint, impact=BREAKS_RESUME)
def weights_alone(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A distributed checkpoint of weights without an optimizer: good to run the model, not to go on with the training.

    **Why it matters.** The last save of torchtitan and exports look like this, so it is no fault. A resume from it
    starts the optimizer afresh.

    **How to repair.** To resume, take a checkpoint that has an optimizer (`ckpt latest RUN`).
    """
    states = (Role.OPTIMIZER, Role.OPTIMIZER_STATES, Role.SCHEDULER, Role.RNG, Role.TRAINER_STATE, Role.DATALOADER)
    if checkpoint.is_file or checkpoint.has(*states):
        return
    made = [each for each in context.view.assemblies if isinstance(each, DcpAssembly | ShardedSafetensors)]
    names = {name for each in made if isinstance(each, DcpAssembly) for name in each.items}
    if any(each.weights for each in made) and not names and not any(each.optimizer_tensors for each in made):
        yield Hit("weights alone: nothing here to resume from")


RULES: tuple[Rule, ...] = (
    metadata_missing,
    data_missing,
    orphan_files,
    rank_missing,
    metadata_left_over,
    weights_alone,
    metadata_invalid,
    maps_differ,
    path_outside,
    blob_damaged,
    not_loadable,
    range_outside,
    ranges_overlap,
    chunks_missing,
    chunks_overlap,
    blob_mismatch,
    file_longer,
    data_newer,
    metadata_misplaced,
    data_mixed,
)
