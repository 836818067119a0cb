"""LoftQ's alternation is PEFT's, and base and adapter come nearer to the weights than quantization alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.algebra.merge import update
from jlora.lora.matrices import leaf_to_matrices, to_matrices
from jlora.tree.quantized import is_quantized
from tests.support.adapters.lora_cases import normal

X = normal(9, 4, 64)
CONFIG = jlora.LoraConfig(r=8, lora_alpha=8, target_modules=["up"])


def model(base, x):
    x, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, base["layers"]["up"])
    return jnp.tanh(x @ base["down"]) @ base["lm_head"]


def weights():
    return {"layers": {"up": normal(0, 2, 64, 64) / 8}, "down": normal(1, 64, 32) / 8, "lm_head": normal(2, 32, 5)}


def start(config=CONFIG, **options):
    return jlora.init_loftq(jax.random.key(0), config, weights(), model, X, **options)


def distance(quantized, adapter):
    """|W - Q - s B A| of the adapted leaf."""
    leaf = jlora.dequantize(quantized)["layers"]["up"] + update(adapter["layers/up"])
    return float(jnp.linalg.norm(weights()["layers"]["up"] - leaf))


def peft(weight, kind, rank, iterations):
    """(dequantized weight, B A) by the loop of peft.utils.loftq_utils.loftq_init, which asks for a GPU; (out, in)."""
    torch = pytest.importorskip("torch", reason="the oracle is PEFT's loop in PyTorch")
    functional = pytest.importorskip("bitsandbytes", reason="the oracle quantizes with bitsandbytes").functional
    weight = torch.from_numpy(np.array(weight))
    rest = weight.clone()
    for _ in range(iterations):
        if kind == "nf4":
            codes, state = functional.quantize_4bit(rest, blocksize=64, compress_statistics=True, quant_type="nf4")
            dense = functional.dequantize_4bit(codes, state)
        else:
            codes, scales, _ = functional.int8_vectorwise_quant(rest)
            dense = functional.int8_vectorwise_dequant(codes, scales)
        u, s, vh = torch.linalg.svd(weight - dense, full_matrices=False)
        product = (u[:, :rank] * s[:rank]) @ vh[:rank]
        rest = weight - product
    return dense.numpy(), product.numpy()


@pytest.mark.parametrize(("kind", "iterations", "tolerance"), [("int8", 1, 1e-4), ("int8", 3, 1e-4), ("nf4", 1, 0.05)])
def test_the_alternation_is_that_of_peft(kind, iterations, tolerance):
    quantized, adapter = start(kind=kind, iterations=iterations)
    entry = adapter["layers/up"]
    dense, found = (
        leaf_to_matrices(entry, leaf) for leaf in (jlora.dequantize(quantized)["layers"]["up"], update(entry))
    )
    for layer, weight in enumerate(leaf_to_matrices(entry, weights()["layers"]["up"])):
        expected, product = peft(weight, kind, 8, iterations)
        assert np.linalg.norm(dense[layer] - expected) < tolerance * np.linalg.norm(expected - weight)
        assert np.linalg.norm(found[layer] - product) < tolerance * np.linalg.norm(product)
        assert to_matrices(entry)[layer].a.shape == (8, 64)


def test_the_error_falls():
    plain = jlora.quantize(weights(), "nf4", model, X)
    adapter = jlora.init(jax.random.key(0), CONFIG, plain, model, X)
    quantization = distance(plain, adapter)  # B is 0
    once, often = (distance(*start(iterations=count)) for count in (1, 5))
    assert once < 0.85 * quantization
    assert often < 0.95 * once


def test_the_start_does_not_depend_on_alpha():
    halved = start(dataclasses.replace(CONFIG, lora_alpha=2))[1]["layers/up"]
    found, expected = update(halved), update(start()[1]["layers/up"])
    assert jnp.abs(found - expected).max() < 1e-5


def test_what_has_no_adapter_is_quantized_and_heads_are_not():
    quantized, adapter = start(dataclasses.replace(CONFIG, r=4, target_modules=["up", "lm_head"]))
    assert is_quantized(quantized["layers"]["up"])
    assert is_quantized(quantized["down"])
    assert not is_quantized(quantized["lm_head"])
    assert not adapter["lm_head"].b.any()
    plain = jlora.quantize(weights(), "nf4", model, X)
    assert (quantized["down"].stored.codes == plain["down"].stored.codes).all()


def test_with_dora_the_magnitude_is_that_of_the_sum():
    quantized, adapter = start(dataclasses.replace(CONFIG, use_dora=True))
    merged = jlora.merge(quantized, adapter)["layers"]["up"]
    plain = jlora.dequantize(quantized)["layers"]["up"] + update(adapter["layers/up"])
    assert jnp.abs(merged - plain).max() < 1e-5


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"init_lora_weights": "pissa"}, {}, "expected 'loftq' or true, found 'pissa'"),
        ({"lora_alpha": 0}, {}, "expected an alpha above 0 for LoftQ"),
        ({}, {"iterations": 0}, "expected one iteration or more, found 0"),
        ({}, {"kind": "fp4"}, "expected nf4 or int8, found 'fp4'"),
    ],
)
def test_what_it_cannot_start_from_is_refused(fields, options, message):
    with pytest.raises(jlora.JloraError, match=message):
        start(dataclasses.replace(CONFIG, **fields), **options)


def test_a_quantized_base_is_refused():
    base = jlora.quantize(weights(), "nf4", model, X)
    with pytest.raises(jlora.JloraError, match="expected a dense weight to quantize, found a quantized one"):
        jlora.init_loftq(jax.random.key(0), CONFIG, base, model, X)
