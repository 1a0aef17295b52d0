"""``python -m ckpt_tools`` is ``ckpt``."""

from __future__ import annotations

import sys

from ckpt_tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
