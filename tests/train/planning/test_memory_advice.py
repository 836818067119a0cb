"""What a user is told whose machine has too little memory."""

import math

import jax
import jax.numpy as jnp
import pytest

from jlora.errors import JloraError
from train.classify.config import Config
from train.lm.config import LMConfig
from train.planning.memory_advice import advice, explain_out_of_memory, how_to_end


def _config(schema=LMConfig, **changes):
    return schema.model_validate({"model": "m", "output_dir": "o", "data": {"train": "t"}, **changes})


def test_the_advice_is_what_can_still_be_turned_down():
    named = advice(_config(train={"batch_size": 8, "eval_batch_size": 16}), may_quantize=True)
    for words in (
        "train.batch_size=4 train.gradient_accumulation_steps=2  half the activations, as many rows a step",
        "train.remat=true", "quantize=nf4", "data.max_length=256", "train.eval_batch_size=8",
    ):  # fmt: skip
        assert words in named
    least = {"batch_size": 1, "eval_batch_size": 1, "remat": True}
    assert advice(_config(train=least)).splitlines()[1].split()[0] == "data.max_length=256"
    full = advice(_config(method="full", train={"dtype": "float32"}))
    assert "method=lora" in full
    assert "train.dtype=bfloat16" in full
    assert "quantize" not in full


def test_a_classifier_is_advised_too():
    named = advice(_config(Config, method="full"))
    assert "train.batch_size=16" in named
    assert "data.max_length=64" in named
    assert "method=lora" in named


@pytest.mark.parametrize(("rows", "accumulation"), [(8, 1), (5, 1), (3, 4)])
def test_half_a_batch_with_accumulation_is_at_least_the_same_batch(rows, accumulation):
    named = advice(_config(train={"batch_size": rows, "gradient_accumulation_steps": accumulation})).splitlines()[1]
    half, parts = (int(argument.partition("=")[2]) for argument in named.split()[:2])
    assert half == math.ceil(rows / 2)
    assert rows * accumulation <= half * parts < rows * accumulation + half


def test_half_a_batch_is_one_that_the_devices_can_share():
    config = _config(train={"batch_size": 24})
    assert "train.batch_size=16 train.gradient_accumulation_steps=2" in advice(
        config, {"data": 8, "fsdp": 1, "tensor": 1}
    )
    assert "train.batch_size=" not in advice(
        _config(train={"batch_size": 8, "eval_batch_size": 8}), {"data": 1, "fsdp": 8, "tensor": 1}
    )


def test_several_devices_may_share_what_each_has_whole():
    assert "mesh.data=1 mesh.fsdp=8 mesh.tensor=1" in advice(_config(), {"data": 4, "fsdp": 2, "tensor": 1})
    split = advice(_config(), {"data": 1, "fsdp": 8, "tensor": 1})
    assert "mesh.data" not in split
    assert "mesh.adapters=inherit" in split
    assert "mesh" not in advice(_config())


def test_where_nothing_is_left_it_says_so():
    train, data = (
        {"batch_size": 1, "eval_batch_size": 1, "remat": True, "dtype": "bfloat16"},
        {"train": "t", "max_length": 4},
    )
    assert "take a smaller model" in advice(_config(train=train, data=data))


def test_out_of_memory_is_explained_with_what_helps():
    said = "(?s)^out of memory here: .*RESOURCE_EXHAUSTED.*\nless"
    with pytest.raises(JloraError, match=said) as caught, explain_out_of_memory(lambda: "less", " here"):
        jnp.zeros((10**13,)).block_until_ready()
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)
    with pytest.raises(JloraError, match=r"^out of memory: of the host\nless"), explain_out_of_memory(lambda: "less"):
        raise MemoryError("of the host")


def test_other_errors_pass():
    for error in (jax.errors.JaxRuntimeError("INTERNAL: no"), ValueError("x")):
        with pytest.raises(type(error), match=str(error)), explain_out_of_memory(lambda: ""):
            raise error


@pytest.mark.parametrize(("method", "words"), [("lora", "--resume export.merged=false"), ("full", "mesh.fsdp")])
def test_at_the_end_it_says_what_is_complete_and_how_to_go_on(method, words, tmp_path):
    said = how_to_end(_config(method=method), tmp_path)
    assert "complete" in said
    assert words in said
