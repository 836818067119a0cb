"""What a step takes by XLA's own plan, and what a user is told who has less."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from jlora.errors import JloraError
from train.lm.config import LMConfig
from train.lm.memory import Memory, advice, explain_out_of_memory, memory_table, step_memory
from train.step import State, make_train_step

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
    return state, {}, base, batch, jax.eval_shape(lambda: jax.random.key(0))


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


def _config(**changes):
    return LMConfig.model_validate({"model": "m", "output_dir": "o", "data": {"train": "t"}, **changes})


def test_the_advice_is_what_can_still_be_turned_down():
    named = advice(_config(train={"batch_size": 8, "eval_batch_size": 16}))
    for words in (
        "train.batch_size=4 train.gradient_accumulation_steps=2  half the activations, the same step",
        "train.remat=true", "quantize=nf4", "data.max_length=256", "train.eval_batch_size=8",
    ):  # fmt: skip
        assert words in named
    least = {"batch_size": 1, "eval_batch_size": 1, "remat": True}
    assert advice(_config(quantize="nf4", train=least)).split()[0] == "data.max_length=256"
    full = advice(_config(method="full", train={"dtype": "float32"}))
    assert "method=lora" in full
    assert "train.dtype=bfloat16" in full
    assert "quantize" not in full
    assert "quantize" not in advice(_config(lora={"init_lora_weights": "pissa"}))


@pytest.mark.parametrize(("rows", "accumulation"), [(8, 1), (5, 1), (3, 4)])
def test_half_a_batch_with_accumulation_is_at_least_the_same_batch(rows, accumulation):
    named = advice(_config(train={"batch_size": rows, "gradient_accumulation_steps": accumulation})).split()
    half, parts = (int(argument.partition("=")[2]) for argument in named[:2])
    assert half == math.ceil(rows / 2)
    assert rows * accumulation <= half * parts < rows * accumulation + half


def test_out_of_memory_is_explained_with_figures_and_advice():
    with (
        pytest.raises(
            JloraError, match=r"(?s)^out of memory: .*RESOURCE_EXHAUSTED.*base +3 MiB.*quantize=nf4"
        ) as caught,
        explain_out_of_memory(_config(), lambda: "base  3 MiB"),
    ):
        jnp.zeros((10**13,)).block_until_ready()
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)
    with pytest.raises(JloraError, match="out of memory"), explain_out_of_memory(_config(), lambda: ""):
        raise MemoryError("of the host")


def test_figures_that_cannot_be_had_leave_the_advice():
    def figures():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: in the compiler")

    with pytest.raises(JloraError, match="quantize=nf4") as caught, explain_out_of_memory(_config(), figures):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.")
    assert "in the compiler" not in str(caught.value)


def test_other_errors_pass():
    for error in (jax.errors.JaxRuntimeError("INTERNAL: no"), ValueError("x")):
        with pytest.raises(type(error), match=str(error)), explain_out_of_memory(_config(), lambda: ""):
            raise error
