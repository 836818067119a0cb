"""Fresh adapters: shapes from the uses, numbers as PEFT draws them, scales, and targets that cannot be."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from tests.support.adapters.lora_cases import normal, random_encoder
from tests.support.models.encoder_cases import difference

KEY = jax.random.key(0)
BASE = {
    "embed": {"embedding": normal(1, 9, 6)},
    "layers": {"dense": {"kernel": normal(2, 3, 6, 6), "bias": normal(3, 3, 6)}, "norm": {"scale": normal(4, 3, 6)}},
    "heads": {"kernel": normal(5, 6, 2, 4)},
    "unused": {"kernel": normal(6, 4, 4)},
}
IDS = jnp.array([[1, 2, 3]])


def _model(base, ids):
    def layer(x, w):
        return jnp.tanh(x @ w["dense"]["kernel"] + w["dense"]["bias"][None, None]) * w["norm"]["scale"][
            None, None
        ], None

    x, _ = lax.scan(layer, base["embed"]["embedding"][ids], base["layers"])
    return jnp.einsum("btd,dhk->bthk", x, base["heads"]["kernel"])


def _init(targets, key=KEY, **fields):
    return jlora.init(key, jlora.LoraConfig(target_modules=targets, **{"r": 2, **fields}), BASE, _model, IDS)


def test_shapes_come_from_how_the_function_uses_its_weights():
    adapter = _init(["embed", "dense", "heads"])
    shapes = {path: (e.spec, e.a.shape, e.b.shape, e.scale.shape, e.ranks) for path, e in adapter.items()}
    assert shapes == {
        "embed/embedding": ("ra,rb->ab", (2, 9), (2, 6), (2,), (2,)),
        "heads/kernel": ("ra,rbc->abc", (2, 6), (2, 2, 4), (2,), (2,)),
        "layers/dense/kernel": ("arb,arc->abc", (3, 2, 6), (3, 2, 6), (3, 2), (2, 2, 2)),
    }


def test_all_linear_is_every_product_and_nothing_else():
    assert list(_init("all-linear")) == ["heads/kernel", "layers/dense/kernel"]
    assert list(_init("ALL-LINEAR", exclude_modules=["heads"])) == ["layers/dense/kernel"]


@pytest.mark.parametrize("use_rslora", [False, True])
def test_scales_ranks_and_layers_of_a_stack(use_rslora):
    fields = {"rank_pattern": {"1.dense": 4}, "alpha_pattern": {"layers.2.dense": 5}}
    entry = _init(["1.dense", "2.dense"], lora_alpha=3, use_rslora=use_rslora, **fields)["layers/dense/kernel"]
    assert entry.ranks == (0, 4, 2)
    root = math.sqrt if use_rslora else float
    expected = [[0] * 4, [3 / root(4)] * 4, [5 / root(2)] * 2 + [0] * 2]
    np.testing.assert_allclose(entry.scale, expected, rtol=1e-6)


def test_scales_where_a_batched_product_adds_an_axis_to_the_layers():
    base = {"layers": {"experts": {"kernel": normal(1, 2, 3, 4, 4)}}}

    def model(base, x):
        return lax.scan(lambda x, w: (jnp.einsum("eti,eio->eto", x, w["experts"]["kernel"]), None), x, base["layers"])[
            0
        ]

    config = jlora.LoraConfig(r=2, lora_alpha=2, target_modules=["experts"], alpha_pattern={"1.experts": 6})
    entry = abstract_adapter(config, base, model, normal(2, 3, 5, 4))["layers/experts/kernel"]
    np.testing.assert_array_equal(entry.scale, np.broadcast_to([[[1.0]], [[3.0]]], (2, 3, 2)))


def _bounds(entry):
    return float(jnp.abs(entry.a).max()), float(jnp.abs(entry.b).max())


def test_numbers_are_drawn_as_peft_draws_them():
    """The law: A uniform within 1 / sqrt(in), B zero; tables A zero, B normal; gaussian: A normal / r."""
    base, x = {"w": jnp.zeros((400, 300)), "e": jnp.zeros((50, 3000))}, jax.ShapeDtypeStruct((2, 400), jnp.float32)

    def model(base, x):
        return jnp.concatenate([x @ base["w"], base["e"][jnp.array([1, 2])]], 1)

    def entries(init_lora_weights):
        config = jlora.LoraConfig(r=4, target_modules=["w", "e"], init_lora_weights=init_lora_weights)
        adapter = jlora.init(KEY, config, base, model, x)
        return adapter["w"], adapter["e"]

    linear, table = entries(True)
    a, b = _bounds(linear)
    assert 0.95 / 20 < a <= 1 / 20
    assert b == 0
    assert abs(float(linear.a.std()) * 20 * math.sqrt(3) - 1) < 0.05
    assert _bounds(table)[0] == 0
    assert abs(float(table.b.std()) - 1) < 0.05
    linear, _ = entries("gaussian")
    assert abs(float(linear.a.std()) * 4 - 1) < 0.1
    assert _bounds(linear)[1] == 0
    linear, table = entries(False)
    assert 0.95 / 2 < _bounds(linear)[1] <= 1 / 2
    assert _bounds(table)[0] > 0


def test_keys_and_leaves_draw_differently():
    first, again, other = (_init(["dense", "heads"], key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True))
    assert (first["heads/kernel"].a != other["heads/kernel"].a).any()
    layers = first["layers/dense/kernel"].a
    assert (layers[0] != layers[1]).any()


def test_everything_is_float32_whatever_the_default():
    with jax.enable_x64(True):
        adapter = _init(["embed", "dense"], init_lora_weights="gaussian")
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype("float32")}


def test_nothing_is_computed_where_everything_is_abstract():
    model, base, batch = random_encoder("bert")
    base, batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (base, batch))
    config = jlora.LoraConfig(r=2, target_modules=["query", "word_embeddings"], task_type="SEQ_CLS")
    adapter = abstract_adapter(config, base, model.apply, batch)
    real = jlora.init(KEY, config, random_encoder("bert")[1], model.apply, batch)
    assert jax.tree.structure(adapter) == jax.tree.structure(real)
    for found, expected in zip(jax.tree.leaves(adapter), jax.tree.leaves(real), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    query = "params/bert/encoder/layer/attention/self/query/kernel"
    assert (adapter[query].scale == real[query].scale).all()


def test_modules_trained_whole_are_copies_of_the_bases_leaves():
    adapter = _init(["dense"], modules_to_save=["heads", "norm"])
    wholes = {path: entry.value for path, entry in adapter.items() if isinstance(entry, jlora.Full)}
    assert list(wholes) == ["heads/kernel", "layers/norm/scale"]
    assert (wholes["heads/kernel"] == BASE["heads"]["kernel"]).all()
    assert wholes["heads/kernel"] is not BASE["heads"]["kernel"]


def test_single_layers_of_a_stack_can_be_trained_whole():
    adapter = _init(["heads"], modules_to_save=["1.dense"])
    kernel = adapter["layers/dense/kernel"]
    assert kernel.layers == (1,)
    assert (kernel.value == BASE["layers"]["dense"]["kernel"][1:2]).all()


def test_a_target_that_is_never_used():
    with pytest.raises(jlora.JloraError, match=r"^unused/kernel: matches target_modules, .*never uses it"):
        _init(["unused", "dense"])
    with pytest.warns(UserWarning, match=r"^not adapted, because the function never uses it: unused/kernel$"):
        adapter = _init(".*")
    assert "unused/kernel" not in adapter
    assert "dense" in " ".join(adapter)


def test_all_linear_on_a_function_without_a_product():
    table = {"table": jnp.ones((8, 4))}
    config = jlora.LoraConfig(r=2, target_modules="all-linear")
    with pytest.raises(jlora.JloraError, match=r"all-linear.*expected a function that multiplies by a matrix"):
        jlora.init(jax.random.key(0), config, table, lambda w, i: w["table"][i], jnp.array([0, 1]))


@pytest.mark.parametrize("targets", [["norm"], ["layers.1.norm"], ["dens"], "dense"])
def test_a_target_that_is_no_product_and_no_lookup_matches_nothing(targets):
    with pytest.raises(jlora.JloraError, match="target_modules: expected an entry that matches a module") as caught:
        _init(targets)
    assert "There are: dense, embed, heads" in str(caught.value)


@pytest.mark.parametrize("tying", [False, True])
def test_a_tied_embedding_is_shaped_as_a_lookup_which_alone_sees_it_unless_tying_is_ensured(tying):
    def tied(base, ids):
        return jnp.tanh(base["w"][ids]) @ base["w"].T

    config = jlora.LoraConfig(r=2, target_modules=["w"], ensure_weight_tying=tying, init_lora_weights=False)
    base = {"w": normal(1, 5, 3)}
    adapter = jlora.init(KEY, config, base, tied, IDS)
    entry = adapter["w"]
    assert (entry.kind, entry.spec, entry.only) == ("lookup", "ra,rb->ab", None if tying else "lookup")
    whole = base["w"] + jnp.einsum("ra,rb->ab", entry.a, entry.b * entry.scale[:, None])
    expected = jnp.tanh(whole[IDS]) @ (whole if tying else base["w"]).T
    assert difference(jlora.adapt(tied)(base, adapter, IDS), expected) < 1e-5
    if not tying:
        with pytest.raises(jlora.JloraError, match=r"^w: .*found one for the lookup alone.*ensure_weight_tying=True"):
            jlora.merge(base, adapter)


def test_biases():
    def fn(base, x):
        x = x @ base["first"]["kernel"] + base["first"]["bias"][None]
        return x @ base["second"]["kernel"] + base["second"]["bias"][None]

    base = {name: {"kernel": normal(1, 4, 4), "bias": normal(2, 4)} for name in ("first", "second")}
    wanted = {"none": [], "all": ["first", "second"], "lora_only": ["second"]}
    for kernel, name in (("kernel", "bias"), ("kernel/value", "bias/value"), ("w", "b")):  # Flax, NNX, Haiku
        named = {module: {kernel: leaves["kernel"], name: leaves["bias"]} for module, leaves in base.items()}

        def renamed(named, x, kernel=kernel, name=name):
            return fn({m: {"kernel": leaves[kernel], "bias": leaves[name]} for m, leaves in named.items()}, x)

        for bias, expected in wanted.items():
            config = jlora.LoraConfig(r=2, target_modules=["second"], bias=bias)
            adapter = jlora.init(KEY, config, named, renamed, normal(3, 2, 4))
            whole = [path for path, entry in adapter.items() if isinstance(entry, jlora.Full)]
            assert whole == [f"{module}/{name}" for module in expected]


def test_token_rows():
    config = jlora.LoraConfig(r=2, target_modules=["dense"], trainable_token_indices=[4, 1])
    adapter = _init(["dense"], trainable_token_indices=[4, 1])
    assert adapter["embed/embedding"].indices == (4, 1)
    assert (adapter["embed/embedding"].value == BASE["embed"]["embedding"][jnp.array([4, 1])]).all()
    by_name = _init(["dense"], trainable_token_indices={"embed": [0]})
    assert by_name["embed/embedding"].indices == (0,)
    for bad in ([99], [1, 1], {"embd": [1]}):
        with pytest.raises(jlora.JloraError, match=r"trainable_token_indices: .*expected"):
            _init(["dense"], trainable_token_indices=bad)
    with pytest.raises(
        jlora.JloraError, match=r"^embed/embedding: expected an embedding that is either trained by rows"
    ):
        _init(["embed"], trainable_token_indices=config.trainable_token_indices)


X, MASK = normal(7, 3, 8), normal(4, 8, 2)
STOPPED = {
    "tanh": lambda w, x: x @ jnp.tanh(w["k"]),
    "a product of elements": lambda w, x: (x @ w["k"]) / jnp.sqrt((w["k"] * w["k"]).sum(0))[None],
    "a table that is added": lambda w, x: x + w["k"][:3],
    "standardized": lambda w, x: x @ ((w["k"] - w["k"].mean(0)[None]) / jnp.std(w["k"], 0)[None]),
    "mixed with a mask": lambda w, x: x @ (w["k"] * normal(8, 8, 8)),
    "scanned": lambda w, x: lax.scan(lambda x, k: (x @ jnp.tanh(k), None), x, w["k"][None])[0],
}
OPERATION = {"a product of elements": "mul", "a table that is added": "add", "standardized": "reduce_sum"}


@pytest.mark.parametrize("name", STOPPED)
def test_an_operation_without_a_rule_is_named_before_anything_is_adapted(name):
    """As a target of its own it is an error; beside others, in a warning that lists each weight once."""
    weights, fn = {"k": normal(1, 8, 8), "plain": normal(2, 8, 4)}, STOPPED[name]
    operation = OPERATION.get(name, "mul" if "mask" in name else "tanh")

    def both(w, x):
        return fn(w, x) @ w["plain"]

    for targets in (["k"], "k", "all-linear"):
        config = jlora.LoraConfig(r=2, target_modules=targets)
        with pytest.raises(jlora.JloraError, match=rf"target_modules: .*k in '{operation}'.*allow_materialize=True"):
            jlora.init(KEY, config, {"k": weights["k"]}, fn, X)
    for targets in (".*", "all-linear"):
        config = jlora.LoraConfig(r=2, target_modules=targets)
        with pytest.warns(UserWarning, match=rf"^not adapted.*: k \({operation}\)\. init") as caught:
            adapter = jlora.init(KEY, config, weights, both, X)
        assert list(adapter) == ["plain"]
        assert len(caught) == 1
        assert caught[0].filename == __file__


@pytest.mark.parametrize("name", STOPPED)
def test_what_init_materializes_adapt_takes(name):
    weights, fn = {"k": normal(1, 8, 8)}, STOPPED[name]
    config = jlora.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapter = jlora.init(KEY, config, weights, fn, X, allow_materialize=True)
    found = jlora.adapt(fn, allow_materialize=True)(weights, adapter, X)
    assert difference(found, fn(jlora.merge(weights, adapter), X)) < 1e-5
    assert difference(found, fn(weights, X)) > 1e-3


def test_whatever_init_gives_adapt_takes():
    """Linear maps that mix the axes of A and B are found when the adapter is planned, not at the first call."""

    def fn(w, x):
        return x @ (w["k"] * w["gate"][:, :1]) @ (w["heads"] * MASK[:, :, None]).reshape(8, 4)

    weights = {"k": normal(1, 8, 8), "heads": normal(2, 8, 2, 2), "gate": normal(3, 8, 8)}
    config = jlora.LoraConfig(r=2, target_modules="all-linear")
    with pytest.warns(UserWarning, match=r"heads \(mul\)"):
        adapter = jlora.init(KEY, config, weights, fn, X)
    jlora.adapt(fn)(weights, adapter, X)


def test_all_linear_takes_matrices_and_not_vectors():
    def fn(w, x):
        x, _ = lax.scan(lambda x, w: (x + (x @ w)[:, None], None), x, w["vectors"])
        return x @ w["vector"] + (x @ w["matrix"])[:, 0]

    weights = {"vector": normal(1, 8), "vectors": normal(2, 3, 8), "matrix": normal(3, 8, 1)}
    config = jlora.LoraConfig(r=1, target_modules="all-linear")
    assert list(jlora.init(KEY, config, weights, fn, X)) == ["matrix"]


@pytest.mark.parametrize("name", ["pissa", "pissa_niter_4", "olora", "loftq", "lora_ga", "eva"])
def test_initializations_with_a_function_of_their_own_are_pointed_to(name):
    with pytest.raises(jlora.JloraError, match=rf"init_lora_weights: .*{name}.*jlora\.init_"):
        _init(["dense"], init_lora_weights=name)


def test_a_rank_above_the_smaller_side_warns_with_path_and_sizes():
    message = re.escape("heads/kernel: rank 7 is above the smaller side of a 6 x 8 weight")
    with pytest.warns(UserWarning, match=message) as caught:
        _init(["heads"], r=7)
    assert caught[0].filename == __file__
    assert len(caught) == 1


def test_the_base_is_left_alone():
    before = jax.tree.map(np.array, BASE)
    _init(["dense"], modules_to_save=["heads"])
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(BASE), jax.tree.leaves(before), strict=True))


def test_an_array_of_whole_numbers_is_no_target():
    """A module's stored permutation, say, which nothing could adapt."""
    weights = {"w": jnp.ones((4, 4)), "order": jnp.zeros((2, 4), jnp.int32)}
    config = jlora.LoraConfig(r=2, target_modules=".*")
    adapter = jlora.init(jax.random.key(0), config, weights, lambda w, x: x @ w["w"], jnp.ones((2, 4)))
    assert list(adapter) == ["w"]
