"""Which scheduler and which optimizer wrote a state dict, told by its keys; the class itself is stored nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_tools.model.values import Value, as_mapping

RESHAPED = "its length is not saved: other epochs or max_steps on resume reshape the curve"
FROM_GROUP = "continues from the optimizer's rate"
PLATEAU = "lowers the rate when the metric stalls; last_epoch counts evaluations"
OF_DEEPSPEED = "its rates come from the configuration that a resume is started with"
ONE_CYCLE = "its bounds are in the optimizer's groups (initial_lr, max_lr, min_lr)"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """``keys`` that are all in the state, and the class that alone has them; the first that fits counts."""

    keys: frozenset[str]
    kind: str
    note: str
    shown: tuple[str, ...] = ()


def _row(keys: str, kind: str, note: str, shown: str = "") -> Fingerprint:
    return Fingerprint(frozenset(keys.split()), kind, note, tuple(shown.split()))


SCHEDULERS: tuple[Fingerprint, ...] = (
    _row("_milestones _schedulers", "SequentialLR", FROM_GROUP, "_milestones"),
    _row("_schedulers", "ChainedScheduler", FROM_GROUP),
    _row("_schedule_phases", "OneCycleLR", ONE_CYCLE, "total_steps"),
    _row("smooth window_size", "GreedyLR", "raises and lowers the rate by the metric", "factor patience warmup"),
    _row("patience", "ReduceLROnPlateau", PLATEAU, "factor patience mode best num_bad_epochs"),
    _row("T_max", "CosineAnnealingLR", FROM_GROUP, "T_max eta_min"),
    _row("T_0 T_cur", "CosineAnnealingWarmRestarts", "follows base_lrs", "T_0 T_mult T_cur eta_min"),
    _row("step_size", "StepLR", FROM_GROUP, "step_size gamma"),
    _row("milestones", "MultiStepLR", FROM_GROUP, "milestones gamma"),
    _row("max_lrs", "CyclicLR", "follows base_lrs and max_lrs", "base_lrs max_lrs total_size mode"),
    _row("total_iters power", "PolynomialLR", FROM_GROUP, "total_iters power"),
    _row("start_factor", "LinearLR", FROM_GROUP, "start_factor end_factor total_iters"),
    _row("factor total_iters", "ConstantLR", FROM_GROUP, "factor total_iters"),
    _row("lr_lambdas", "LambdaLR", RESHAPED),
    _row("gamma", "ExponentialLR", FROM_GROUP, "gamma"),
    _row("last_batch_iteration", "of DeepSpeed", OF_DEEPSPEED, "last_batch_iteration"),
)
"""torch's scheduler classes (and the Trainer's GreedyLR) by the keys of their ``state_dict``."""

_OPTIMIZERS: tuple[Fingerprint, ...] = (
    _row("__bnb_optimizer_quant_state__", "bitsandbytes, quantised", ""),
    _row("absmax1", "bitsandbytes, quantised", ""),
    _row("qmap1", "bitsandbytes, quantised", ""),
    _row("state1", "bitsandbytes", ""),
    _row("exp_avg_sq_row", "Adafactor", ""),
    _row("exp_avg_sq RMS", "Adafactor", ""),
    _row("projector", "GaLore", ""),
    _row("exp_avg exp_avg_sq mu_product", "NAdam", ""),
    _row("exp_avg exp_avg_sq", "Adam", ""),
    _row("z exp_avg_sq", "schedule-free", ""),
    _row("exp_avg exp_inf", "Adamax", ""),
    _row("square_avg acc_delta", "Adadelta", ""),
    _row("square_avg", "RMSprop", ""),
    _row("prev", "Rprop", ""),
    _row("momentum_buffer", "SGD with momentum", ""),
    _row("row_var", "Adafactor", ""),
    _row("ax eta mu", "ASGD", ""),
    _row("sum", "Adagrad", ""),
    _row("exp_avg", "Lion", ""),
)


def scheduler(state: Mapping[Any, Value]) -> Fingerprint | None:
    """Return the class that a scheduler's state dict belongs to, None when its keys are those of no known class."""
    keys = {key for key in state if isinstance(key, str)}
    return next((row for row in SCHEDULERS if row.keys <= keys), None)


def optimizer(state: Mapping[Any, Value]) -> str | None:
    """Return the family of the optimizer that wrote a state dict, None when its keys are those of no known one."""
    groups = state.get("param_groups")
    group = as_mapping(groups[0]) if isinstance(groups, list) and groups else None
    group = group or {}
    keys: set[str] = set()
    entries = as_mapping(state.get("state")) or {}
    for number, entry in enumerate(entries.values()):
        keys |= {key for key in as_mapping(entry) or {} if isinstance(key, str)}
        if number >= 64:
            break
    if "ns_steps" in group or "use_muon" in group:  # its moments are named as those of the others
        return "Muon with Adam" if "exp_avg" in keys else "Muon"
    for row in _OPTIMIZERS:
        if row.keys <= keys:
            return _adam(group) if row.kind == "Adam" else row.kind
    if not keys and "momentum" in group and "nesterov" in group:
        return "SGD without momentum"
    return None


def _adam(group: Mapping[Any, Value]) -> str:
    """Tell the members of Adam's family apart by the fields of their groups; older torch stored no difference."""
    decoupled = group.get("decoupled_weight_decay")
    if "amsgrad" not in group:
        return "RAdam" if decoupled is not None else "of Adam's family"
    return "Adam or AdamW" if decoupled is None else "AdamW" if decoupled else "Adam"


def trained(state: Mapping[Any, Value]) -> int | None:
    """Return how many tensors an optimizer's state dict says are trained, None when it has no groups."""
    groups = state.get("param_groups")
    if not isinstance(groups, list):
        return None
    members = [(as_mapping(group) or {}).get("params") for group in groups]
    return sum(len(params) for params in members if isinstance(params, list | tuple))
