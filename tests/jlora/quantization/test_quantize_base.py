"""A quantized base: which weights, and that `adapt` runs on it as on the dense weights that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import GPT2Config, LlamaConfig

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.models.registry import abstract_base, build, example_batch
from jlora.quantization.encode import quantize_leaf
from jlora.transform.input_moments import second_moments
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from jlora.tree.output_heads import is_linear_weight
from jlora.tree.quantized import is_quantized
from tests.support.adapters import lora_cases
from tests.support.adapters.lora_cases import normal
from tests.support.functions.every_function import FUNCTIONS

QUICK = {"xla_backend_optimization_level": 0}
LAYERS, WIDTH, TOKENS = 3, 64, 8


def layers(base: Any, x: jax.Array) -> jax.Array:
    """A scan of rematerialized layers of two products, cast to the dtype of x, and a head."""

    def layer(x: jax.Array, kernels: Any) -> tuple[jax.Array, None]:
        return x + jnp.tanh(x @ kernels["up"].astype(x.dtype)) @ kernels["down"].astype(x.dtype), None

    x, _ = jax.lax.scan(jax.checkpoint(layer), x, base["layers"])
    return x.astype(jnp.float32) @ base["head"]


def weights(count: int = LAYERS, width: int = WIDTH) -> Any:
    stacks = {
        name: normal(seed, count, width, width) / np.float32(width**0.5) for seed, name in enumerate(["up", "down"])
    }
    return {"layers": stacks, "head": normal(5, width, 4)}


X = normal(9, TOKENS, WIDTH)


def targets(**fields: Any) -> jlora.LoraConfig:
    return jlora.LoraConfig(r=2, lora_alpha=3, target_modules=["up", "down"], init_lora_weights=False, **fields)


def value_and_gradient(fn: Callable, adapter: Any, base: Any, *args: Any) -> tuple[jax.Array, Any]:
    def loss(adapter: Any) -> tuple[jax.Array, jax.Array]:
        value = jlora.adapt(fn)(base, adapter, *args)
        return jnp.sum(value * normal(7, *value.shape)), value

    gradient, value = jax.grad(loss, has_aux=True)(adapter)
    return value, gradient


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    """The same trees of numbers, each array to `tolerance` of its largest number."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in pairs:
        assert jnp.abs(one - other).max() <= tolerance * jnp.abs(other).max()


@pytest.mark.parametrize(
    "name",
    [
        "linen_attention", "linen_conv_grouped", "equinox_attention", "haiku_lstm", "several_products",
        "nested_jit_and_checkpoint", "scan_over_layers", "scan_of_scan", "while_loop", "cond_and_switch",
        "fori_loop_over_layers", "loop_that_picks_layers", "custom_derivatives_beside", "experts",
        "mapped_and_weights_on_the_left", "fused_projections", "tied_embedding", "shard_map",
    ],
)  # fmt: skip
def test_any_function_runs_as_on_the_dense_weights(name):
    case = FUNCTIONS[name]()
    kind = "nf4" if len(name) % 2 else "int8"
    quantized = jlora.quantize(case.base, kind, case.fn, *case.args, target_modules=".*")
    assert any(is_quantized(leaf) for leaf in leaves_by_path(quantized).values())
    config = jlora.LoraConfig(r=2, lora_alpha=3, target_modules=".*", **case.fields)
    adapter = lora_cases.randomized(abstract_adapter(config, quantized, case.fn, *case.args))

    def both(adapter: Any, *bases: Any) -> list:
        run = jlora.adapt(case.fn)
        if not case.differentiable:
            return [run(base, adapter, *case.args) for base in bases]
        return [value_and_gradient(case.fn, adapter, base, *case.args) for base in bases]

    dense = jlora.dequantize(quantized)
    found, expected = jax.jit(both, compiler_options=QUICK)(adapter, quantized, dense)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert jnp.abs(one - other).max() <= 5e-6 * max(1, jnp.abs(other).max())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("nf4", {}), ("nf4", {"use_rslora": True}), ("nf4", {"use_dora": True}), ("int8", {})],
    ids=["lora", "rslora", "dora", "int8"],
)
def test_values_and_gradients_are_those_of_the_dense_weights(kind, fields):
    quantized = jlora.quantize(weights(), kind, layers, X, target_modules=["up", "down"])
    dense = jax.jit(jlora.dequantize)(quantized)
    adapter = jlora.init(jax.random.key(0), targets(**fields), quantized, layers, X)
    assert_same(adapter, jlora.init(jax.random.key(0), targets(**fields), dense, layers, X), 1e-6)
    run = jax.jit(lambda adapter, base: value_and_gradient(layers, adapter, base, X))
    assert_same(run(adapter, quantized), run(adapter, dense), 2e-6)
    assert_same(jlora.adapt(layers)(quantized, None, X), layers(dense, X), 1e-6)
    assert_same(jlora.merge(quantized, adapter), jlora.merge(dense, adapter), 1e-6)
    assert_same(jlora.adapt(layers)(quantized, adapter, X), layers(jlora.merge(quantized, adapter), X), 1e-5)


def test_many_adapters_on_one_quantized_base():
    quantized = jlora.quantize(weights(), "nf4", layers, X)
    config = targets()
    adapters = [jlora.init(jax.random.key(seed), config, quantized, layers, X) for seed in range(3)]
    together = jax.tree.map(lambda *parts: jnp.stack(parts), *adapters)
    run = jlora.adapt(layers)
    found = jax.jit(jax.vmap(lambda adapter: run(quantized, adapter, X)))(together)
    assert_same(found, jnp.stack([run(quantized, adapter, X) for adapter in adapters]), 1e-5)


def test_what_is_trained_whole_stands_in_for_a_quantized_leaf():
    quantized = jlora.quantize(weights(), "int8", layers, X)
    config = jlora.LoraConfig(r=2, target_modules=["up"], modules_to_save=["down"])
    adapter = jlora.init(jax.random.key(0), config, quantized, layers, X)
    dense = jlora.dequantize(quantized)
    assert_same(adapter["layers/down"].value, dense["layers"]["down"], 1e-6)
    changed = {**adapter, "layers/down": jlora.Full(2 * adapter["layers/down"].value)}
    twice = {**dense, "layers": {**dense["layers"], "down": 2 * dense["layers"]["down"]}}
    assert_same(jlora.adapt(layers)(quantized, changed, X), layers(twice, X), 1e-6)
    one_layer = {"layers/down": jlora.Full(jnp.zeros((1, WIDTH, WIDTH)), (1,))}
    zeroed = {**dense, "layers": {**dense["layers"], "down": dense["layers"]["down"].at[1].set(0.0)}}
    assert_same(jlora.adapt(layers)(quantized, one_layer, X), layers(zeroed, X), 1e-6)


def test_the_base_is_left_as_it_is_and_counts_as_before():
    base = weights()
    quantized = jlora.quantize(base, "nf4", layers, X)
    assert not any(is_quantized(leaf) for leaf in leaves_by_path(base).values())
    assert jlora.count_parameters(quantized) == jlora.count_parameters(base)
    assert list(leaves_by_path(quantized)) == list(leaves_by_path(base))
    assert jax.tree.map(jnp.shape, jlora.dequantize(quantized)) == jax.tree.map(jnp.shape, base)
    assert jlora.dequantize(quantized, jnp.bfloat16)["layers"]["up"].dtype == jnp.bfloat16


def _random(model: Any) -> Any:
    leaves = leaves_by_path(abstract_base(model))
    values = {path: 0.1 * normal(seed, *leaf.shape) for seed, (path, leaf) in enumerate(leaves.items())}
    return replace_leaves(abstract_base(model), values)


LLAMA = LlamaConfig(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=False,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4)


@pytest.mark.parametrize("config", [LLAMA, GPT2, lora_cases.tiny_config("bert")], ids=["llama", "gpt2", "bert"])
def test_of_a_model_all_linear_layers_before_the_head(config):
    model = build(config)
    base = _random(model)
    leaves = leaves_by_path(base)
    quantized = leaves_by_path(jlora.quantize(base, "int8", model.apply, example_batch(config)))
    found = {path for path, leaf in quantized.items() if is_quantized(leaf)}
    assert found == {path for path in leaves if is_linear_weight(path)}  # by the path alone, as a loader has it
    assert len(found) == {"llama": 7, "gpt2": 4, "bert": 7}[config.model_type]
    for path in found:
        alone = quantize_leaf(leaves[path], "int8")
        assert jax.tree.structure(quantized[path]) == jax.tree.structure(alone)
        assert (quantized[path].stored.codes == alone.stored.codes).all()


def test_targets_may_be_named():
    quantized = jlora.quantize(weights(), "nf4", layers, X, target_modules=["down", "head"])
    assert [path for path, leaf in leaves_by_path(quantized).items() if is_quantized(leaf)] == ["head", "layers/down"]


@pytest.mark.parametrize(
    ("kind", "target_modules", "message"),
    [
        ("nf4", ["dwon"], "expected an entry that matches a module, found 'dwon'; nearest: .*down"),
        ("nf4", ".*layers.1.up", "layers/up: expected target_modules that match all 3 layers .* or none, found 1"),
        ("fp4", "all-linear", "head: quantize: expected nf4 or int8, found 'fp4'"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind, target_modules, message):
    with pytest.raises(jlora.JloraError, match=message):
        jlora.quantize(weights(), kind, layers, X, target_modules=target_modules)


def test_pissa_needs_the_dense_weights():
    quantized = jlora.quantize(weights(), "nf4", layers, X)
    config = jlora.LoraConfig(r=2, target_modules=["up"], init_lora_weights="pissa")
    with pytest.raises(jlora.JloraError, match=r"layers/up: expected a dense weight .* found a quantized one"):
        jlora.init_residual(jax.random.key(0), config, quantized, layers, X)


def _memory(count: int, kind: str, dtype: Any) -> Any:
    """What XLA says of a step that differentiates the adapter: 4 tokens, layers of 256 x 256."""
    x = jax.ShapeDtypeStruct((4, 256), dtype)
    base = weights(count, 256)
    quantized = jlora.quantize(base, kind, layers, x)
    config = jlora.LoraConfig(r=1, target_modules=["up", "down"])
    adapter = jlora.init(jax.random.key(0), config, quantized, layers, x)
    step = jax.jit(jax.grad(lambda adapter, base, x: jlora.adapt(layers)(base, adapter, x).sum()))
    return step.lower(adapter, quantized, x).compile().memory_analysis()


@pytest.mark.parametrize(("kind", "dtype"), [("nf4", jnp.bfloat16), ("int8", jnp.float32)])
def test_no_dequantized_weight_is_kept_for_the_backward_pass(kind, dtype):
    few, many = (_memory(count, kind, dtype) for count in (4, 12))
    dense_layer = 2 * 256 * 256 * jnp.dtype(dtype).itemsize
    a_layer_more = (many.temp_size_in_bytes - few.temp_size_in_bytes) / 8
    assert a_layer_more < 0.1 * dense_layer
    adapter = 8 * 2 * 4 * (256 + 256 + 1)  # A, B and scale of 8 layers
    codes = many.argument_size_in_bytes - few.argument_size_in_bytes - adapter
    per_number = codes / (8 * 2 * 256 * 256)
    assert per_number < {"nf4": 0.53, "int8": 1.02}[kind]


def test_the_inputs_of_quantized_weights_can_be_measured():
    quantized = jlora.quantize(weights(), "nf4", layers, X)
    adapter = jlora.init(jax.random.key(0), targets(), quantized, layers, X)
    found = second_moments(layers, quantized, adapter, X)
    assert_same(found, second_moments(layers, jlora.dequantize(quantized), adapter, X), 1e-5)
