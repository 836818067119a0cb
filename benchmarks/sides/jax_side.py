"""One step in JAX, in a process of its own: python -m benchmarks.sides.jax_side --side SIDE --model NAME --rows N ...

`lora` and `full` are the trainer's own steps. Beside them, on the same linen model, loss and optimizer: `qwix`, Qwix's
LoRA; `dense`, which forms W + AB and differentiates through it; `by hand`, LoRA written inside an encoder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jlora
from benchmarks.common.alternate import serve
from benchmarks.common.timing import timed
from benchmarks.common.work import Work, side_and_work
from jlora.lora.adapted_model import Adapted
from jlora.pretrained.source import PretrainedSource
from train.classify.config import COMMAND as CLASSIFY
from train.classify.data import batches as classify_batches
from train.classify.data.labels import Labels
from train.classify.loss import classification_loss, row_losses
from train.classify.model import prepare_model as prepare_classifier
from train.cli.parse import parse_command_line
from train.cli.progress import configure_logging
from train.cli.resolve import resolve
from train.config.run_config import learning_rate_of
from train.devices.platform import settle_dtype
from train.lm.config import COMMAND as LM
from train.lm.data import batches as lm_batches
from train.lm.model import prepare_model as prepare_language_model
from train.lm.objective import causal_loss
from train.loop import assemble
from train.loop.optimizer import optimizer, schedule
from train.loop.step import make_train_step
from train.run.state import State

SIDES = ("lora", "full", "qwix", "dense", "by hand")
_STEPS = 1000
"""The length of the learning rate's schedule."""
_LABELS = Labels("single_label_classification", ("LABEL_0", "LABEL_1"))


def main(argv: Sequence[str]) -> int:
    """Takes a step for each line on stdin."""
    side, work = side_and_work(argv, SIDES)
    configure_logging()
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    serve(partial(start, work, side))
    return 0


def start(work: Work, side: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """(one step a call, which returns the loss; {"trainable", "compile_seconds", "temporary_bytes"})."""
    step, state, frozen, base = parts(work, side)
    batch, key = jax.tree.map(jnp.asarray, batch_of(work)), jax.random.key(0)
    seconds, compiled = timed(lambda: step.lower(state, frozen, base, batch, key).compile())
    facts = {
        "trainable": sum(leaf.size for leaf in jax.tree.leaves(state.trainable)),
        "compile_seconds": seconds,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }

    def call() -> float:
        nonlocal state
        state, values = compiled(state, frozen, base, batch, key)
        return float(values["loss"])

    return call, facts


def parts(work: Work, side: str) -> tuple[Any, State, Any, Any]:
    """(train_step, its state, frozen, base)"""
    config = trainer_config(work, "full" if side == "full" else "lora")
    source = PretrainedSource(config.model)
    adapted = prepare_classifier(config, source, _LABELS) if work.is_encoder else prepare_language_model(config, source)
    if side == "qwix":
        from benchmarks.sides.qwix_side import with_qwix  # Qwix is needed for this side alone

        loss, trainable, frozen, base = with_qwix(work, adapted)
    else:
        loss, (trainable, frozen), base = loss_of(work, adapted, side), jlora.split(adapted.adapter), adapted.base
    if side in ("lora", "full"):
        step, tx, _ = assemble.training_of(config, loss, _STEPS)
    else:
        tx = optimizer(config.train, schedule(config.train, learning_rate_of(config), _STEPS))
        step = make_train_step(loss, tx, 1)
    trainable = jax.tree.map(lambda x: jnp.array(x, copy=True), trainable)  # the step donates it
    return step, State(trainable, tx.init(trainable), jnp.int32(0)), frozen, base


def trainer_config(work: Work, method: str) -> Any:
    """The trainer's config of the work, as its command line makes it."""
    given = [f"model={work.base}", f"method={method}", f"data.max_length={work.length}"]
    given += [f"train.batch_size={work.rows}", f"train.dtype={work.dtype}"]
    given += [f"train.dropout={str(work.dropout).lower()}", "data.train=none.tsv", "output_dir=none"]  # never opened
    given += [f"lora.from={work.adapter}", f"lora.lora_dropout={0.1 if work.dropout else 0.0}"] * (method == "lora")
    given += [f"quantize={work.quantize}"] * (work.quantize is not None)
    return settle_dtype(resolve(parse_command_line(given, CLASSIFY if work.is_encoder else LM), use_offline=False))


def batch_of(work: Work) -> Any:
    """The tokens that every side trains on."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30000, (work.rows, work.length + 1), np.int32)
    inputs = {"input_ids": ids[:, :-1], "attention_mask": np.ones_like(ids[:, 1:])}
    if work.is_encoder:
        inputs["token_type_ids"] = np.zeros_like(ids[:, 1:])
        labels = np.arange(work.rows, dtype=np.int32)
        return classify_batches.Batch(inputs, labels % 2, np.ones(work.rows, np.float32), labels)
    return lm_batches.Batch(inputs, ids[:, 1:], np.ones((work.rows, work.length), np.float32))


def loss_of(work: Work, adapted: Adapted, side: str) -> Any:
    """The loss of the trainer, or of another way to bring A and B into the same model."""
    model = adapted.model
    if side == "by hand":
        from benchmarks.sides import by_hand

        def logits(base: Any, adapter: Any, inputs: Any) -> jax.Array:
            heads = {path: entry for path, entry in adapter.items() if isinstance(entry, jlora.Full)}
            low_rank = {path: entry for path, entry in adapter.items() if "/encoder/layer/" in path}
            return by_hand.logits(model.config, jlora.merge(base, heads), low_rank, inputs)

        return encoder_loss(logits)
    if work.is_encoder:
        loss = classification_loss(model.apply, _LABELS.problem_type, model_dropout=work.dropout)
    else:
        loss = causal_loss(model, model_dropout=work.dropout)
    if side != "dense":
        return loss

    def through_the_sum(trainable: Any, frozen: Any, base: Any, batch: Any, key: jax.Array) -> jax.Array:
        return loss({}, {}, jlora.merge(base, jlora.combine(trainable, frozen)), batch, key)

    return through_the_sum


def encoder_loss(logits: Callable[[Any, Any, Any], jax.Array]) -> Any:
    """`classification_loss` of logits(base, adapter, inputs)."""

    def loss(trainable: Any, frozen: Any, base: Any, batch: Any, key: jax.Array) -> jax.Array:
        found = logits(base, jlora.combine(trainable, frozen), batch.inputs)
        return jnp.sum(row_losses(_LABELS.problem_type, found, batch.labels) * batch.weights)

    return loss


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
