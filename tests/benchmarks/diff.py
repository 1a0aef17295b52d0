"""``ckpt diff`` of two 2 GiB bf16 checkpoints, against the script that one writes otherwise, and against ``cmp``.

The checkpoints are of the size and the names of a small decoder; "usual script" loads both with safetensors and takes,
tensor by tensor, ``(a - b).abs().max()`` and ``(a - b).norm() / a.norm()``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from measure import CKPT, REPOSITORY, built, interleaved, runs, tell

LAYERS = 24
WIDTH = 2048
SCRIPT = """
import sys
from safetensors.torch import load_file
left, right = (load_file(path) for path in sys.argv[1:])
for name, a in left.items():
    b = right[name]
    difference = a - b
    print(name, difference.abs().max().item(), (difference.norm() / a.norm()).item())
"""


def build(directory: Path) -> None:
    import torch
    from safetensors.torch import save_file

    shapes = {"model.embed_tokens.weight": (48_000, WIDTH)}
    for number in range(LAYERS):
        for kind, shape in (
            ("self_attn.q_proj", (WIDTH, WIDTH)),
            ("self_attn.k_proj", (WIDTH, WIDTH)),
            ("self_attn.v_proj", (WIDTH, WIDTH)),
            ("self_attn.o_proj", (WIDTH, WIDTH)),
            ("mlp.gate_proj", (3328, WIDTH)),
            ("mlp.up_proj", (3328, WIDTH)),
            ("mlp.down_proj", (WIDTH, 3328)),
            ("input_layernorm", (WIDTH,)),
            ("post_attention_layernorm", (WIDTH,)),
        ):
            shapes[f"model.layers.{number}.{kind}.weight"] = shape
    generator = torch.Generator().manual_seed(0)
    first = {name: torch.randn(shape, generator=generator).mul_(0.02).bfloat16() for name, shape in shapes.items()}
    size = sum(tensor.numel() * 2 for tensor in first.values())
    run = directory / "run"
    for step in (2, 4, 6):
        shutil.copytree(REPOSITORY / "fixtures" / "trainer5-full" / f"checkpoint-{step}", run / f"checkpoint-{step}")
    save_file(first, run / "checkpoint-2" / "model.safetensors")
    shutil.copy(run / "checkpoint-2" / "model.safetensors", run / "checkpoint-6" / "model.safetensors")
    for tensor in first.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator).mul_(0.0005).bfloat16())
    save_file(first, run / "checkpoint-4" / "model.safetensors")
    (directory / "size.json").write_text(json.dumps(size), encoding="utf-8")


if __name__ == "__main__":
    with built(__file__, build) as scratch:
        size = json.loads((scratch / "size.json").read_text(encoding="utf-8"))
        paths = [scratch / "run" / f"checkpoint-{step}" for step in (2, 4, 6)]
        files = [str(path / "model.safetensors") for path in paths]
        count = runs(5)
        tell(
            f"two different checkpoints of {size / 2**30:.2f} GiB (bfloat16)",
            interleaved(
                {
                    "ckpt diff": [*CKPT, "diff", files[0], files[1]],
                    "ckpt diff --jobs 1": [*CKPT, "diff", "--jobs", "1", files[0], files[1]],
                    "usual script": [sys.executable, "-c", SCRIPT, files[0], files[1]],
                },
                count,
                (0, 1),
            ),
            ("at least 3 times as fast as the script, peak memory under 250 MB",),
        )
        tell(
            "two equal files of the same size",
            interleaved(
                {
                    "ckpt diff": [*CKPT, "diff", files[0], files[2]],
                    "cmp": [str(shutil.which("cmp")), files[0], files[2]],
                },
                count,
            ),
            ("within 1.5 times cmp",),
        )
        whole = [str(path) for path in paths[:2]]
        tell(
            "the instant answer",
            interleaved(
                {
                    "ckpt diff --no-tensors": [*CKPT, "diff", "--no-tensors", *whole],
                    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
                },
                count,
                (0, 1),
            ),
            ("under 300 ms",),
        )
