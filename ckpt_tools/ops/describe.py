"""What one checkpoint says about the training it belongs to, read from its headers, its pickles and its JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.layouts import by_name
from ckpt_tools.layouts.view import View
from ckpt_tools.model import schedules
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping, real, whole
from ckpt_tools.ops import unread, versions
from ckpt_tools.reports.info import Adapter, Described, Files, Model, Progress, Schedule, Training

SHOWN_FILES = 3
SHOWN_WIDTH = 54
SHOWN_NUMBERS = 4

_OTHERS = (
    ("weight decay", "weight_decay"),
    ("seed", "seed"),
    ("save limit", "save_total_limit"),
    ("deepspeed", "deepspeed"),
)


def describe(view: View) -> Described:
    """Return what is known of a checkpoint; everything that cannot be read is simply absent."""
    checkpoint = view.checkpoint
    found = versions.requirements(view)
    return Described(
        checkpoint.layouts,
        title(view),
        progress(view),
        schedule(view),
        model(view),
        training(view),
        tuple(files(view)),
        found,
        (*_notes(view), *versions.notes(view, found)),
    )


def title(view: View) -> str:
    """Return what the checkpoint is in words: its main layout, then what it holds of others."""
    layouts = [by_name(name) for name in view.checkpoint.layouts]
    extras = [layout.title for layout in layouts[1:]]
    if view.elsewhere and not view.assemblies:
        extras.append(view.elsewhere)
    main = layouts[0].title
    head = main if main.endswith("weights") else f"{main} checkpoint"
    return head + (f" with {' and '.join(extras)}" if extras else "")


def progress(view: View) -> Progress:
    """Return step, epoch and rates, with the last loss and evaluation up to that step."""
    state = view.state or {}
    step, total = view.step, whole(state.get("max_steps"))
    arguments = view.training_args
    name = metric_name(view)
    best = real(state.get("best_metric"))
    where = state.get("best_model_checkpoint")
    return Progress(
        step,
        total if total and total > 0 else None,
        view.number("epoch"),
        real(state.get("num_train_epochs")) or real(arguments.get("num_train_epochs")),
        tuple(view.numbers("lr") or view.numbers("last-lr")),
        _peaks(view),
        logged(state, "loss", step),
        _named(name, logged(state, name, step)) if name else None,
        (best, where) if best is not None and isinstance(where, str) else None,
        _ended(step, total, arguments),
    )


def _peaks(view: View) -> tuple[float, ...]:
    """Return the highest rates of the schedule, by group; none where the rate now is beyond them, as with SWALR."""
    groups = (view.optimizer or {}).get("param_groups")
    read = [as_mapping(group) or {} for group in groups] if isinstance(groups, list) else []
    cycles = [real(group.get("max_lr")) for group in read]  # OneCycleLR and CyclicLR begin, and end, at the base rate
    peaks = [rate for rate in cycles if rate is not None] or view.numbers("base-lr") or view.numbers("initial-lr")
    return tuple(peaks) if max(view.numbers("lr"), default=0.0) <= max(peaks, default=0.0) * (1 + 1e-9) else ()


def _named(name: str, pair: tuple[float, int] | None) -> tuple[str, float, int] | None:
    return (name, *pair) if pair else None


def _ended(step: int | None, total: int | None, arguments: Mapping[str, Value]) -> str | None:
    if step is None or not total or total < 1 or step < total:
        return None
    given = whole(arguments.get("max_steps"))
    epochs = real(arguments.get("num_train_epochs"))
    what = "num_train_epochs" if epochs is None else f"num_train_epochs (now {epochs:g})"
    if given is not None and given > 0:
        what = f"max_steps (now {given:,})"
    elif given is None and epochs is None:
        what = "num_train_epochs or max_steps"
    return f"nothing left to train: a resume ends at once; raise {what}"


def logged(state: Mapping[Any, Value], key: str, step: int | None) -> tuple[float, int] | None:
    """Return ``(value, step)`` of the last entry of the log that has ``key``, none later than ``step``."""
    history = state.get("log_history")
    for entry in reversed(history if isinstance(history, list) else []):
        if not isinstance(entry, dict):
            continue
        value, at = real(entry.get(key)), whole(entry.get("step"))
        if value is not None and at is not None and (step is None or at <= step):
            return value, at
    return None


def metric_name(view: View) -> str | None:
    """Return the key of the evaluation metric that matters: the one the best model is chosen by, else the loss."""
    history = (view.state or {}).get("log_history")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    names = [key for entry in entries for key in entry if isinstance(key, str) and key.startswith("eval_")]
    chosen = view.training_args.get("metric_for_best_model")
    for wanted in (chosen, f"eval_{chosen}", "eval_loss"):
        if wanted in names:
            return str(wanted)
    skipped = ("_runtime", "_per_second", "_time")
    return next((name for name in names if not name.endswith(skipped)), None)


def schedule(view: View) -> Schedule | None:
    """Return the scheduler told by its keys, with the numbers that shape it and what decides its rate."""
    named = view.training_args.get("lr_scheduler_type")
    named = named if isinstance(named, str) else None
    state = view.scheduler
    if state is None:
        if named is None:
            return None
        complete = view.checkpoint.has(Role.TRAINER_STATE) and view.elsewhere is None
        return Schedule(
            None, named, (), "no scheduler file here: a resume starts its schedule afresh" if complete else ""
        )
    row = schedules.scheduler(state)
    if row is None:
        return Schedule(None, named)
    numbers = [(key.lstrip("_"), _short(state[key])) for key in row.shown if key in state]
    unnamed = row.kind == "LambdaLR" and named is None
    kind = {"of DeepSpeed": "DeepSpeed's own"}.get(row.kind, row.kind)
    return Schedule("LambdaLR or MultiplicativeLR" if unnamed else kind, named, tuple(numbers), row.note)


def _short(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    mapping = as_mapping(value)
    items = list(mapping) if mapping is not None else list(value) if isinstance(value, list | tuple) else None
    if items is None:
        return str(value) if isinstance(value, int | str) else "..."
    more = ", ..." if len(items) > SHOWN_NUMBERS else ""
    return "[" + ", ".join(_short(item) for item in items[:SHOWN_NUMBERS]) + more + "]"


def model(view: View) -> Model:
    """Count parameters once for every storage: tied names are one set of parameters."""
    weights = view.weights
    adapters = tuple(_adapter(view, name, tensors) for name, tensors in view.adapters().items())
    config = view.config or {}
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    kind = config.get("model_type")
    if isinstance(kind, str):
        architecture = f"{architecture} ({kind})" if architecture else kind
    trained = schedules.trained(view.optimizer) if view.optimizer is not None else None
    groups = [weights, *view.adapters().values()]
    counted = list(_distinct(groups))
    dtypes: Counter[str] = Counter()
    for ref in counted:
        dtypes[ref.dtype] += ref.numel
    total = sum(ref.numel for ref in counted)
    tied = sum(map(len, groups)) - len(counted)
    kinds = tuple(dtypes.most_common())
    return Model(architecture, total, len(counted), tied, kinds, trained, adapters, _chunks(counted))


def _chunks(counted: list[TensorRef]) -> tuple[int, int] | None:
    """Return the number of chunks and of the files that they are in, None where every tensor is whole."""
    if all(len(ref.chunks) < 2 for ref in counted):
        return None
    chunks = [chunk.extent.path for ref in counted for chunk in ref.chunks]
    return len(chunks), len(set(chunks))


def _distinct(groups: list[Mapping[str, TensorRef]]) -> Iterator[TensorRef]:
    seen: set[tuple[object, ...]] = set()
    for tensors in groups:
        for ref in tensors.values():
            mark = storage(ref)
            if mark is not None:
                if (mark, ref.shape) in seen:
                    continue
                seen.add((mark, ref.shape))
            yield ref


def storage(ref: TensorRef) -> tuple[object, ...] | None:
    """Return what two views of the same bytes have in common, None for a tensor of which the bytes are not known."""
    if ref.storage_id is None or not ref.chunks or ref.numel == 0:
        return None
    extent = ref.chunks[0].extent
    return extent.path, ref.storage_id, extent.offset


def _adapter(view: View, name: str, tensors: Mapping[str, TensorRef]) -> Adapter:
    config: Mapping[Any, Value] = {}
    for part, value in view.values(Role.ADAPTER_CONFIG):
        if part.adapter == name:
            config = as_mapping(value) or {}
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    return Adapter(
        name,
        kind if isinstance(kind, str) else "adapter",
        whole(config.get("r")),
        real(config.get("lora_alpha")),
        base if isinstance(base, str) else None,
        sum(ref.numel for ref in tensors.values()),
    )


def training(view: View) -> Training:
    """Return what the training arguments, the optimizer's file and the files per rank say."""
    arguments = view.training_args
    optimizer = schedules.optimizer(view.optimizer) if view.optimizer is not None else None
    named = arguments.get("optim")
    batch = whole(arguments.get("per_device_train_batch_size")) or whole((view.state or {}).get("train_batch_size"))
    others = [(label, _short(arguments[key])) for label, key in _OTHERS if _worth(arguments.get(key))]
    return Training(
        optimizer,
        named if isinstance(named, str) else None,
        batch,
        whole(arguments.get("gradient_accumulation_steps")),
        world_size(view),
        _precision(arguments),
        _warmup(arguments),
        (*others, *(line for assembly in view.assemblies for line in assembly.described)),
    )


def _worth(value: Value) -> bool:
    return value not in (None, 0, 0.0, "", False) and isinstance(value, int | float | str)


def _warmup(arguments: Mapping[str, Value]) -> str | None:
    steps, ratio = real(arguments.get("warmup_steps")), real(arguments.get("warmup_ratio"))
    if steps and steps >= 1:
        return "1 step" if steps == 1 else f"{steps:g} steps"
    share = steps or ratio
    return f"{100 * share:g} % of the steps" if share else None


def _precision(arguments: Mapping[str, Value]) -> str | None:
    for key in ("bf16", "fp16"):
        if arguments.get(key) is True:
            return f"{key} mixed precision"
    return "float32" if arguments else None


def world_size(view: View) -> int | None:
    """Return the number of processes that saved, as they say it or by the files of which each writes its own."""
    stated = [size for assembly in view.assemblies if (size := assembly.world_size) is not None]
    if stated:
        return max(stated)
    ranks = [part.rank for part in view.checkpoint.of(Role.RNG)]
    if not ranks:
        return None
    return max((rank + 1 for rank in ranks if rank is not None), default=1)


def files(view: View) -> Iterator[Files]:
    """Yield the files by role, the largest role first."""
    groups: dict[Role, list[tuple[str, int]]] = {}
    for part in view.checkpoint.parts:
        if part.stat.is_file:
            groups.setdefault(part.role, []).append((part.path, part.stat.size))
    listing = view.listing
    rest = [(path, listing.files[path].size) for path in view.checkpoint.unclaimed if listing.files[path].is_file]
    if rest:
        groups.setdefault(Role.OTHER, []).extend(rest)
    found = [
        Files(role.value, len(members), sum(size for _, size in members), _shown([name for name, _ in members]))
        for role, members in groups.items()
    ]
    yield from sorted(found, key=lambda each: -each.size)


def _shown(names: list[str]) -> tuple[str, ...]:
    shown = names[:1]
    for name in names[1:SHOWN_FILES]:
        if sum(map(len, shown)) + len(name) > SHOWN_WIDTH:
            break
        shown.append(name)
    return tuple(shown)


def foreign(names: Mapping[str, int]) -> list[str]:
    """Return the globals of a pickle that neither torch nor plain Python containers explain."""
    known = ("torch.", "collections.", "builtins.", "__builtin__.", "_codecs.", "numpy.")
    return sorted(name for name in names if not name.startswith(known))


def _notes(view: View) -> Iterator[str]:
    if view.assemblies:
        pass
    elif view.elsewhere == "DeepSpeed":
        yield "weights or optimizer are in the DeepSpeed files; their contents are not read here"
    elif view.elsewhere == "FSDP":
        yield "weights or optimizer are in the FSDP directories; their contents are not read here"
    left = unread.why(view)
    if left:
        yield f"the weights are not read: {left[0]}"
    asked, saved = real(view.training_args.get("learning_rate")), view.numbers("base-lr")
    if asked and saved and all(abs(rate - asked) > 1e-6 * asked for rate in saved):
        yield f"the training arguments say learning rate {asked:g}, the scheduler's state decides"
