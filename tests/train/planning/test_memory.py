"""What a step takes by XLA's own plan."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from train.loop.step import StepArguments, make_train_step
from train.planning.memory import Memory, memory_table, step_memory
from train.run.state import State

WORDS, WIDTH, ROWS, LENGTH = 4096, 64, 4, 32


class _Batch(NamedTuple):
    inputs: jax.Array
    weights: jax.Array


def _step(chunks=1):
    """A step that trains an added head on an embedding of WORDS; its logits formed in `chunks` parts."""

    def total_loss(trainable, frozen, base, batch, key):
        hidden = base["embedding"].astype(jnp.float32)[batch.inputs]

        def part(rows):
            hidden, weights = rows
            logits = hidden @ base["head"].astype(jnp.float32) + hidden @ trainable["head"]
            return jnp.sum(jax.nn.logsumexp(logits, -1) * weights)

        parts = jax.tree.map(lambda x: x.reshape(chunks, ROWS // chunks, *x.shape[1:]), (hidden, batch.weights))
        return jnp.sum(jax.lax.map(jax.checkpoint(part), parts))

    tx = optax.sgd(0.1, momentum=0.9)
    return make_train_step(total_loss, tx, 1), tx


def _arguments(tx, dtype=jnp.float32):
    spec = jax.ShapeDtypeStruct
    trainable = {"head": spec((WIDTH, WORDS), jnp.float32)}
    base = {"embedding": spec((WORDS, WIDTH), dtype), "head": spec((WIDTH, WORDS), dtype)}
    batch = _Batch(spec((ROWS, LENGTH), jnp.int32), spec((ROWS, LENGTH), jnp.float32))
    state = State(trainable, jax.eval_shape(tx.init, trainable), spec((), jnp.int32))
    return StepArguments(state, {}, base, batch, jax.eval_shape(lambda: jax.random.key(0)))


@pytest.fixture(scope="module")
def whole():
    step, tx = _step()
    return step_memory(step, _arguments(tx), WORDS)


def test_parts_are_the_bytes_of_their_arrays(whole):
    kernel = 4 * WORDS * WIDTH
    for found, expected in ((whole.base, 2 * kernel), (whole.adapter, kernel), (whole.optimizer, kernel)):
        assert found == pytest.approx(expected, abs=64)  # XLA adds a few bytes for the tuple that holds them
    assert whole.in_all == pytest.approx(whole.base + whole.adapter + whole.optimizer + whole.activations, rel=0.01)


def test_logits_are_those_formed_at_a_time(whole):
    assert whole.logits == 4 * ROWS * LENGTH * WORDS
    assert whole.activations > whole.logits
    step, tx = _step(chunks=4)
    chunked = step_memory(step, _arguments(tx), WORDS)
    assert chunked.logits == whole.logits / 4
    assert chunked.activations < whole.activations


def test_four_bits_are_half_a_byte():
    step, tx = _step()
    assert step_memory(step, _arguments(tx, jnp.uint4), WORDS).base == pytest.approx(WORDS * WIDTH, abs=64)


def test_the_table_names_every_part():
    memory = Memory(3 * 2**20, 2**20, 2**19, 5 * 2**30, 7 * 2**20, 6 * 2**30)
    lines = memory_table(memory).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "base", "adapter", "optimizer", "activations", "logits", "in all",
    ]  # fmt: skip
    assert "5,120.0 MiB" in lines[3]
    assert "of these" in lines[4]
