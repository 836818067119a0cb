"""Compares validation perplexity with PEFT: python -m benchmarks.lm.perplexity --config FILE [key=value ...].

Both sides start from PEFT's own A and B and take the same batches in the same order, AdamW and schedule the same. The
merged folder is then opened by transformers. With quantize=nf4 both sides train on a quantized base too, PEFT's by
bitsandbytes; with quantize=int8 jlora alone.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import jlora
from benchmarks.lm import setup as lm_setup
from benchmarks.lm.setup import Setup, Texts
from jlora.errors import JloraError
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.tokenizer import pad_id
from train.cli import offline
from train.cli.parse import parse_command_line
from train.cli.progress import configure_logging
from train.config.run_config import steps_of
from train.data.bucketing import plan_evaluation
from train.devices.platform import settle_dtype
from train.lm.config import COMMAND, LMConfig
from train.lm.data.batches import make_batch, width_of_packed
from train.lm.data.load import load_examples
from train.lm.model import prepare_model
from train.lm.objective import causal_loss, loss_and_hits, split_metrics
from train.loop.assemble import Training, training_of
from train.loop.evaluation import make_eval_step, run_through
from train.run.padded_lengths import lengths_of_run
from train.run.state import State


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend."""
    configure_logging()
    try:
        config = settle_dtype(offline.choose(parse_command_line(argv, COMMAND))[0])
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(config, Path(folder)), indent=1))
    except JloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(config: LMConfig, folder: Path) -> dict[str, Any]:
    """The perplexities of the validation split, by who trained or read what, and their ratios."""
    setup = lm_setup.prepare(config, folder)
    texts, perplexity = _texts(setup), _perplexity_of(setup)
    found: dict[str, Any] = {"steps": steps_of(config, len(texts.rows["train"]))[1]}
    found["before"] = perplexity(texts, setup.adapted.adapter, setup.adapted.base)
    adapter = _train(setup, setup.adapted.base, texts)
    found["jlora"] = perplexity(texts, adapter, setup.adapted.base)
    found["peft"] = _peft(setup, texts)
    jlora.save_base(folder / "merged", setup.adapted.model, jlora.merge(setup.adapted.base, adapter))
    opened = AutoModelForCausalLM.from_pretrained(folder / "merged").to(lm_setup.device())
    found["merged, by transformers"] = _torch_perplexity(opened, texts, config)
    if config.quantize is not None:
        quantized = prepare_model(setup.config, PretrainedSource(config.model)).base
        adapter = _train(setup, quantized, texts)
        found[f"jlora, {config.quantize}"] = perplexity(texts, adapter, quantized)
    if config.quantize == "nf4":
        found["peft, nf4"] = _peft(setup, texts, nf4=True)
    found["jlora / peft"] = found["jlora"] / found["peft"]
    found["merged / jlora"] = found["merged, by transformers"] / found["jlora"]
    return found


def _texts(setup: Setup) -> Texts:
    tokenizer, config = PretrainedSource(setup.config.model).tokenizer, setup.config
    rows = load_examples(config.data, tokenizer, config.seed).rows
    lengths = {name: part.lengths for name, part in rows.items()}
    buckets = lengths_of_run(config, lengths, setup.adapted.base, width=width_of_packed(rows))
    return Texts(rows, buckets, pad_id(tokenizer))


def _perplexity_of(setup: Setup) -> Callable[[Texts, Any, Any], float]:
    """perplexity(texts, adapter, base) of the validation split."""
    eval_step = make_eval_step(loss_and_hits(setup.adapted.model))

    def perplexity(texts: Texts, adapter: Any, base: Any) -> float:
        rows, size = texts.rows["validation"], setup.config.train.eval_batch_size

        def make(planned: Any, size: int, places: Any) -> Any:
            return make_batch(rows, planned, size, texts.pad_id, places)

        found = run_through(partial(eval_step, adapter, base), rows.lengths, texts.lengths, size, make)
        return split_metrics([sums for _, sums in found], int(rows.learn.sum()))["perplexity"]

    return perplexity


def _training(setup: Setup, texts: Texts) -> Training:
    loss = causal_loss(setup.adapted.model, model_dropout=setup.config.train.dropout)
    return training_of(setup.config, loss, steps_of(setup.config, len(texts.rows["train"]))[1])


def _train(setup: Setup, base: Any, texts: Texts) -> dict[str, Any]:
    """The adapter after all steps on `base`."""
    training = _training(setup, texts)
    start = jax.tree.map(lambda x: jnp.array(x, copy=True), setup.adapted.adapter)
    trainable, frozen = jlora.split(start)
    state = State(trainable, training.tx.init(trainable), jnp.int32(0))
    for batch in lm_setup.training_batches(setup.config, texts):
        state, _ = training.step(state, frozen, base, batch, jax.random.key(0))
    return jlora.combine(state.trainable, frozen)


def _peft(setup: Setup, texts: Texts, *, nf4: bool = False) -> float:
    model, config = lm_setup.torch_model(setup), setup.config
    if nf4:
        lm_setup.round_to_nf4(model)
    optimizer = lm_setup.torch_optimizer(config, model)
    rate = _training(setup, texts).rate
    for step, batch in enumerate(lm_setup.training_batches(config, texts)):
        lm_setup.torch_step(config, model, optimizer, batch, float(rate(jnp.int32(step))))
    return _torch_perplexity(model.eval(), texts, config)


def _torch_perplexity(model: Any, texts: Texts, config: LMConfig) -> float:
    size, rows, sums = config.train.eval_batch_size, texts.rows["validation"], list[tuple[float, float]]()
    with torch.no_grad():
        for planned in plan_evaluation(rows.lengths, texts.lengths, size):
            batch = make_batch(rows, planned, size, texts.pad_id)
            sums.append((float(lm_setup.torch_sums(model, batch)), float(batch.weights.sum())))
    losses, tokens = np.array(sums).sum(0)
    return math.exp(losses / tokens)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
