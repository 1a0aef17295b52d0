"""Curves as a PNG picture, drawn by matplotlib (the extra ``plot``)."""

from __future__ import annotations

from io import BytesIO

from ckpt_tools.core.errors import UsageError
from ckpt_tools.render.base import visible
from ckpt_tools.reports.curves import Figure

MISSING = "a .png needs matplotlib, which is not installed"
HINT = "`pip install 'ckpt-tools[plot]'`, or name the file .svg or .html, which need nothing more"


def require() -> None:
    """Find out whether a PNG can be drawn, before any work is done.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(MISSING, hint=HINT) from None


def render(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG.

    Raises:
        UsageError: matplotlib is not installed.
    """
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    panels = figure.panels
    canvas = Canvas(figsize=(9, 1 + 2.6 * max(1, len(panels))), dpi=110, layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.suptitle(_literal(figure.title), fontsize=11)
    axes = canvas.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)
    for (axis,), panel in zip(axes, panels, strict=False):
        for each in panel.series:
            axis.plot(*zip(*each.points, strict=True), label=_literal(each.name), linewidth=1.4)
        for mark in figure.marks:
            axis.axvline(mark.after + 0.5, color="#c62828" if mark.bad else "#777777", linestyle="--", linewidth=1)
        axis.set_ylabel(_literal(panel.title))
        axis.grid(alpha=0.3)
        if len(panel.series) > 1:
            axis.legend()
    axes[-1][0].set_xlabel("step")
    written = BytesIO()
    canvas.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _literal(text: str) -> str:
    """Return text in which matplotlib sees no mathematics: it takes what stands between dollars for TeX."""
    return visible(text).replace("$", r"\$")
