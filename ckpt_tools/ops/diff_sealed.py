"""What two sealed checkpoints say of themselves: digests of tensors, environment and data, with no tensor byte read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import SIDECAR
from ckpt_tools.model.manifest import NAME, Manifest
from ckpt_tools.model.manifest_document import ManifestError
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.ops.diff_targets import Target
from ckpt_tools.ops.diff_tensors import Pair
from ckpt_tools.ops.diff_values import changes
from ckpt_tools.reports.diff import Section


@dataclass(frozen=True, slots=True)
class Sealed:
    """The digests of one side by file and tensor; only of files that have the size they were sealed with."""

    manifest: Manifest | None = None
    digests: dict[tuple[str, str], str] = field(default_factory=dict)
    note: str | None = None

    def of(self, ref: TensorRef) -> str | None:
        paths = {chunk.extent.path for chunk in ref.chunks}
        return self.digests.get((paths.pop(), ref.fqn)) if len(paths) == 1 else None


def read(target: Target) -> Sealed:
    """Return what the manifest of a side says, nothing where it is not sealed."""
    listing = target.view.listing
    inner = f"{SIDECAR}/{next(iter(listing.files), '')}" if target.file else SIDECAR
    location = os.path.join(listing.root, inner, NAME)
    if not os.path.isfile(location):
        return Sealed()
    from ckpt_tools.ops import sealed

    try:
        manifest = sealed.load(location, f"{inner}/{NAME}")
    except SourceError as error:
        return Sealed() if error.errno == errno.ENOENT else Sealed(note=f"{error}")
    except ManifestError as error:
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
            {each.name: {path or each.name: digest for path, (_, digest) in each.files.items()} for each in side.data}
            for side in (manifests[0], manifests[1])
        ]
        found.append(Section("data", "training data", tuple(changes(data[0], data[1]))))
    return found
