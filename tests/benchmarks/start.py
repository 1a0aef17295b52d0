"""How long ``ckpt --version`` keeps a shell waiting, against an interpreter that does nothing."""

from __future__ import annotations

import sys

from measure import CKPT, REPOSITORY, interleaved, runs, tell

RUN = str(REPOSITORY / "fixtures" / "trainer5-full")

if __name__ == "__main__":
    nothing = (sys.executable, "-c", "pass")
    results = interleaved({"ckpt --version": (*CKPT, "--version"), "python -c pass": nothing}, runs(15))
    tell("start", results, ["ckpt --version takes at most 6 times as long"])
    more = {
        "ckpt latest RUN": (*CKPT, "latest", RUN),
        "ckpt verify RUN": (*CKPT, "verify", RUN),
        "ckpt verify --format json RUN": (*CKPT, "verify", "--format", "json", RUN),
        "python -c pass": nothing,
    }
    tell("a tiny run of three checkpoints", interleaved(more, runs(15)))
