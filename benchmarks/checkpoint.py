"""The cost of checkpoints: python -m benchmarks.checkpoint [--config FILE] [--offline] [--json FILE] [key=value ...].

Blocks of training steps of a language model, with one checkpoint written in the background and without, take turns in
one process. What a checkpoint adds to a block, its writing to the end included, is set against `--every` steps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jlora
from benchmarks.common.timing import spread, take_turns
from jlora.pretrained.source import PretrainedSource
from jlora.sharding.to_host import to_host
from train.cli import offline
from train.cli.parse import parse_command_line
from train.devices.compilation import use_compilation_cache
from train.devices.platform import settle_dtype
from train.lm.config import COMMAND, LMConfig
from train.lm.model import prepare_model
from train.lm.objective import causal_loss
from train.lm.step_arguments import arguments
from train.loop.assemble import training_of
from train.run import checkpoints, environment
from train.run.best import Best
from train.run.checkpoints import Checkpoint
from train.run.state import State


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags, rest = _parser().parse_known_args(argv)
    use_compilation_cache()
    given = ["--config", str(flags.config), *["--offline"] * flags.offline, *rest]
    config = settle_dtype(offline.choose(parse_command_line(given, COMMAND))[0])
    results = {"environment": environment.collect(), "load_before": os.getloadavg()}
    results |= run(config, flags.steps, flags.rounds) | {"load_after": os.getloadavg()}
    print(table(results, flags.every))
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def run(config: LMConfig, steps: int, rounds: int) -> dict[str, Any]:
    """{"steps": of a block, "bytes": of a checkpoint's arrays, "seconds": {"off", "on": [one a round]}}."""
    adapted = prepare_model(config, PretrainedSource(config.model))
    loss = causal_loss(adapted.model, model_dropout=config.train.dropout)
    training = training_of(config, loss, steps)
    trainable, frozen = jlora.split(adapted.adapter)
    batch, key = _batch(config, adapted, training.tx), jax.random.key(0)
    state = State(trainable, training.tx.init(trainable), jnp.int32(0))
    best = Best(to_host(state.trainable))

    def train(after_one: Callable[[State], None]) -> None:
        nonlocal state
        for number in range(steps):
            state, values = training.step(state, frozen, adapted.base, batch, key)
            if number == 0:
                after_one(state)
        jax.block_until_ready(values)

    with tempfile.TemporaryDirectory() as folder, checkpoints.open_checkpoints(Path(folder), 2) as manager:

        def on() -> None:
            train(lambda state: checkpoints.save(manager, Checkpoint(state, best)))
            checkpoints.wait(manager)

        def off() -> None:
            train(lambda state: None)

        on()  # everything is compiled
        seconds = take_turns({"off": off, "on": on}, rounds)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((state, best.trainable)))
    return {
        "steps": steps,
        "bytes": size,
        "seconds": {name: [second for second, _ in turns] for name, turns in seconds.items()},
    }


def table(results: dict[str, Any], every: int) -> str:
    """The results in lines of at most 80 characters."""
    steps, seconds = results["steps"], results["seconds"]
    off = np.array(seconds["off"])
    added = np.array(seconds["on"]) - off
    share = spread((100 * added / (every * off / steps)).tolist())
    lines = [f"blocks of {steps} steps, checkpoints of {results['bytes'] / 2**20:.1f} MiB"]
    lines.append(f"{'':34}" + "".join(f"{name:>9}" for name in share))
    rows = {
        "seconds a step, without": spread((off / steps).tolist()),
        "seconds that a checkpoint adds": spread(added.tolist()),
        f"% slower, one every {every} steps": share,
    }
    return "\n".join(lines + [f"{name:34}" + "".join(f"{v:9.3f}" for v in row.values()) for name, row in rows.items()])


def _batch(config: LMConfig, adapted: Any, tx: Any) -> Any:
    """A batch of random tokens, every row as long as it may be."""
    shapes = arguments(config, adapted, tx).batch
    words = min(1000, adapted.model.config.vocab_size)
    draw = np.random.default_rng(config.seed)
    ids = draw.integers(0, words, shapes.targets.shape).astype(np.int32)
    inputs = {name: np.ones(spec.shape, spec.dtype) for name, spec in shapes.inputs.items()} | {"input_ids": ids}
    return type(shapes)(inputs, np.roll(ids, -1, 1), np.ones(ids.shape, np.float32))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--config", metavar="FILE", type=Path, default=Path("configs/smollm2.yaml"))
    parser.add_argument("--offline", action="store_true", help="the config's offline: block")
    parser.add_argument("--steps", metavar="N", type=int, default=5, help="steps of a block (default 5)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="blocks of each kind (default 5)")
    parser.add_argument("--every", metavar="N", type=int, default=100, help="steps a checkpoint (default 100)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures here")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
