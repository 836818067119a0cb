"""Compilation of an adapted encoder step: python -m benchmarks.compile [--layers N] [--hidden N] [--json FILE].

A training step of BERT with LoRA on all linears of its scanned layers is traced and compiled, once through
`jlora.adapt` and once with the same LoRA written by hand inside the model. Each repeat runs in a process of its own,
without a compilation cache, and the two take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import BertConfig

import jlora
from benchmarks.common.timing import ratio, spread, take_turns, timed
from benchmarks.sides import by_hand
from jlora.models.registry import abstract_base, build
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from train.run import environment

SIDES = ("adapted", "by hand")
PHASES = ("trace", "compile", "total")
_TARGETS = ["query", "key", "value", "dense"]


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags = _parser().parse_args(argv)
    if flags.side:
        print(json.dumps(measure(flags.side, flags.layers, flags.hidden)))
        return 0
    results = {"environment": environment.collect(), "load_before": os.getloadavg()}
    results |= run(flags.layers, flags.hidden, flags.repeats) | {"load_after": os.getloadavg()}
    print(table(results))
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def run(layers: int, hidden: int, repeats: int) -> dict[str, Any]:
    """{"layers", "hidden", "seconds": {side: {phase: [one a repeat]}}, "ratio": {phase: spread}, "losses"}.

    Raises:
      JloraError: the two sides' losses differ: they are not the same step.
    """
    sides = {side: partial(_in_a_fresh_process, side, layers, hidden) for side in SIDES}
    found = {side: [result for _, result in turns] for side, turns in take_turns(sides, repeats).items()}
    losses = {side: results[0]["losses"] for side, results in found.items()}
    if not np.allclose(*losses.values(), rtol=1e-4):
        raise jlora.JloraError(f"expected the same losses on both sides, found {losses}")
    seconds = {
        side: {phase: [result[phase] for result in results] for phase in PHASES} for side, results in found.items()
    }
    ratios = {phase: ratio(seconds["adapted"][phase], seconds["by hand"][phase]) for phase in PHASES}
    return {"layers": layers, "hidden": hidden, "seconds": seconds, "ratio": ratios, "losses": losses}


def _in_a_fresh_process(side: str, layers: int, hidden: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.compile", "--side", side]
    sizes = ["--layers", str(layers), "--hidden", str(hidden)]
    done = subprocess.run([*command, *sizes], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(side: str, layers: int, hidden: int) -> dict[str, Any]:
    """{"trace", "compile", "total": seconds, "losses": of two steps} of one side, in this process."""
    jax.config.update("jax_enable_compilation_cache", False)
    config, apply, base, adapter, batch = prepare(layers, hidden)
    logits = jlora.adapt(apply) if side == "adapted" else partial(by_hand.logits, config)
    trainable, frozen = jlora.split(adapter)
    optimizer = optax.adam(1e-3)
    step, state = make_step(logits, optimizer), optimizer.init(trainable)
    arguments = (trainable, state, frozen, base, batch)
    traced, lowered = timed(lambda: step.lower(*arguments))
    compiled, program = timed(lowered.compile)
    losses = []
    for _ in range(2):
        trainable, state, loss = program(trainable, state, frozen, base, batch)
        losses.append(float(loss))
    return {"trace": traced, "compile": compiled, "total": traced + compiled, "losses": losses}


def make_step(logits: Callable, optimizer: optax.GradientTransformation) -> Any:
    """(trainable, state, frozen, base, batch) -> (trainable, state, loss), jitted."""

    def loss_of(trainable: Any, frozen: Any, base: Any, batch: Any) -> jax.Array:
        found = logits(base, jlora.combine(trainable, frozen), batch)
        return optax.softmax_cross_entropy_with_integer_labels(found, jnp.zeros(len(found), jnp.int32)).mean()

    @jax.jit
    def step(trainable: Any, state: Any, frozen: Any, base: Any, batch: Any) -> tuple:
        loss, gradient = jax.value_and_grad(loss_of)(trainable, frozen, base, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(trainable, updates), state, loss

    return step


def prepare(layers: int, hidden: int) -> tuple[BertConfig, Callable, Any, dict[str, Any], dict[str, jax.Array]]:
    """(config, the model's apply, random base, adapter that changes something, batch of (8, 32) tokens)."""
    config = BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        max_position_embeddings=64,
    )
    model, rng = build(config), np.random.default_rng(0)
    shapes = abstract_base(model)
    values = {path: _random(rng, path, leaf.shape) for path, leaf in leaves_by_path(shapes).items()}
    batch = {"input_ids": jnp.asarray(rng.integers(5, 1000, (8, 32)), jnp.int32)}
    batch["attention_mask"] = jnp.ones_like(batch["input_ids"])
    lora = jlora.LoraConfig(
        r=8, lora_alpha=16, target_modules=_TARGETS, exclude_modules=["bert.pooler.dense"], init_lora_weights=False
    )
    base = replace_leaves(shapes, values)
    return config, model.apply, base, jlora.init(jax.random.key(0), lora, base, model.apply, batch), batch


def _random(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> jax.Array:
    values = rng.normal(0, 0.02, shape).astype(np.float32)
    return jnp.asarray(values + np.float32(path.endswith("/scale")))


def table(results: dict[str, Any]) -> str:
    """The results in lines of at most 80 characters."""
    lines = [
        f"BERT, {results['layers']} layers of {results['hidden']}, scanned; LoRA on all linears; one training step"
    ]
    lines.append(_line("seconds", "min", "q1", "median", "q3"))
    for phase in PHASES:
        for side in SIDES:
            values = spread(results["seconds"][side][phase]).values()
            lines.append(_line(f"  {phase}, {side}", *(f"{value:.3f}" for value in values)))
        values = results["ratio"][phase].values()
        lines.append(_line(f"  {phase}, adapted / by hand", *(f"{value:.2f}" for value in values)))
    return "\n".join(lines)


def _line(label: str, *cells: str) -> str:
    return f"{label:40}" + "".join(f"{cell:>9}" for cell in cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile", description=__doc__)
    parser.add_argument("--layers", metavar="N", type=int, default=12, help="number of layers (default 12)")
    parser.add_argument("--hidden", metavar="N", type=int, default=768, help="width, a multiple of 64 (default 768)")
    parser.add_argument("--repeats", metavar="N", type=int, default=5, help="processes of each side (default 5)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # what the fresh processes are called with
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
