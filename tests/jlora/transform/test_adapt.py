"""The transform: adapted equals merged, however a function uses its weights, and no full gradient is formed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jlora
from jlora.transform.adapt import find_uses
from jlora.transform.uses import Use
from jlora.tree.leaf_paths import leaves_by_path
from tests.support.adapters.lora_cases import assert_adapted_is_merged, low_rank, normal, random_adapter, random_encoder
from tests.support.models import encoder_cases


@jax.custom_vjp
def _cubed(x):
    return x**3


_cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))

PRODUCTS = {
    "a matrix": (lambda w, x: x @ w, (5, 3), (4, 5)),
    "leading dims": (lambda w, x: jnp.einsum("bti,io->bto", x, w), (5, 3), (2, 4, 5)),
    "several out dims": (lambda w, x: jnp.einsum("btd,dhk->bthk", x, w), (6, 2, 3), (2, 4, 6)),
    "several in dims": (lambda w, x: jnp.einsum("bthk,hkd->btd", x, w), (2, 3, 6), (2, 4, 2, 3)),
    "result permuted": (lambda w, x: jnp.einsum("btd,dhk->bhtk", x, w), (6, 2, 3), (2, 4, 6)),
    "batched": (lambda w, x: jnp.einsum("eti,eio->eto", x, w), (3, 5, 4), (3, 2, 5)),
    "batched in the middle": (lambda w, x: jnp.einsum("teiu,ieo->teou", x, w), (5, 3, 4), (2, 3, 5, 2)),
    "weight on the left": (lambda w, x: w @ x, (5, 3), (3, 4)),
    "N-D weight on the left": (lambda w, x: jnp.tensordot(w, x, ((1,), (2,))), (2, 5, 3), (4, 2, 5)),
    "transposed": (lambda w, x: x @ w.T, (3, 5), (4, 5)),
    "axes moved": (lambda w, x: jnp.tensordot(x, jnp.moveaxis(w, 2, 0), 1), (2, 3, 5), (4, 5)),
    "out dims merged": (lambda w, x: x @ w.reshape(5, 6), (5, 2, 3), (4, 5)),
    "in dims merged": (lambda w, x: x @ w.reshape(6, 5), (2, 3, 5), (4, 6)),
    "out dim split": (lambda w, x: jnp.tensordot(x, w.reshape(5, 2, 3), 1), (5, 6), (4, 5)),
    "sliced": (lambda w, x: x[:, 1:3] @ w[1:3], (5, 3), (4, 5)),
    "every second row": (lambda w, x: x[:, ::2] @ w[::2, 1:], (5, 3), (4, 5)),
    "one row": (lambda w, x: jnp.tanh(x) @ w[2], (4, 5), (3, 5)),
    "squeezed": (lambda w, x: x @ w[0], (1, 5, 3), (4, 5)),
    "spread over a batch": (
        lambda w, x: jnp.einsum("bti,bio->bto", x, jnp.broadcast_to(w, (2, 5, 3))),
        (5, 3),
        (2, 4, 5),
    ),
    "used twice": (lambda w, x: jnp.tanh(x @ w) + (2 * x) @ w, (5, 3), (4, 5)),
    "vmap over the input": (lambda w, x: jax.vmap(lambda row: jnp.tanh(row @ w))(x), (5, 3), (4, 5)),
    "vmap over the weight": (lambda w, x: jax.vmap(lambda row, w: row @ w)(x, w), (4, 5, 3), (4, 5)),
    "custom derivatives behind it": (lambda w, x: _cubed(jax.nn.relu(x @ w)), (5, 3), (4, 5)),
    "a jit inside": (lambda w, x: jax.jit(lambda w, x: jnp.tanh(x @ w))(w.T, x), (3, 5), (4, 5)),
    "highest precision": (lambda w, x: jnp.matmul(x, w, precision="highest"), (5, 3), (4, 5)),
}


@pytest.mark.parametrize(("fn", "shape", "x_shape"), PRODUCTS.values(), ids=PRODUCTS)
def test_products(fn, shape, x_shape):
    def function(base, x):
        return fn(base["dense"]["kernel"], x)

    base, x = {"dense": {"kernel": normal(3, *shape)}}, normal(4, *x_shape)
    adapter = random_adapter(function, base, x, targets=["dense"])
    assert_adapted_is_merged(function, base, adapter, x)


IDS = jnp.array([[1, 4, 0], [2, 2, 3]])
LOOKUPS = {
    "rows": lambda table: table[IDS],
    "from the end": lambda table: table[IDS - 5],
    "columns": lambda table: jnp.take(table, IDS % 3, axis=1),
    "beyond the table": lambda table: jnp.nan_to_num(jnp.take(table, IDS + 2, axis=0), nan=7.0),
    "beyond the table, filled": lambda table: table.at[IDS + 2].get(mode="fill", fill_value=0),
    "beyond the table, clipped": lambda table: jnp.take(table, IDS + 2, axis=0, mode="clip"),
    "transposed": lambda table: table.T[IDS % 3],
    "rows of matrices": lambda table: table.reshape(5, 3, 1)[IDS],
    "twice": lambda table: table[IDS] * table[IDS + 1 - 5],
}


@pytest.mark.parametrize("fn", LOOKUPS.values(), ids=LOOKUPS)
def test_lookups(fn):
    def function(base):
        return fn(base["table"]["embedding"])

    base = {"table": {"embedding": normal(3, 5, 3)}}
    assert_adapted_is_merged(function, base, random_adapter(function, base, targets=["table"]))


def test_weights_used_in_several_ways_at_once():
    """With an adapter on the leaf, both uses of a tied table see it; so does a derivative inside the function."""

    def tied(base, ids):
        return jnp.tanh(base["table"][ids]) @ base["table"].T

    def force(base, x):
        return jax.grad(lambda x: jnp.sum(jnp.tanh(x @ base["table"]) ** 2))(x)

    base, adapter = {"table": normal(3, 5, 3)}, {"table": low_rank("ra,rb->ab", (5, 3))}
    assert_adapted_is_merged(tied, base, adapter, IDS)
    assert_adapted_is_merged(force, base, adapter, normal(4, 4, 5))


def test_weights_spread_over_what_is_summed():
    for spec, shape in (("ra,rb->ab", (1, 3)), ("ra,rb->ab", (1, 1)), ("r,ra->a", (3,))):
        base, adapter = {"w": normal(3, *shape)}, {"w": low_rank(spec, shape)}
        whole = (5, shape[-1])
        assert_adapted_is_merged(
            lambda base, x, whole=whole: x @ jnp.broadcast_to(base["w"], whole), base, adapter, normal(4, 4, 5)
        )


def test_casts_and_stopped_gradients():
    base, adapter, x = {"w": normal(3, 5, 3)}, {"w": low_rank("ra,rb->ab", (5, 3))}, normal(4, 4, 5)
    half = jnp.bfloat16
    assert_adapted_is_merged(lambda b, x: x.astype(half) @ b["w"].astype(half), base, adapter, x, tolerance=5e-3)

    def stopped(base, x):
        return x @ lax.stop_gradient(base["w"])

    assert_adapted_is_merged(stopped, base, adapter, x, gradients=False)
    gradient = jax.grad(lambda adapter: jnp.sum(jlora.adapt(stopped)(base, adapter, x)))(adapter)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_the_base_may_be_any_tree():
    x = normal(4, 4, 5)
    single = normal(3, 5, 3)
    assert_adapted_is_merged(lambda w, x: x @ w, single, {"": low_rank("ra,rb->ab", (5, 3))}, x)
    assert find_uses(lambda w, x: x @ w, single, x) == {"": (Use("linear", (), (0,), (1,)),)}
    listed = [{"w": single}, (normal(5, 3, 2),)]
    adapter = {"0/w": low_rank("ra,rb->ab", (5, 3)), "1/0": jlora.Full(normal(6, 3, 2))}
    assert_adapted_is_merged(lambda b, x: jnp.tanh(x @ b[0]["w"]) @ b[1][0], listed, adapter, x)


def test_leaves_that_are_no_arrays_stay_as_they_are():
    """An Equinox module as it is, and a tree with a text and a number in it."""
    eqx = pytest.importorskip("equinox")
    module, x = eqx.nn.MLP(8, 4, 16, 2, key=jax.random.key(0)), normal(4, 3, 8)

    def fn(module, x):
        with jax.numpy_rank_promotion("allow"):
            return jax.vmap(module)(x)

    adapter = random_adapter(fn, module, x, targets="all-linear")
    assert list(adapter) == [f"layers/{i}/weight" for i in range(3)]
    assert_adapted_is_merged(fn, module, adapter, x)
    assert jlora.count_parameters(module)[0] == 8 * 16 + 16 + 16 * 16 + 16 + 16 * 4 + 4
    base = {"w": normal(1, 8, 3), "name": "tanh", "times": 2.0, "deep": (None, jnp.sin)}
    named = random_adapter(_named, base, x, targets=["w"])
    assert_adapted_is_merged(_named, base, named, x)


def _named(base, x):
    return base["deep"][1](getattr(jnp, base["name"])(x @ base["w"]) * base["times"])


def test_arguments_that_are_no_arrays_stay_as_they_are():
    def function(base, x, name, times, *, flip, activation):
        assert name == "mean"
        assert flip is True
        y = activation(x @ base["w"])
        return getattr(jnp, name)(jnp.concatenate([y] * times), axis=int(flip))

    base, adapter, x = {"w": normal(3, 5, 3)}, {"w": low_rank("ra,rb->ab", (5, 3))}, normal(4, 4, 5)
    arguments = {"flip": True, "activation": jnp.tanh}
    found = jlora.adapt(function)(base, adapter, x, "mean", 2, **arguments)
    expected = function(jlora.merge(base, adapter), x, "mean", 2, **arguments)
    assert encoder_cases.difference(found, expected) < 1e-5


def test_adapted_functions_can_be_transformed():
    base, adapter, x = {"w": normal(3, 5, 3)}, {"w": low_rank("ra,rb->ab", (5, 3))}, normal(4, 4, 5)
    apply = jlora.adapt(lambda base, x: jnp.tanh(x @ base["w"]))
    expected = apply(base, adapter, x)
    adapters = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), adapter)
    assert encoder_cases.difference(jax.vmap(apply, (None, 0, None))(base, adapters, x)[0], expected) < 1e-6
    assert encoder_cases.difference(jax.vmap(apply, (None, None, 0))(base, adapter, x), expected) < 1e-6
    _, scanned = lax.scan(lambda carry, row: (carry, apply(base, adapter, row)), 0, x)
    assert encoder_cases.difference(scanned, expected) < 1e-6
    assert jax.eval_shape(jax.checkpoint(apply), base, adapter, x).shape == expected.shape


def test_no_adapter_and_the_base_alone_are_the_same_function():
    base, x = {"w": normal(3, 5, 3)}, normal(4, 4, 5)
    apply = jlora.adapt(lambda base, x: x @ base["w"])
    assert (apply(base, None, x) == x @ base["w"]).all()
    assert (apply(base, {}, x) == x @ base["w"]).all()


FAMILIES = ["bert", "roberta", "distilbert"]


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_adapted_equal_merged(family):
    model, base, batch = random_encoder(family, remat=family == "bert")
    targets = {"bert": ["dense", "query", "key", "value", "word_embeddings"]}.get(family, "all-linear")
    adapter = random_adapter(model.apply, base, batch, targets=targets, task_type="SEQ_CLS")
    assert any(isinstance(entry, jlora.Full) for entry in adapter.values())
    assert_adapted_is_merged(model.apply, base, adapter, batch, gradients=family == "bert")


def test_a_fresh_adapter_of_an_encoder_is_the_base_bit_for_bit():
    """From 64 wide on; below, XLA puts whole products and sums into one loop and orders the sums as it likes."""
    model, base, batch = random_encoder("bert", hidden_size=64, intermediate_size=128)
    config = jlora.LoraConfig(r=2, target_modules=["dense", "query", "value", "word_embeddings"])
    adapter = jlora.init(jax.random.key(0), config, base, model.apply, batch)
    expected = np.asarray(jax.jit(model.apply)(base, batch))
    assert np.asarray(jax.jit(jlora.adapt(model.apply))(base, adapter, batch)).tobytes() == expected.tobytes()


def test_a_fresh_adapter_is_the_base_bit_for_bit_without_jit():
    def function(base, ids):
        x, _ = lax.scan(lambda x, w: (jax.nn.gelu(x @ w), None), base["table"][ids], base["layers"])
        return x @ base["table"].T

    base = {"table": normal(3, 5, 64), "layers": normal(4, 2, 64, 64)}
    config = jlora.LoraConfig(r=2, target_modules=["layers"])
    adapter = jlora.init(jax.random.key(0), config, base, function, IDS)
    adapter["table"] = dataclasses.replace(low_rank("ra,rb->ab", (5, 64)), a=jnp.zeros((2, 5)))
    expected = np.asarray(function(base, IDS))
    assert np.asarray(jlora.adapt(function)(base, adapter, IDS)).tobytes() == expected.tobytes()


def _all_equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from _all_equations(getattr(value, "jaxpr", value))


def _full_gradients(step, adapter, shapes):
    """The matrix products in the gradient of `step` whose result has one of the weights' shapes."""
    jaxpr = jax.make_jaxpr(jax.grad(step))(adapter).jaxpr
    products = [eqn for eqn in _all_equations(jaxpr) if eqn.primitive.name == "dot_general"]
    assert len(products) > 10
    return [eqn for eqn in products if tuple(sorted(eqn.outvars[0].aval.shape)) in shapes]


def test_no_full_gradient_of_an_adapted_weight_is_formed():
    model, base, batch = random_encoder("bert", remat=True, intermediate_size=40)  # and 48 tokens
    adapter = random_adapter(model.apply, base, batch, targets=["dense", "query", "key", "value"])
    shapes = {tuple(sorted(leaves_by_path(base)[path].shape[-2:])) for path in adapter}

    def step(adapter):
        return jnp.sum(jlora.adapt(model.apply)(base, adapter, batch, dropout_key=jax.random.key(0)))

    def plain_step(adapter):
        return jnp.sum(model.apply(jlora.merge(base, adapter), batch))

    assert _full_gradients(plain_step, adapter, shapes), "the plain formula forms them: the search must find it"
    assert not _full_gradients(step, adapter, shapes)


@pytest.mark.parametrize(
    ("fn", "primitive"),
    [
        (lambda w, x: x @ jnp.tanh(w), "tanh"),
        (lambda w, x: x @ (w + 1), "add"),
        (lambda w, x: x @ jax.nn.relu(w), "custom_jvp_call"),
        (lambda w, x: x @ _cubed(w), "custom_vjp_call"),
        (lambda w, x: w, "the result"),
        (lambda w, x: w @ w.T, "dot_general"),
        (lambda w, x: x @ jnp.sort(w, 1), "sort"),
        (lambda w, x: x @ (w * normal(6, 5, 3)), "mul"),
    ],
)
def test_a_primitive_without_a_rule_is_named_with_the_path(fn, primitive):
    base, adapter = {"dense": {"kernel": normal(3, 5, 3)}}, {"dense/kernel": low_rank("ra,rb->ab", (5, 3))}
    with pytest.raises(jlora.JloraError, match=rf"^dense/kernel: .*{primitive}.*low-rank rule.*modules_to_save"):
        jlora.adapt(lambda base, x: fn(base["dense"]["kernel"], x))(base, adapter, normal(4, 4, 5))


def test_an_adapter_of_another_base_is_refused():
    base, x = {"dense": {"kernel": normal(3, 5, 3)}}, normal(4, 4, 5)
    apply = jlora.adapt(lambda base, x: x @ base["dense"]["kernel"])
    with pytest.raises(jlora.JloraError, match=r"^dense/kernal: not in the base tree; nearest: dense/kernel"):
        apply(base, {"dense/kernal": low_rank("ra,rb->ab", (5, 3))}, x)
    with pytest.raises(jlora.JloraError, match=r"^dense/kernel: expected.*\(5, 3\), found one for \(5, 2\)"):
        apply(base, {"dense/kernel": low_rank("ra,rb->ab", (5, 2))}, x)
    with pytest.raises(jlora.JloraError, match=r"^dense/kernel: expected.*\(5, 3\), found one for \(1, 3\)"):
        apply(base, {"dense/kernel": jlora.Full(normal(1, 1, 3))}, x)


def test_uses_are_found_without_computing():
    def function(base, x, ids):
        h = x @ base["dense"]
        return jnp.concatenate([h * base["scale"][None], base["table"][ids]]), base["kept"]

    shapes = {"dense": (5, 3), "scale": (3,), "table": (9, 3), "kept": (2,), "unused": (2, 2)}
    base = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    uses = find_uses(function, base, jax.ShapeDtypeStruct((4, 5), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32))
    assert uses["dense"] == (Use("linear", (), (0,), (1,)),)
    assert uses["table"] == (Use("lookup", (), (0,), (1,)),)
    assert uses["scale"] == (Use("mul"),)
    assert uses["kept"] == (Use("the result"),)
    assert uses["unused"] == ()


@jax.custom_vjp
def _product(x, w):
    return x @ w


_product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (2 * g @ kept[1].T, 2 * kept[0].T @ g))


def _odd_uses(base, x):
    x = lax.scan(lambda x, w: (_product(x, w) @ w.T, None), x, base["layers"])[0]
    return (x @ jnp.tanh(base["odd"])) @ base["plain"]


def test_what_has_no_rule_is_formed_only_where_that_is_allowed_and_is_counted():
    """A function's own derivatives are kept: here they are twice the true ones."""
    base = {"layers": normal(1, 2, 5, 5), "odd": normal(2, 5, 3), "plain": normal(3, 3, 4)}
    specs = {"layers": "arb,arc->abc", "odd": "ra,rb->ab", "plain": "ra,rb->ab"}
    adapter = {path: low_rank(spec, base[path].shape) for path, spec in specs.items()}
    x = normal(4, 4, 5)
    with pytest.raises(jlora.JloraError, match=r"^layers: .*'custom_vjp_call.*allow_materialize=True"):
        jlora.adapt(_odd_uses)(base, adapter, x)
    formed = jlora.find_materialized(_odd_uses, base, adapter, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert {path: len(places) for path, places in formed.items()} == {"layers": 1, "odd": 1}
    assert formed["odd"] == ("tanh",)

    def loss(apply):
        return lambda adapter: jnp.sum(apply(adapter) ** 2)

    adapted = loss(lambda adapter: jlora.adapt(_odd_uses, allow_materialize=True)(base, adapter, x))
    merged = loss(lambda adapter: _odd_uses(jlora.merge(base, adapter), x))
    assert encoder_cases.difference(adapted(adapter), merged(adapter)) < 1e-5
    found, expected = jax.grad(adapted)(adapter), jax.grad(merged)(adapter)
    for path in adapter:
        assert encoder_cases.difference(found[path].b, expected[path].b) < 1e-5


def test_a_function_whose_weights_all_have_rules_forms_nothing():
    model, base, batch = random_encoder("bert")
    adapter = random_adapter(model.apply, base, batch, targets=".*", use_dora=True)
    assert jlora.find_materialized(model.apply, base, adapter, batch) == {}


def test_rows_and_single_layers_that_are_trained_whole():
    def fn(base, ids):
        return lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), base["table"][ids], base["layers"])[0]

    base = {"layers": normal(1, 3, 4, 4), "table": normal(2, 7, 4)}
    adapter = {"layers": jlora.Full(normal(3, 2, 4, 4), (0, 2)), "table": jlora.Rows(normal(4, 2, 4), (1, 4))}
    assert_adapted_is_merged(fn, base, adapter, IDS)
    untouched = jlora.adapt(fn)(base, {"table": jlora.Rows(base["table"][jnp.array([1, 4])], (1, 4))}, IDS)
    assert (untouched == fn(base, IDS)).all()
