"""What two sealed checkpoints say of themselves: digests of tensors, environment and data, with no tensor byte read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import SIDECAR
from ckpt_tools.core.source import Extent
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.ops.diff_targets import Target
from ckpt_tools.ops.diff_tensors import Pair, is_dense
from ckpt_tools.ops.diff_values import changes
from ckpt_tools.reports.diff import MISSING, Change, Section

if TYPE_CHECKING:
    from ckpt_tools.model.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Sealed:
    """The digests of one side by file and tensor; only of files that have the size they were sealed with."""

    manifest: Manifest | None = None
    digests: dict[tuple[str, str], str] = field(default_factory=dict)
    note: str | None = None

    def of(self, ref: TensorRef) -> str | None:
        if len(ref.chunks) != 1 or ref.chunks[0].sizes != ref.shape:
            return None  # a manifest speaks of what one file holds: of a chunk, not of the whole
        return self.digests.get((ref.chunks[0].extent.path, ref.fqn))


def read(target: Target) -> Sealed:
    """Return what the manifest of a side says, nothing where it is not sealed."""
    listing = target.view.listing
    inner = f"{SIDECAR}/{next(iter(listing.files), '')}" if target.file else SIDECAR
    if not os.path.isdir(os.path.join(listing.root, inner)):
        return Sealed()
    from ckpt_tools.model.manifest import NAME
    from ckpt_tools.ops import sealed

    location = os.path.join(listing.root, inner, NAME)
    if not os.path.isfile(location):
        return Sealed()

    try:
        manifest = sealed.load(location, f"{inner}/{NAME}")
    except SourceError as error:
        return Sealed() if error.errno == errno.ENOENT else Sealed(note=f"{error}")
    except ValueError as error:  # what a manifest that is none raises
        return Sealed(note=f"{target.path}: its manifest {error}; not used")
    digests = {}
    for path, file in manifest.files.items():
        entry = listing.files.get(path)
        if entry is not None and entry.size == file.size:
            for name, tensor in (file.tensors or {}).items():
                if tensor.digest is not None:
                    digests[path, name] = tensor.digest
    return Sealed(manifest, digests)


def settle(pairs: Iterable[Pair], sides: tuple[Sealed, Sealed]) -> int:
    """Mark the pairs of which both digests are known; return how many are equal by them."""
    equal = 0
    if not (sides[0].digests and sides[1].digests):
        return equal
    for pair in pairs:
        one, other = sides[0].of(pair.left), sides[1].of(pair.right)
        same_form = pair.left.shape == pair.right.shape and pair.left.dtype == pair.right.dtype
        if one is None or other is None or not same_form:
            continue
        pair.sealed = one == other
        equal += pair.sealed
    return equal


def checksums(pairs: Iterable[Pair], views: tuple[View, View]) -> int:
    """Mark the pairs whose stored CRC32s differ; return how many of the others have the same one, which is a hint.

    A torch zip keeps one checksum per storage: it speaks of a tensor that is the whole of its storage.
    """
    stored = [_stored(view) for view in views]
    hints = 0
    for pair in pairs:
        if pair.sealed is not None or pair.left.shape != pair.right.shape or pair.left.dtype != pair.right.dtype:
            continue
        one, other = (
            known.get(ref.chunks[0].extent) if is_dense(ref) else None
            for known, ref in zip(stored, (pair.left, pair.right), strict=True)
        )
        if one is not None and other is not None:
            if one != other:
                pair.sealed, pair.note = False, "another checksum in the file"
            hints += one == other
    return hints


def _stored(view: View) -> dict[Extent, int]:
    found: dict[Extent, int] = {}
    for part in view.checkpoint.of(Role.WEIGHTS, Role.ADAPTER, Role.OPTIMIZER, Role.COMBINED):
        content = view.content(part)
        if content is not None:
            found.update({each.extent: each.crc32 for each in content.records if each.crc32})
    return found


def sections(sides: tuple[Sealed, Sealed]) -> list[Section]:
    """Compare environment and data where both sides have sealed them."""
    found: list[Section] = []
    manifests = sides[0].manifest, sides[1].manifest
    if manifests[0] is None or manifests[1] is None:
        return found
    one, other = manifests[0].environment, manifests[1].environment
    if one is not None and other is not None:
        found.append(Section("environment", "environment", tuple(changes(dict(one), dict(other)))))
    if manifests[0].data and manifests[1].data:
        data = [
            {
                f"{each.name}/{path}" if path else each.name: digest
                for each in seal.data
                for path, (_, digest) in each.files.items()
            }
            for seal in (manifests[0], manifests[1])
        ]
        names = dict.fromkeys([*data[0], *data[1]])
        both = [Change(name, data[0].get(name, MISSING), data[1].get(name, MISSING)) for name in names]
        found.append(Section("data", "training data", tuple(each for each in both if each.left != each.right)))
    return found
