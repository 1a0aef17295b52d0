"""The next command to type: resume, load, merge, convert, or find out why not."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping

from ckpt_tools.containers.base import Content
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role, Run
from ckpt_tools.model.findings import Purpose, Severity, Verdict
from ckpt_tools.ops import describe
from ckpt_tools.reports.info import Use
from ckpt_tools.reports.units import count

_PEFT_CLASSES = {
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForSeq2SeqLM",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "FEATURE_EXTRACTION": "ForFeatureExtraction",
}
_RESUMES = {
    "accelerate": "accelerator.load_state({!r})",
    "dcp": "dcp.load(state_dict, checkpoint_id={!r})",
    "lightning": "trainer.fit(model, ckpt_path={!r})",
    "lightning-deepspeed": "trainer.fit(model, ckpt_path={!r})",
    "tensorflow": "checkpoint.restore({!r})",
    "timm": "--resume {}",
}


def of_run(run: Run, rows: list[tuple[str, Use]], newest: View | None) -> Iterator[tuple[str, str]]:
    """Yield ``(what for, command)`` for a run, given the path and use of its checkpoints in ascending order."""
    numbered = [(path, use) for path, use in rows if path != "."]
    ready = [(path, use) for path, use in numbered if _resumable(use)]
    if ready:
        path, use = ready[-1]
        if newest is not None and newest.checkpoint.path == path:
            yield from of_checkpoint(run, newest, use)
        else:
            yield from _resume(run, next(each for each in run.checkpoints if each.path == path))
    if any(not _resumable(use) for _, use in numbered):
        yield "see why not", f"ckpt verify {_typed(run.root)}"


def _resumable(use: Use) -> bool:
    """Return whether a resume works and nothing but reproducibility is lost by it."""
    return use.verdicts[Purpose.RESUME] in (Verdict.READY, Verdict.DEGRADED) and not any(
        finding.severity >= Severity.ERROR and finding.impact.resume is not Verdict.READY for finding in use.reasons
    )


def of_checkpoint(run: Run, view: View, use: Use) -> Iterator[tuple[str, str]]:
    """Yield ``(what for, command)``: resume, load, merge or convert, as far as the checkpoint allows."""
    plain = _joined(run.root, view.checkpoint.path)
    path = shlex.quote(plain)
    layouts = view.checkpoint.layouts
    resume, inference = use.verdicts[Purpose.RESUME], use.verdicts[Purpose.INFERENCE]
    if resume in (Verdict.READY, Verdict.DEGRADED):
        yield from _resume(run, view.checkpoint)
    if inference in (Verdict.READY, Verdict.DEGRADED):
        yield from _load(view, plain, layouts)
        if _in_pieces(view):
            yield "merge", f"ckpt merge {path} MERGED"
    if Verdict.BROKEN in (resume, inference) or Verdict.IN_PROGRESS in (resume, inference):
        yield "see why not", f"ckpt verify {path}"
    if resume is Verdict.BROKEN and view.checkpoint.step is not None and run.single and os.path.isdir(run.root):
        yield "fall back", f"ckpt latest {_typed(os.path.dirname(os.path.abspath(run.root)))}"


def _resume(run: Run, checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield what the trainer, or the line of a training loop, is given to go on from a checkpoint."""
    plain = _joined(run.root, checkpoint.path)
    layout, home, name = checkpoint.layout, os.path.dirname(plain), os.path.basename(plain)
    if layout == "hf-trainer" and checkpoint.has(Role.TRAINER_STATE):
        yield "resume", f"--resume_from_checkpoint {shlex.quote(plain)}"
    elif layout == "deepspeed":
        yield "resume", f"engine.load_checkpoint({home!r}, tag={name!r})"
    elif layout == "torchtitan":
        yield "resume", f"--checkpoint.load_step {checkpoint.step}"
    elif layout in _RESUMES:
        yield "resume", _RESUMES[layout].format(plain)


def _in_pieces(view: View) -> bool:
    """Whether ``ckpt merge`` has something to do: the weights are known only from several files."""
    return not view.checkpoint.has(Role.WEIGHTS, Role.ADAPTER) and any(
        assembly.weights for assembly in view.assemblies if view.checkpoint.layout != "tensorflow"
    )


def of_file(run: Run, content: Content | None) -> Iterator[tuple[str, str]]:
    """Yield what to type about a file that is a part of something."""
    if content is not None and content.problems:
        yield "see more", f"ckpt verify {_typed(run.root)}"


def _load(view: View, path: str, layouts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    checkpoint = view.checkpoint
    if checkpoint.has(Role.ADAPTER):
        base = next((each.base for each in describe.model(view).adapters if each.base), None)
        if "llama-factory" in layouts:
            shown = f"--model_name_or_path {shlex.quote(base or 'BASE')} --adapter_name_or_path {shlex.quote(path)}"
            yield "merge", f"llamafactory-cli export {shown} --export_dir MERGED"
        else:
            task = (view.mapping(Role.ADAPTER_CONFIG) or {}).get("task_type")
            kind = _PEFT_CLASSES.get(task, "") if isinstance(task, str) else ""
            yield "merge", f"AutoPeftModel{kind}.from_pretrained({path!r}).merge_and_unload().save_pretrained('MERGED')"
    elif checkpoint.has(Role.CONFIG) and checkpoint.has(Role.WEIGHTS):
        names = (view.config or {}).get("architectures")
        name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else "AutoModel"
        yield "load", f"{name if name.isidentifier() else 'AutoModel'}.from_pretrained({path!r})"
        if any(part.path.endswith(".bin") for part in view.weight_parts):
            yield "convert", "the same, then .save_pretrained('OUT') writes safetensors"
    elif checkpoint.layout == "keras":
        whole = checkpoint.path if checkpoint.path != "." else path
        called = "model.load_weights" if whole.endswith(".weights.h5") else "keras.saving.load_model"
        yield "load", f"{called}({path!r})"
    elif checkpoint.has(Role.COMBINED) and not checkpoint.has(Role.CHUNKS) and checkpoint.layout != "flax":
        names = {name for part in checkpoint.of(Role.COMBINED) for name in _globals(view, part)}
        odd = describe.foreign(dict.fromkeys(names, 1))
        protocols = [_protocol(view, part) for part in checkpoint.of(Role.COMBINED)]
        if max(protocols, default=2) > 3:
            yield "load", f"no loader takes it with weights_only=True: its pickle protocol is {max(protocols)}"
        elif odd:
            yield "load", f"needs torch.serialization.add_safe_globals for {count(len(odd), 'class', 'classes')} of it"
        else:
            yield "load", f"torch.load({path!r}, map_location='cpu', weights_only=True)"


def _protocol(view: View, part: Part) -> int:
    content = view.content(part)
    protocol = content.facts.get("protocol") if content is not None else None
    return protocol if isinstance(protocol, int) else 2


def _globals(view: View, part: Part) -> Mapping[str, int]:
    content = view.content(part)
    return content.globals if content is not None else {}


def _typed(root: str, path: str = ".") -> str:
    """Return a path as one would type it into a shell."""
    return shlex.quote(_joined(root, path))


def _joined(root: str, path: str) -> str:
    return root if path == "." else os.path.join(root, path)
