"""CK27x, CK588, CK589: what is wrong with the bytes of Flax's and Keras's files, and weights alone."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import BREAKS_RESUME, Severity
from ckpt_tools.rules.base import Context, Hit, Rule, relay, rule

_OF_TRAINING = ("opt", "step", "epoch", "state", "rng", "count", "momentum")


@rule("CK273", "msgpack-damaged", Severity.ERROR, Part, impact=None)
def msgpack_damaged(part: Part, context: Context) -> Iterator[Hit]:
    """A msgpack file of Flax holds something that is no msgpack, or an array that does not fit its bytes.

    **Why it matters.** `flax.serialization.from_bytes` stops, or an array cannot be given its shape. The format has no
    checksums: a changed value is not noticed by anything.

    **How to repair.** Copy it again, or take another checkpoint.
    """
    yield from relay(part, context, "msgpack-damaged")


@rule("CK274", "hdf5-damaged", Severity.ERROR, Part, impact=None)
def hdf5_damaged(part: Part, context: Context) -> Iterator[Hit]:
    """The first bytes of an HDF5 file (Keras) make no sense after its signature.

    **Why it matters.** h5py cannot open it.

    **How to repair.** Copy it again, or take another checkpoint.

    **Known exceptions.** Only the beginning and the length are looked at: HDF5 has no checksums by default.
    """
    yield from relay(part, context, "hdf5-damaged")


@rule("CK275", "keras-member-missing", Severity.ERROR, Part, impact=None)
def keras_member_missing(part: Part, context: Context) -> Iterator[Hit]:
    """A `.keras` archive lacks its configuration, its metadata or its weights.

    **Why it matters.** `keras.models.load_model` stops.

    **How to repair.** Copy it again, or take another checkpoint.
    """
    yield from relay(part, context, "keras-member-missing")


@rule("CK588", "flax-weights-alone", Severity.NOTE, Checkpoint, impact=BREAKS_RESUME)
def flax_weights_alone(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A msgpack file of Flax holds weights and no training state, as `flax_model.msgpack` of transformers does.

    **Why it matters.** It was meant so, and the model runs. A training that starts from it has no optimizer state and
    no step: both start afresh.

    **How to repair.** Nothing is wrong. To resume, take one that was saved with the whole `TrainState`.

    **Known exceptions.** `checkpoint_N`, and files with a key at the top that speaks of a step, a state or an
    optimizer: these are not judged.
    """
    held = context.view.mapping(Role.COMBINED) if checkpoint.layout == "flax" else None
    part = checkpoint.first(Role.COMBINED)
    if not held or part is None or not part.path.endswith(".msgpack") or not context.view.weights:
        return
    if not any(word in str(key).lower() for key in held for word in _OF_TRAINING):
        yield Hit("weights alone: nothing here to resume from", part.path)


@rule("CK589", "keras-weights-alone", Severity.NOTE, Checkpoint, impact=BREAKS_RESUME)
def keras_weights_alone(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A file of Keras holds a model and no optimizer.

    **Why it matters.** A model that was never compiled, or was saved with `include_optimizer=False`, has none to save.
    It runs; a training that goes on from it starts its optimizer afresh.

    **How to repair.** Nothing is wrong. To resume, take one that was saved after `fit`, optimizer included
    (`BackupAndRestore`, or `ModelCheckpoint` of a compiled model).

    **Known exceptions.** Told by the names at the top of the HDF5 file; a file that keeps them in HDF5's newer form is
    not judged.
    """
    part = checkpoint.first(Role.COMBINED)
    content = context.content(part) if checkpoint.layout == "keras" and part is not None else None
    if part is None or content is None or not content.readable or content.problems:
        return
    names = content.facts.get("names")
    if names and not any("optim" in name.lower() for name in names):
        yield Hit("weights alone: nothing here to resume from", part.path)


RULES: tuple[Rule, ...] = (
    msgpack_damaged,
    hdf5_damaged,
    keras_member_missing,
    flax_weights_alone,
    keras_weights_alone,
)
