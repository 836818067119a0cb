"""What a user is told whose machine has too little memory."""

import math

import jax
import jax.numpy as jnp
import pytest

from jlora.errors import JloraError
from train.lm.config import LMConfig
from train.lm.out_of_memory import advice, explain_at_the_end, explain_out_of_memory


def _config(**changes):
    return LMConfig.model_validate({"model": "m", "output_dir": "o", "data": {"train": "t"}, **changes})


def test_the_advice_is_what_can_still_be_turned_down():
    named = advice(_config(train={"batch_size": 8, "eval_batch_size": 16}))
    for words in (
        "train.batch_size=4 train.gradient_accumulation_steps=2  half the activations, as many rows a step",
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


def test_half_a_batch_is_one_that_the_devices_can_share():
    config = _config(train={"batch_size": 24})
    assert "train.batch_size=16 train.gradient_accumulation_steps=2" in advice(config, row_parts=8)
    assert "train.batch_size=" not in advice(_config(train={"batch_size": 8, "eval_batch_size": 8}), row_parts=8)


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


@pytest.mark.parametrize(("method", "words"), [("lora", "--resume export.merged=false"), ("full", "mesh.fsdp")])
def test_at_the_end_it_says_what_is_whole_and_how_to_go_on(method, words, tmp_path):
    said = f"out of memory after the last step.*\n.*whole.*{words}"
    with pytest.raises(JloraError, match=said), explain_at_the_end(_config(method=method), tmp_path):
        raise MemoryError("of the host")
    with pytest.raises(ZeroDivisionError), explain_at_the_end(_config(), tmp_path):
        raise ZeroDivisionError
    with pytest.raises(jax.errors.JaxRuntimeError), explain_at_the_end(_config(), tmp_path):
        raise jax.errors.JaxRuntimeError("INTERNAL: no")
