"""CK27x: what is wrong with the bytes of Flax's and Keras's files, as their containers state it."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.model.checkpoint import Part
from ckpt_tools.model.findings import Severity
from ckpt_tools.rules.base import Context, Hit, Rule, relay, rule


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


RULES: tuple[Rule, ...] = (msgpack_damaged, hdf5_damaged, keras_member_missing)
