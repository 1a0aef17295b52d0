"""The catalogue of rules, in the order of their codes."""

from __future__ import annotations

from ckpt_tools.rules import (
    adapters,
    bundles,
    bytes,
    data,
    dcp,
    entries,
    fsdp,
    index,
    jax_files,
    lightning,
    lost_files,
    manifest,
    megatron,
    model_tensors,
    moments,
    named,
    olmo_core,
    optimizer,
    orbax,
    own,
    pointers,
    presence,
    random_state,
    ranks,
    runs,
    safetensors,
    safety,
    saving,
    state,
    steps,
    texts,
    torch_files,
    trackers,
    weight_files,
    zero,
    zero_ranks,
    zero_sizes,
    zero_steps,
)
from ckpt_tools.rules.base import Rule

CATALOGUE: tuple[Rule, ...] = tuple(
    sorted(
        (
            *own.RULES,
            *saving.RULES,
            *presence.RULES,
            *entries.RULES,
            *ranks.RULES,
            *lost_files.RULES,
            *trackers.RULES,
            *megatron.RULES,
            *weight_files.RULES,
            *bytes.RULES,
            *safetensors.RULES,
            *torch_files.RULES,
            *texts.RULES,
            *index.RULES,
            *model_tensors.RULES,
            *adapters.RULES,
            *data.RULES,
            *dcp.RULES,
            *fsdp.RULES,
            *olmo_core.RULES,
            *manifest.RULES,
            *steps.RULES,
            *moments.RULES,
            *optimizer.RULES,
            *state.RULES,
            *random_state.RULES,
            *lightning.RULES,
            *named.RULES,
            *runs.RULES,
            *safety.RULES,
            *bundles.RULES,
            *orbax.RULES,
            *jax_files.RULES,
            *pointers.RULES,
            *zero.RULES,
            *zero_ranks.RULES,
            *zero_sizes.RULES,
            *zero_steps.RULES,
        ),
        key=lambda rule: rule.code,
    )
)


def by_code(code: str) -> Rule | None:
    """Return the rule with a code (``CK203``) or name (``file-cut-short``), None when there is none."""
    wanted = code.strip().lower()
    return next((rule for rule in CATALOGUE if wanted in (rule.code.lower(), rule.name)), None)
