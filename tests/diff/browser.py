"""A real browser without a window, for pages that have scripts; the tests skip where there is none."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 120


def chromium() -> str:
    """Return the browser's program, or skip the test that asks."""
    found = next((place for name in NAMES if (place := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium on this machine: the page was not rendered (apt-get install chromium)")
    return found


def after(page: Path, script: str, profile: Path) -> str:
    """Load a page, run ``script`` once it is there, and return the text that it left in ``document.body.dataset.said``.

    The script is added to a copy of the page: the browser's own command line cannot run one.
    """
    text = page.read_text(encoding="utf-8")
    added = f"<script>try {{ document.body.dataset.said = JSON.stringify((() => {{ {script} }})()); }}"
    added += " catch (error) { document.body.dataset.said = String(error); }</script></body>"
    copy = page.with_name(f"asked-{page.name}")
    copy.write_text(text.replace("</body>", added), encoding="utf-8")
    done = subprocess.run(
        [chromium(), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", copy.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    said = re.search(r'data-said="([^"]*)"', done.stdout)
    assert said is not None, done.stdout[-2000:] + done.stderr[-2000:]
    return html.unescape(said[1])


def picture(page: Path, target: Path, profile: Path) -> bytes:
    """Return a screenshot of a page as PNG."""
    subprocess.run(
        [
            chromium(),
            *FLAGS,
            f"--user-data-dir={profile}",
            "--window-size=1200,2400",
            f"--screenshot={target}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )
    return target.read_bytes()
