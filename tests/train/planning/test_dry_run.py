"""The text of a dry run: memory, steps, tokens, work and time, from shapes alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from train.loop.step import StepArguments, make_train_step
from train.planning.dry_run import describe_run
from train.planning.memory import memory_table, step_memory
from train.run.state import State

WORDS = 512


class _Batch(NamedTuple):
    inputs: jax.Array
    weights: jax.Array


@pytest.fixture(scope="module")
def step_and_arguments():
    def total_loss(trainable, frozen, base, batch, key):
        return jnp.sum(jax.nn.logsumexp(batch.inputs @ trainable["w"], -1) * batch.weights)

    spec = jax.ShapeDtypeStruct
    tx = optax.sgd(0.1)
    trainable = {"w": spec((16, WORDS), jnp.float32)}
    state = State(trainable, jax.eval_shape(tx.init, trainable), spec((), jnp.int32))
    batch = _Batch(spec((4, 8, 16), jnp.float32), spec((4, 8), jnp.float32))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return make_train_step(total_loss, tx, 1), StepArguments(state, {}, {"e": spec((3,), jnp.float32)}, batch, key)


def _facts(text):
    return {line.split()[0]: line[11:] for line in text.partition("\n\n")[2].splitlines()}


def test_everything_is_said(step_and_arguments):
    step, arguments = step_and_arguments
    flops = 2 * 2 * 4 * 8 * 16 * WORDS  # forward, and the weight's gradient
    text = describe_run(step, arguments, vocab_size=WORDS, steps=300, rate=flops / 2)
    assert text.startswith(memory_table(step_memory(step, arguments, WORDS)) + "\n\n")
    facts = _facts(text)
    assert facts["steps"] == "300"
    assert facts["tokens"] == "32 a step at most"
    assert facts["work"].startswith(f"{flops / 1e12:.3g} TFLOP a step")
    assert facts["time"].startswith("about 2 s a step, 10:00 in all: an estimate")


@pytest.mark.parametrize(("seconds", "shown"), [(0.0123, "about 0.012 s a"), (7200.0, "about 2:00:00 a step")])
def test_short_and_long_steps(step_and_arguments, seconds, shown):
    rate = 2 * 2 * 4 * 8 * 16 * WORDS / seconds
    facts = _facts(describe_run(*step_and_arguments, vocab_size=WORDS, steps=None, rate=rate))
    assert facts["time"].startswith(shown)


def test_what_is_not_known_is_not_said(step_and_arguments):
    facts = _facts(describe_run(*step_and_arguments, vocab_size=WORDS, steps=None, rate=1e9))
    assert facts["steps"] == "unknown, no data read"
    assert facts["tokens"] == "32 a step at most"
    assert "in all" not in facts["time"]
