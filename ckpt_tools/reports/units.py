"""How numbers are written for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def human_bytes(count: int) -> str:
    """Return a size with a binary unit and three significant digits: ``1.15 GiB``."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size /= 1024
        if size < 1000 or unit == "PiB":
            break
    return f"{size:.3g} {unit}"


def human_rate(rate: float | None) -> str:
    """Return a learning rate as people type it: ``5e-05``; ``-`` for none."""
    return "-" if rate is None else f"{rate:.4g}"


def first_names(names: Iterable[str], limit: int = 10) -> str:
    """Join the first ``limit`` names with commas and say how many more there are."""
    every = list(names)
    shown = ", ".join(every[:limit])
    return f"{shown}, ... and {len(every) - limit:,} more" if len(every) > limit else shown


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 file`` or ``1,204 files``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(names: Sequence[str], conjunction: str = "and") -> str:
    """Join names as a sentence does: ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {conjunction} {names[-1]}"
