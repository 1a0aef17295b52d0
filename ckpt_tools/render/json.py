"""JSON for programs: one document a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.reports.base import Report


def render(report: Report) -> Iterator[str]:
    """Yield the report's document as one line of ASCII JSON.

    JSON has no NaN and no infinity: they are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
    """
    yield json.dumps(_strict(report.document()), allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(inner) for inner in value]
    return value
