"""The encoders' shared pieces: activations as PyTorch's, layer norm in float32, one dropout mask a layer."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jlora.errors import JloraError
from jlora.models.blocks.layers import ACTIVATIONS, LayerNorm, activation, drop_out, gelu, scan_layers


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes_are_those_of_transformers(name):
    torch = pytest.importorskip("torch")
    oracle = pytest.importorskip("transformers.activations").ACT2FN[name]
    x = np.linspace(-8, 8, 401, dtype=np.float32)
    at = torch.tensor(x, requires_grad=True)
    expected = oracle(at)
    expected.sum().backward()
    np.testing.assert_allclose(activation(name)(x), expected.detach().numpy(), rtol=1e-5, atol=2e-6)
    slope = jax.grad(lambda x: activation(name)(x).sum())(jnp.asarray(x))
    np.testing.assert_allclose(slope, at.grad.numpy(), rtol=1e-5, atol=5e-6)


def test_gelu_in_bfloat16_is_rounded_once():
    x = jnp.linspace(-8, 8, 401).astype(jnp.bfloat16)
    np.testing.assert_array_equal(gelu(x), gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_unknown_activation_is_an_error_that_names_the_nearest():
    with pytest.raises(JloraError, match=r"found 'gelu_old'.*gelu_new"):
        activation("gelu_old")


def test_layer_norm_and_its_gradients_are_those_of_flax():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 7, 16))
    base = {"params": {name: jax.random.normal(jax.random.key(1), (16,)) for name in ("scale", "bias")}}
    ours, flax = LayerNorm(1e-5, jnp.float32), nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    np.testing.assert_allclose(ours.apply(base, x), flax.apply(base, x), rtol=1e-5, atol=1e-6)

    def slopes(norm):
        return jax.grad(lambda base, x: (norm.apply(base, x) ** 3).sum(), (0, 1))(base, x)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), slopes(ours), slopes(flax))
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, base)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
    norm = LayerNorm(1e-12, jnp.bfloat16)
    x = (100 + jax.random.normal(jax.random.key(0), (4, 256))).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    found = norm.apply(norm.init(jax.random.key(0), x), x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(found), exact, rtol=2**-8, atol=1e-5)


class _Layer(nn.Module):
    """Adds its parameter to x, and gives the dropout mask it drew."""

    rate: ClassVar[float] = 0.5

    @nn.compact
    def __call__(self, x):
        step = self.param("step", nn.initializers.normal(1.0), x.shape)
        return x + step, drop_out(self, jnp.ones((64,)), self.rate)


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_have_parameters_and_masks_of_their_own(remat):
    model = scan_layers(_Layer, 3, remat=remat)()
    x = jnp.zeros((5,))
    base = model.init(jax.random.key(0), x)
    steps = base["params"]["step"]
    assert steps.shape == (3, 5)
    assert len(np.unique(steps)) == 15
    y, masks = model.apply(base, x, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(y, steps.sum(0), rtol=1e-6)
    assert len(np.unique(masks, axis=0)) == 3
    assert (model.apply(base, x)[1] == 1).all()
