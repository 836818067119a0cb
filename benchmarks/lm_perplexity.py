"""Validation perplexity beside PEFT's: python -m benchmarks.lm_perplexity --config FILE [key=value ...].

Both sides start from PEFT's own A and B and take the same batches in the same order, AdamW and schedule the same. The
merged folder is then opened by transformers. With quantize=nf4 both sides train on a quantized base too, PEFT's by
bitsandbytes; with quantize=int8 jlora alone.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import jlora
from benchmarks.lm import setup as lm_setup
from benchmarks.lm.setup import Setup
from jlora.errors import JloraError
from train.cli import offline
from train.cli.parse import parse
from train.cli.progress import configure_logging
from train.config.run_config import steps_of
from train.data.bucketing import plan_evaluation
from train.devices.platform import settled
from train.lm.config import COMMAND, LMConfig
from train.lm.data.batches import make_batch, row_lengths
from train.lm.data.load import load_examples
from train.lm.evaluate import Task, evaluated
from train.lm.model import prepare_model
from train.lm.objective import make_eval_step
from train.lm.step_arguments import training_of
from train.run.state import State
from train.sources.model_files import load_tokenizer, pad_id


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend."""
    configure_logging()
    try:
        config = settled(offline.choose(parse(argv, COMMAND))[0])
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(config, Path(folder)), indent=1))
    except JloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(config: LMConfig, folder: Path) -> dict[str, Any]:
    """The perplexities of the validation split, by who trained or read what, and their ratios."""
    setup = lm_setup.prepare(config, folder)
    task = _task(setup)
    found: dict[str, Any] = {"steps": steps_of(config, len(task.data.rows["train"]))[1]}
    found["before"] = evaluated(task, setup.adapted.adapter, setup.adapted.base, "validation")["perplexity"]
    adapter = _train(setup, setup.adapted.base, task)
    found["jlora"] = evaluated(task, adapter, setup.adapted.base, "validation")["perplexity"]
    found["peft"] = _peft(setup, task)
    jlora.save_base(folder / "merged", setup.adapted.model, jlora.merge(setup.adapted.base, adapter))
    opened = AutoModelForCausalLM.from_pretrained(folder / "merged").to(lm_setup.device())
    found["merged, by transformers"] = _torch_perplexity(opened, task)
    if config.quantize is not None:
        quantized = prepare_model(setup.config).base
        adapter = _train(setup, quantized, task)
        found[f"jlora, {config.quantize}"] = evaluated(task, adapter, quantized, "validation")["perplexity"]
    if config.quantize == "nf4":
        found["peft, nf4"] = _peft(setup, task, nf4=True)
    found["jlora / peft"] = found["jlora"] / found["peft"]
    found["merged / jlora"] = found["merged, by transformers"] / found["jlora"]
    return found


def _task(setup: Setup) -> Task:
    tokenizer, config = load_tokenizer(setup.config.model), setup.config
    data = load_examples(config.data, tokenizer, config.seed)
    lengths = row_lengths(config, data.rows, setup.adapted.base)
    eval_step = make_eval_step(setup.adapted.model)
    return Task(data, lengths, eval_step, config.train.eval_batch_size, pad_id(tokenizer))


def _train(setup: Setup, base: Any, task: Task) -> dict[str, Any]:
    """The adapter after all steps on `base`."""
    steps = steps_of(setup.config, len(task.data.rows["train"]))[1]
    training = training_of(setup.config, setup.adapted.model, steps)
    start = jax.tree.map(lambda x: jnp.array(x, copy=True), setup.adapted.adapter)
    trainable, frozen = jlora.split(start)
    state = State(trainable, training.tx.init(trainable), jnp.int32(0))
    for batch in lm_setup.training_batches(setup.config, task):
        state, _ = training.step(state, frozen, base, batch, jax.random.key(0))
    return jlora.combine(state.trainable, frozen)


def _peft(setup: Setup, task: Task, *, nf4: bool = False) -> float:
    model, config = lm_setup.torch_model(setup), setup.config
    if nf4:
        lm_setup.round_to_nf4(model)
    optimizer = lm_setup.torch_optimizer(config, model)
    rate = training_of(config, setup.adapted.model, steps_of(config, len(task.data.rows["train"]))[1]).rate
    for step, batch in enumerate(lm_setup.training_batches(config, task)):
        lm_setup.torch_step(config, model, optimizer, batch, float(rate(jnp.int32(step))))
    return _torch_perplexity(model.eval(), task)


def _torch_perplexity(model: Any, task: Task) -> float:
    rows, sums = task.data.rows["validation"], list[tuple[float, float]]()
    with torch.no_grad():
        for planned in plan_evaluation(rows.lengths, task.lengths, task.batch_size):
            batch = make_batch(rows, planned, task.batch_size, task.pad_id)
            sums.append((float(lm_setup.torch_sums(model, batch)), float(batch.weights.sum())))
    losses, tokens = np.array(sums).sum(0)
    return math.exp(losses / tokens)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
