"""Planned LoRA steps compared with speeds that others published: python -m benchmarks.published.

The published speeds are NVIDIA's, measured with NeMo AutoModel on a DGX H100 in bfloat16 ("Fine-Tuning (LoRA)" in its
performance summary, April 2026, https://docs.nvidia.com/nemo/automodel/nightly/performance-summary.html): full rows of
4,096 tokens, 32 a step, 2 at a time in each part of the batch, rank 16. Our steps are planned for the same rows, mesh
and chips, as `--dry-run --mesh --chip h100` does: without weights or chips.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.scaling import LLAMA, MODELS, line, planned_config
from train.lm.step_plan import plan_step
from train.planning.chip_plan import ChipPlan
from train.planning.chips import CHIPS, USABLE_SHARE
from train.planning.step_time import step_time
from train.planning.virtual_mesh import force_devices

CHIP = CHIPS["h100"]
ROWS, LENGTH, MICROBATCH = 32, 4096, 2

_QWEN2 = {"model_type": "qwen2", "max_position_embeddings": 32768, "tie_word_embeddings": False, "rms_norm_eps": 1e-6}


class Published(NamedTuple):
    """A published speed.

    Attributes:
      model: its name. shape: its config.json.
      fsdp, tensor: how many chips share a layer, along each axis.
      tokens: per second and chip.
    """

    model: str
    shape: dict[str, object]
    fsdp: int
    tensor: int
    tokens: float


PUBLISHED = (
    Published("Llama 3 8B", {**LLAMA, **MODELS["8b"]}, 1, 1, 12472.87),
    Published(
        "Qwen2.5 7B",
        {**_QWEN2, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064},
        1, 1, 14110.05,
    ),
    Published("Llama 3 70B", {**LLAMA, **MODELS["70b"]}, 4, 2, 1091.85),
)  # fmt: skip

HEADER = ("model", "chips", "remat", "held", "published", "planned", "planned / published", "TFLOP/s published")


def main() -> int:
    """Prints a table; returns 0."""
    force_devices(max(each.fsdp * each.tensor for each in PUBLISHED))
    print(line(HEADER), line(["---"] * len(HEADER)), sep="\n", flush=True)
    for published in PUBLISHED:
        print(line(cells(published)), flush=True)
    return 0


def cells(published: Published) -> list[str]:
    """A row of the table. Tokens are per second and chip; the last cell is our plan's FLOP/s at the published speed."""
    remat, plan = best(published)
    seconds = step_time(plan, CHIP).step
    tokens = plan.tokens / seconds / plan.chips
    work = sum(product.times * product.flops for product in plan.products) * plan.chips / plan.tokens
    return [
        published.model,
        str(plan.chips),
        "on" if remat else "off",
        f"{plan.memory.in_all / 1e9:.1f} GB",
        f"{published.tokens:,.0f}",
        f"{tokens:,.0f}",
        f"{tokens / published.tokens:.2f}",
        f"{published.tokens * work / 1e12:,.0f}",
    ]


def best(published: Published) -> tuple[bool, ChipPlan]:
    """(remat, the plan): without remat if that fits into the chip, else with it."""
    mesh = {"data": 1, "fsdp": published.fsdp, "tensor": published.tensor}
    rows = MICROBATCH * published.fsdp
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(published.shape))
        for remat in (False, True):
            plan = plan_step(planned_config(folder, rows, ROWS // rows, LENGTH, remat=remat), mesh)
            if plan.memory.in_all <= CHIP.memory * USABLE_SHARE:
                break
    return remat, plan


if __name__ == "__main__":
    sys.exit(main())
