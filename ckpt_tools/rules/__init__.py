"""The catalogue of rules, in the order of their codes."""

from __future__ import annotations

from ckpt_tools.rules import (
    adapters,
    bytes,
    data,
    index,
    manifest,
    model_tensors,
    moments,
    optimizer,
    own,
    presence,
    random_state,
    runs,
    safetensors,
    safety,
    saving,
    state,
    steps,
    texts,
    torch_files,
    weight_files,
)
from ckpt_tools.rules.base import Rule

CATALOGUE: tuple[Rule, ...] = tuple(
    sorted(
        (
            *own.RULES,
            *saving.RULES,
            *presence.RULES,
            *weight_files.RULES,
            *bytes.RULES,
            *safetensors.RULES,
            *torch_files.RULES,
            *texts.RULES,
            *index.RULES,
            *model_tensors.RULES,
            *adapters.RULES,
            *data.RULES,
            *manifest.RULES,
            *steps.RULES,
            *moments.RULES,
            *optimizer.RULES,
            *state.RULES,
            *random_state.RULES,
            *runs.RULES,
            *safety.RULES,
        ),
        key=lambda rule: rule.code,
    )
)


def by_code(code: str) -> Rule | None:
    """Return the rule with a code (``CK203``) or name (``file-cut-short``), None when there is none."""
    wanted = code.strip().lower()
    return next((rule for rule in CATALOGUE if wanted in (rule.code.lower(), rule.name)), None)
