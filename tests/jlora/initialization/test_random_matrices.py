"""Fresh A and B: the laws of each way of drawing them, layer by layer, and PEFT's own numbers beside them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.initialization.random_matrices import draw_factors
from jlora.lora.matrices import to_matrices

KEY = jax.random.key(0)


def _entry(spec, shape, ranks=(4,), kind="linear"):
    """An entry of ShapeDtypeStructs for a leaf of `shape`, padded to the largest of `ranks`."""
    (a, b), out = spec.split("->")[0].split(","), spec.split("->")[1]
    sizes = {"r": max(ranks), **dict(zip(out, shape, strict=True))}
    a_like, b_like = (jax.ShapeDtypeStruct([sizes[i] for i in letters], jnp.float32) for letters in (a, b))
    scale = jnp.asarray(np.where(np.arange(max(ranks)) < np.asarray(ranks)[:, None], 1.5, 0), jnp.float32)
    scale = scale[0] if a[0] == "r" else scale
    return jlora.LowRank(a_like, b_like, scale, spec, tuple(ranks), kind=kind)


LINEAR = _entry("ra,rb->ab", (300, 200))
STACK = _entry("arb,arc->abc", (3, 300, 200), (4, 0, 8))
CONV = _entry("rcab,rd->abcd", (3, 3, 40, 50), kind="conv")
TABLE = _entry("ra,rb->ab", (300, 200), kind="lookup")
WAYS = [True, False, "gaussian", "orthogonal", jax.nn.initializers.he_normal()]


@pytest.mark.parametrize("entry", [LINEAR, STACK, CONV, TABLE], ids=["linear", "stack", "conv", "table"])
@pytest.mark.parametrize("way", WAYS, ids=["a function" if callable(way) else str(way) for way in WAYS])
def test_shapes_and_the_rest_of_the_entry_are_kept(entry, way):
    found = draw_factors(KEY, entry, way)
    for name in ("a", "b"):
        array, expected = getattr(found, name), getattr(entry, name)
        assert (array.shape, array.dtype) == (expected.shape, jnp.float32)
    assert (found.scale == entry.scale).all()
    assert (found.ranks, found.spec, found.kind) == (entry.ranks, entry.spec, entry.kind)


@pytest.mark.parametrize("entry", [LINEAR, STACK, CONV, TABLE], ids=["linear", "stack", "conv", "table"])
@pytest.mark.parametrize("way", WAYS, ids=["a function" if callable(way) else str(way) for way in WAYS])
def test_the_update_is_zero_but_with_false(entry, way):
    updates = [layer.update for layer in to_matrices(draw_factors(KEY, entry, way))]
    largest = max(float(jnp.abs(update).max()) for update in updates)
    assert largest > 1e-3 if way is False else largest < 1e-6


@pytest.mark.parametrize("way", WAYS, ids=["a function" if callable(way) else str(way) for way in WAYS])
def test_keys_and_layers_draw_differently(way):
    first, again, other = (draw_factors(jax.random.key(seed), STACK, way) for seed in (0, 0, 1))
    assert (first.a == again.a).all()
    assert (first.a != other.a).any()
    assert (first.a[0, 0] != first.a[2, 0]).all()


def test_the_default_is_uniform_within_the_root_of_the_inputs():
    for entry, inputs in ((LINEAR, 300), (CONV, 9 * 40)):
        a = np.asarray(draw_factors(KEY, entry, True).a) * math.sqrt(inputs)
        assert 0.98 < np.abs(a).max() <= 1.0001
        assert abs(a.std() * math.sqrt(3) - 1) < 0.05
        assert abs(a.mean()) < 0.05


def test_the_default_draws_the_same_numbers_as_ever():
    """Results that were published stay reproducible."""
    a_key, _ = jax.random.split(KEY)
    bound = 1 / math.sqrt(300)
    expected = jax.random.uniform(a_key, (3, 8, 300), jnp.float32, minval=-bound, maxval=bound)
    assert (draw_factors(KEY, STACK, True).a == expected).all()


def test_spreads_follow_each_layers_own_rank():
    """Gaussian A has standard deviation 1 / r, B of False is within 1 / sqrt(r): r of the layer, not of the padding."""
    gaussian, away = (to_matrices(draw_factors(KEY, STACK, way)) for way in ("gaussian", False))
    for layer, rank in ((0, 4), (2, 8)):
        assert abs(float(gaussian[layer].a.std()) * rank - 1) < 0.1
        assert 0.98 < float(jnp.abs(away[layer].b).max()) * math.sqrt(rank) <= 1.0001


def test_tables_are_normal_in_b():
    table = draw_factors(KEY, TABLE, "orthogonal")
    assert not table.a.any()
    assert abs(float(table.b.std()) - 1) < 0.1
    assert abs(float(draw_factors(KEY, TABLE, False).a.std()) - 1) < 0.1


def test_orthogonal_halves():
    """PEFT's recipe: A and B are normal numbers / 10 in two halves of the components, orthogonal to each other."""
    for entry in (LINEAR, STACK, CONV):
        for layer in to_matrices(draw_factors(KEY, entry, "orthogonal")):
            rank = layer.scale.shape[0]
            if rank:
                assert np.linalg.matrix_rank(layer.a, tol=1e-3) == rank // 2
                assert np.linalg.matrix_rank(layer.b, tol=1e-3) == rank // 2
                # normal / 10 on half of the components
                assert abs(float(jnp.mean(layer.a**2)) * 100 * 2 - 1) < 0.2
                assert abs(float(jnp.mean(layer.b**2)) * 100 * 2 - 1) < 0.2


def test_orthogonal_is_pefts():
    """From the same normal numbers, PEFT's A and B."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    layer_key = jax.random.split(KEY, 1)[0]
    keys = jax.random.split(layer_key, 3)
    draws = {(4, 4): keys[0], (300, 2): keys[1], (2, 200): keys[2]}

    def randn(*shape):
        if shape == (2, 200):  # PEFT draws the transpose of what is drawn here
            return torch.tensor(np.array(jax.random.normal(draws[shape], (200, 2), jnp.float32))).T
        return torch.tensor(np.array(jax.random.normal(draws[shape], shape, jnp.float32)))

    with pytest.MonkeyPatch.context() as patch:
        model = torch.nn.Sequential(torch.nn.Linear(300, 200))
        patch.setattr(torch, "randn", randn)
        config = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights="orthogonal")
        layer = peft.get_peft_model(model, config).base_model.model[0]
    found = draw_factors(KEY, LINEAR, "orthogonal")
    np.testing.assert_allclose(found.a, layer.lora_A.default.weight.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(found.b.T, layer.lora_B.default.weight.detach().numpy(), atol=1e-5)


def test_orthogonal_needs_even_ranks():
    entry = _entry("arb,arc->abc", (2, 5, 5), (2, 3))
    with pytest.raises(jlora.JloraError, match=r'^LoraConfig\.init_lora_weights: .*even.*"orthogonal", found 3;'):
        draw_factors(KEY, entry, "orthogonal")


def test_a_function_draws_each_layer_as_a_matrix():
    """So that what it knows of fan-in is true, whatever the window, the stack and the padding."""
    shapes = []

    def record(key, shape, dtype):
        shapes.append(shape)
        return jax.nn.initializers.he_normal()(key, shape, dtype)

    stack, conv = to_matrices(draw_factors(KEY, STACK, record)), to_matrices(draw_factors(KEY, CONV, record))
    assert shapes == [(300, 4), (300, 8), (360, 4)]
    for layer, inputs in ((stack[0], 300), (stack[2], 300), (conv[0], 360)):
        assert abs(float(layer.a.std()) * math.sqrt(inputs / 2) - 1) < 0.1
    assert not draw_factors(KEY, STACK, record).a[0, 4:].any()


def test_pefts_convolution_is_drawn_within_the_same_bound():
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Conv2d(40, 50, 3))
    layer = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"])).base_model.model[0]
    theirs, ours = layer.lora_A.default.weight.detach().numpy(), np.asarray(draw_factors(KEY, CONV, True).a)
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(np.abs(theirs).max(), np.abs(ours).max(), rtol=0.02)


def test_drawn_where_arrays_are_traced():
    jitted = jax.jit(lambda key: draw_factors(key, STACK, "orthogonal"))(KEY)
    np.testing.assert_allclose(jitted.a, draw_factors(KEY, STACK, "orthogonal").a, atol=1e-6)
