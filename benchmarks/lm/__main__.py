"""A LoRA step of a causal LM beside PEFT's: python -m benchmarks.lm --config FILE [key=value ...].

The model, batch, length, dtype and adapter are the config's, the tokens random. Steps take turns in one process; the
peak memory is that of one side alone in a process of its own. On a GPU, `torch.compile` is a side too.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch

import jlora
from benchmarks.common.timing import ratio, spread, take_turns, timed
from benchmarks.lm import setup as lm_setup
from benchmarks.lm.setup import Setup
from jlora.errors import JloraError
from jlora.generation.open_model import causal_config
from jlora.pretrained.load import build
from jlora.pretrained.source import PretrainedSource
from train.cli import offline
from train.cli.parse import parse_command_line
from train.cli.progress import configure_logging
from train.devices.platform import settle_dtype
from train.lm.config import COMMAND, LMConfig
from train.lm.model import abstract_on
from train.lm.objective import causal_loss
from train.lm.step_arguments import arguments
from train.loop.assemble import training_of
from train.planning.flops import matrix_flops, matrix_rate
from train.run import environment
from train.run.state import State

_ROUNDS = 8
_RATE = 1e-4
_ALONE = "--alone="


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend."""
    configure_logging()
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    alone = [flag.removeprefix(_ALONE) for flag in argv if flag.startswith(_ALONE)]
    given = [flag for flag in argv if not flag.startswith(_ALONE)]
    try:
        config = settle_dtype(offline.choose(parse_command_line(given, COMMAND))[0])
        found = peak_memory(config, alone[0]) if alone else _all(config, given)
    except JloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=None if alone else 1))
    return 0


def _all(config: LMConfig, given: Sequence[str]) -> dict[str, Any]:
    compiling = compile_seconds(config)
    with tempfile.TemporaryDirectory() as folder:
        found = run(lm_setup.prepare(config, Path(folder)))
    return {**found, "compile_seconds": compiling, "peak_bytes": _alone(given)}


def run(setup: Setup, rounds: int = _ROUNDS) -> dict[str, Any]:
    """Seconds, tokens/s, ratios to PEFT and the share of the machine's matrix rate; all plain JSON."""
    torch.set_num_threads(environment.collect()["cpu_count"])
    config = setup.config
    compiled, flops = _jlora_step(setup)
    sides = {"jlora": compiled, "peft": _torch_step(setup, compiled=False)}
    if torch.cuda.is_available():
        sides["peft, torch.compile"] = _torch_step(setup, compiled=True)
    first = {name: timed(call)[0] for name, call in sides.items()}
    turns = take_turns(sides, rounds)
    seconds = {name: [spent for spent, _ in found] for name, found in turns.items()}
    tokens = math.prod(lm_setup.random_batch(config, 2).targets.shape)
    medians = {name: spread(values)["median"] for name, values in seconds.items()}
    rate = matrix_rate(jnp.dtype(config.train.dtype))
    return {
        "seconds": seconds,
        "first_call_seconds": first,
        "tokens_per_second": {name: tokens / value for name, value in medians.items()},
        "speed_against": {name: ratio(seconds[name], seconds["jlora"]) for name in sides if name != "jlora"},
        "matrix_flops_a_step": flops,
        "matrix_flops_per_second": rate,
        "share_of_matrix_rate": flops / rate / medians["jlora"],
    }


def compile_seconds(config: LMConfig) -> dict[str, float]:
    """{"30 layers": seconds to trace and compile the step, "60 layers": the same for twice as many}; no weights."""
    found, stored = {}, causal_config(PretrainedSource(config.model))
    for factor in (1, 2):
        deeper = copy.deepcopy(stored)
        deeper.num_hidden_layers = factor * stored.num_hidden_layers
        model = build(deeper, dtype=jnp.dtype(config.train.dtype), remat=config.train.remat)
        training = training_of(config, causal_loss(model, model_dropout=config.train.dropout), 1000)
        inputs = arguments(config, abstract_on(config, model), training.tx)
        seconds, _ = timed(lambda training=training, inputs=inputs: training.step.lower(*inputs).compile())
        found[f"{deeper.num_hidden_layers} layers"] = seconds
    return found


def peak_memory(config: LMConfig, side: str) -> dict[str, int]:
    """Bytes at the peak of a few steps of one side: of the GPU, or of the process on a CPU (Linux)."""
    call = _only(config, side)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of loading both sides, does not count
    for _ in range(3):
        call()
    if side == "jlora" and (stats := jax.local_devices()[0].memory_stats()):
        return {side: stats["peak_bytes_in_use"]}
    if side == "peft" and torch.cuda.is_available():
        return {side: torch.cuda.max_memory_allocated()}
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return {side: int(peak) * 1024}


def _only(config: LMConfig, side: str) -> Callable[[], float]:
    """The step of one side, nothing of the other being kept."""
    with tempfile.TemporaryDirectory() as folder:
        setup = lm_setup.prepare(config, Path(folder))
        return _jlora_step(setup)[0] if side == "jlora" else _torch_step(setup, compiled=False)


def _alone(given: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for side in ("jlora", "peft"):
        command = [sys.executable, "-m", "benchmarks.lm", *given, f"{_ALONE}{side}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def _jlora_step(setup: Setup) -> tuple[Callable[[], float], int]:
    """(one step a call, FLOPs of its matrix products)"""
    config, base = setup.config, setup.adapted.base
    loss = causal_loss(setup.adapted.model, model_dropout=config.train.dropout)
    training = training_of(config, loss, 1000)
    trainable, frozen = jlora.split(jax.tree.map(lambda x: jnp.array(x, copy=True), setup.adapted.adapter))
    state = State(trainable, training.tx.init(trainable), jnp.int32(0))
    batch = jax.tree.map(jnp.asarray, lm_setup.random_batch(config, setup.adapted.model.config.vocab_size))
    key = jax.random.key(0)
    flops = matrix_flops(training.step.trace(state, frozen, base, batch, key).jaxpr)

    def call() -> float:
        nonlocal state
        state, values = training.step(state, frozen, base, batch, key)
        return float(values["loss"])

    return call, flops


def _torch_step(setup: Setup, *, compiled: bool) -> Callable[[], float]:
    config, model = setup.config, lm_setup.torch_model(setup)
    optimizer = lm_setup.torch_optimizer(config, model)
    batch = lm_setup.random_batch(config, setup.adapted.model.config.vocab_size)
    fast: Any = torch.compile(model) if compiled else model
    return lambda: lm_setup.torch_step(config, fast, optimizer, batch, _RATE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
