"""The deep look of ``verify``: reads a checkpoint before the rules run, and keeps little of it afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ckpt_tools.core.errors import SourceChangedError, SourceError
from ckpt_tools.core.progress import Task
from ckpt_tools.layouts.view import View
from ckpt_tools.model.summaries import TensorSummary
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.ops import deep, deep_plan

_DAY_NS = 86_400 * 10**9
_ANY = TensorRef("", "", (), ())


class Looker:
    """Reads checkpoints one after another; the findings of ``rules.data`` are about what it leaves in ``view.data``."""

    def __init__(self, sample: str | None, now_ns: int, jobs: int | None) -> None:
        self._sample = deep_plan.parse_sample(sample, now_ns // _DAY_NS) if sample is not None else None
        self._jobs = jobs

    def size(self, views: Iterable[View]) -> int:
        """Return the bytes of all files that will be looked at."""
        return sum(view.listing.files[path].size for view in views for path in deep.files(view))

    def look(self, view: View, task: Task) -> None:
        """Read all that ``view`` holds, and note what could not be read."""
        wants = deep.Wants(digests=view.seal is not None and view.seal.manifest is not None)
        view.data = deep.read(view, wants, sample=self._sample, jobs=self._jobs, task=task)
        for path, file in view.data.files.items():
            if file.errors:
                view.errors[path] = _one(file.errors)

    def slim(self, view: View) -> None:
        """Keep of a checkpoint that was judged only what a neighbour is compared with."""
        if view.data is None:
            return
        files = {
            path: replace(
                file,
                tensors={
                    name: TensorSummary(_ANY, largest=each.largest)
                    for name, each in file.tensors.items()
                    if each.largest is not None
                },
                records=(),
                zeros=(),
                segments=(),
            )
            for path, file in view.data.files.items()
        }
        view.data = replace(view.data, files=files)


def _one(errors: tuple[SourceError, ...]) -> SourceError:
    """Return the first error of a file, with its number and how many more there are."""
    first = errors[0]
    number = f" (errno {first.errno})" if first.errno is not None else ""
    more = f", and in {len(errors) - 1:,} more places" if len(errors) > 1 else ""
    kind = SourceChangedError if isinstance(first, SourceChangedError) else SourceError
    return kind(first.path, f"{first.reason}{number}{more}", errno=first.errno)
