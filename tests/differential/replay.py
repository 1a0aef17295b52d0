"""``python -m tests.differential.replay FILE SEED [DIRECTORY]``: make one random damage again and show both sides."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.differential.compare import compare
from tests.differential.corpus import subjects


def main() -> None:
    path, seed, *rest = sys.argv[1:]
    (subject,) = (subject for subject in subjects() if subject.path == path)
    directory = Path(rest[0]) if rest else Path(tempfile.mkdtemp(prefix="damage-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(compare(subject, int(seed), directory).told())  # noqa: T201
    print(f"   file:   {directory / subject.name}")  # noqa: T201


if __name__ == "__main__":
    main()
