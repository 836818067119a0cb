"""Planned steps of large Llamas on many chips: python -m benchmarks.scaling [--chip NAME] [--models 7b 70b 405b].

For each model, LoRA and QLoRA, and each number of chips, meshes are planned as `--dry-run --mesh` does, without weights
or chips. The base is split as little as fits; of several ways to split it the fastest one is printed. All steps take
the same rows: what more chips save is time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from train.cli.arguments import whole_number
from train.cli.parse import parse_command_line
from train.cli.resolve import resolve
from train.lm.config import COMMAND, LMConfig
from train.lm.step_plan import abstract_step, plan_step
from train.planning.chip_plan import ChipPlan
from train.planning.chips import CHIPS, USABLE_SHARE, Chip, chip_named
from train.planning.memory import count_bytes
from train.planning.step_time import step_time
from train.planning.virtual_mesh import force_devices

LLAMA = {"model_type": "llama", "max_position_embeddings": 8192, "tie_word_embeddings": False, "rms_norm_eps": 1e-5}
"""What the shapes below have in common."""
MODELS = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 32000},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 128256},
    "405b": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
             "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
"""Shapes of Llama 2 7B and of Llama 3.1 8B, 70B and 405B."""

METHODS = {"lora": "null", "qlora": "nf4"}
"""{method: quantize}."""

_SPLITS = (((1, 1),), ((2, 1), (1, 2)), ((4, 1), (2, 2), (1, 4)), ((8, 1), (4, 2), (2, 4), (1, 8)), ((8, 8),))
"""(fsdp, tensor) of meshes that hold the base whole on each chip, or split it over 2, 4 and 8 of a node, or over 64."""

_ROWS_A_CHIP = (4, 2, 1)
"""Rows of a microbatch in each part of it, tried in this order: more rows, fewer gathers of weights."""


class Row(NamedTuple):
    """The best plan for a number of chips, and what it takes on a chip of the kind; None where nothing fits.

    Attributes:
      model, method, chips: what was planned.
      mesh: data x fsdp x tensor. rows: of a microbatch in each part of it.
      held: bytes of one chip. seconds: of a step. unhidden: of a step without overlap. tokens: a second, of all chips.
      products: their share of the step.
      limit: what takes longest: "products", "weights" or "other collectives".
    """

    model: str
    method: str
    chips: int
    mesh: str | None = None
    rows: int | None = None
    held: int | None = None
    seconds: float | None = None
    unhidden: float | None = None
    tokens: float | None = None
    products: float | None = None
    limit: str | None = None


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags = _parser().parse_args(argv)
    force_devices(max(flags.chips))
    chip, found = chip_named(flags.chip), []
    print(f"{line(Row._fields)}\n{line(['---'] * len(Row._fields))}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in flags.models:
            config = {**LLAMA, **MODELS[model]} if flags.shape is None else json.loads(flags.shape)
            Path(folder, "config.json").write_text(json.dumps(config))
            for method in flags.methods:
                for chips in flags.chips:
                    found.append(best(folder, model, method, chips, chip, flags.rows, flags.length))
                    print(line(cells(found[-1])), flush=True)
    if flags.json:
        flags.json.write_text(json.dumps([row._asdict() for row in found], indent=1) + "\n")
    return 0


def best(folder: str, model: str, method: str, chips: int, chip: Chip, rows: int, length: int) -> Row:
    """The mesh of so many chips that splits the base as little as fits, of several the one with the fastest step."""
    whole, usable = _base_bytes(folder, method, length), chip.memory * USABLE_SHARE
    for splits in (splits for splits in _SPLITS if whole / math.prod(splits[0]) <= usable):
        found = []
        for mesh in meshes(chips, rows, splits):
            for each, plan in plans(folder, method, mesh, rows, length):
                if plan.memory.in_all <= usable:
                    found.append(_row(model, method, each, plan, chip))
                    break
        if found:
            return min(found, key=lambda row: row.seconds)
    can_share = any(True for splits in _SPLITS for _ in meshes(chips, rows, splits))
    return Row(model, method, chips, limit="does not fit" if can_share else f"{rows} rows cannot be shared")


def _base_bytes(folder: str, method: str, length: int) -> int:
    _, _, (_, _, base, *_) = abstract_step(
        planned_config(folder, 1, 1, length, quantize=METHODS[method]), {"data": 1, "fsdp": 1, "tensor": 1}
    )
    return count_bytes(base)


def meshes(chips: int, rows: int, splits: Sequence[tuple[int, int]]) -> Iterator[dict[str, int]]:
    """Those of so many chips with one of the (fsdp, tensor) in `splits` that can share the rows of a step."""
    for fsdp, tensor in splits:
        data, rest = divmod(chips, fsdp * tensor)
        if data and not rest and rows % (data * fsdp) == 0:
            yield {"data": data, "fsdp": fsdp, "tensor": tensor}


def plans(folder: str, method: str, mesh: dict[str, int], rows: int, length: int) -> Iterator[tuple[int, ChipPlan]]:
    """(rows of a microbatch in each part, the plan), from many rows to few."""
    parts = mesh["data"] * mesh["fsdp"]
    for each in _ROWS_A_CHIP:
        if rows % (parts * each) == 0:
            batch, accumulation = parts * each, rows // (parts * each)
            yield each, plan_step(planned_config(folder, batch, accumulation, length, quantize=METHODS[method]), mesh)


def planned_config(
    folder: str, batch: int, accumulation: int, length: int, *, quantize: str = "null", remat: bool = True
) -> LMConfig:
    """LoRA of rank 16 on all linear layers of the model whose config.json lies in `folder`, in bfloat16."""
    arguments = [
        f"model={folder}",
        "data.train=unread.txt",
        "output_dir=unwritten",
        f"data.max_length={length}",
        f"quantize={quantize}",
        "lora.r=16",
        "lora.target_modules=all-linear",
        f"train.batch_size={batch}",
        f"train.gradient_accumulation_steps={accumulation}",
        f"train.remat={str(remat).lower()}",
        "train.dtype=bfloat16",
    ]
    return resolve(parse_command_line(arguments, COMMAND), use_offline=False)


def _row(model: str, method: str, rows: int, plan: ChipPlan, chip: Chip) -> Row:
    times = step_time(plan, chip)
    limits = {"products": times.products, "weights": times.gathers, "other collectives": times.others}
    return Row(
        model,
        method,
        plan.chips,
        " x ".join(map(str, plan.mesh.values())),
        rows,
        plan.memory.in_all,
        times.step,
        times.unhidden,
        plan.tokens / times.step,
        times.products / times.step,
        max(limits, key=lambda name: limits[name]),
    )


def cells(row: Row) -> tuple[str, ...]:
    """The row as the table has it."""
    if None in (row.seconds, row.unhidden, row.held, row.tokens, row.products):
        return (row.model, row.method, f"{row.chips:,}", str(row.limit), *[""] * 7)
    seconds = [f"{found:,.0f}" if found >= 1000 else f"{found:.3g}" for found in (row.seconds, row.unhidden)]
    numbers = (f"{row.held / 1e9:.1f} GB", *seconds, f"{row.tokens:,.0f}", f"{row.products:.0%}")
    return (row.model, row.method, f"{row.chips:,}", str(row.mesh), str(row.rows), *numbers, str(row.limit))


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--chip", choices=list(CHIPS), default="h200", help="(default h200)")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["7b", "70b", "405b"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--chips", metavar="N", nargs="+", type=whole_number(1), default=[1, 2, 4, 8, 64, 256, 1024])
    parser.add_argument("--rows", metavar="N", type=whole_number(1), default=512, help="rows of a step (default 512)")
    parser.add_argument("--length", metavar="N", type=whole_number(4), default=2048, help="tokens a row (default 2048)")
    parser.add_argument("--shape", metavar="JSON", help="a config.json to use in place of the models' own")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures here")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
