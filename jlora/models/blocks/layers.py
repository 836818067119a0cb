"""Building blocks of all models: dense, embedding, layer norm, activation, dropout, scanned layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.errors import ContextLengthError, UnsupportedModelError, nearest
from jlora.models.mesh_ops import by_rows, gather_table, keep, product, remat_layer
from jlora.ops.dropout import dropout
from jlora.ops.products import dot_general


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """Computes the exact x Phi(x) in float32; any shape, returned in the dtype of `x`."""
    x32 = x.astype(jnp.float32)
    return (x32 * _normal_cdf(x32)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    x32 = x.astype(jnp.float32)
    cdf = _normal_cdf(x32)
    density = jnp.exp(-0.5 * x32 * x32) * 0.3989422804014327
    slope = (cdf + x32 * density).astype(x.dtype)  # the only array that the backward pass keeps
    return (x32 * cdf).astype(x.dtype), tangent * slope


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.7071067811865476)


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the elementwise function that Hugging Face configs call `name`, one of the keys of ACTIVATIONS.

    These are gelu and its variants, quick_gelu, relu, silu or swish, tanh and sigmoid; gelu_new, gelu_fast and
    gelu_pytorch_tanh are one function.

    Raises:
      UnsupportedModelError: `name` is not in the table; the message lists the names.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedModelError(
            f"hidden activation: expected one of {known}; found {name!r}{nearest(name, ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def normal(config: Any) -> Any:
    """Returns a normal initializer whose standard deviation is the config's `initializer_range` (`init_std` in OPT)."""
    return nn.initializers.normal(config.init_std if hasattr(config, "init_std") else config.initializer_range)


class Dense(nn.Module):
    """A linear layer: x (..., in) to x kernel + bias (..., features) in `dtype`.

    Attributes:
      features: of the output.
      dtype: of the computation; the kernel (in, features) and the bias (features,) are float32.
      kernel_init: initializer of the kernel; the bias starts as zeros.
      use_bias: whether there is a bias.
      parameter: the kernel's name among the parameters.
    """

    features: int
    dtype: Any
    kernel_init: Any
    use_bias: bool = True
    parameter: str = "kernel"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(self.parameter, self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = keep(product(x, kernel, "/".join(self.path), self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def dense(config: Any, features: int, dtype: Any, name: str | None = None, *, use_bias: bool = True) -> Dense:
    """Makes a dense layer to `features` outputs that is initialised as Hugging Face's and computes in `dtype`.

    Its kernel (in, features) is drawn by `normal(config)`, its bias is zero; both are float32. `name` is the
    submodule's.
    """
    return Dense(features, dtype, normal(config), use_bias, name=name)


class Embed(nn.Embed):
    """A lookup table, float32 (rows, features): ids (B, ...) to (B, ..., features), and back to scores of each row."""

    promote_dtype: Any = gather_table

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return by_rows(super().__call__(inputs))

    def attend(self, query: jax.Array) -> jax.Array:
        query, table = self.promote_dtype(query, self.embedding, dtype=self.dtype, inexact=False)
        return by_rows(dot_general(query, table, (((query.ndim - 1,), (1,)), ((), ()))), "tensor")


def embedding(config: Any, rows: int, features: int, name: str, *, padding_row: int | None = None) -> Embed:
    """Makes an embedding table (rows, features), float32, drawn with standard deviation `config.initializer_range`.

    `name` is the submodule's; the row `padding_row` starts as zeros, if it is not None.
    """
    normal = nn.initializers.normal(config.initializer_range)

    def init(key: jax.Array, shape: tuple[int, ...], param_dtype: Any) -> jax.Array:
        table = normal(key, shape, param_dtype)
        return table if padding_row is None else table.at[padding_row].set(jnp.zeros((), param_dtype))

    return Embed(rows, features, embedding_init=init, name=name)


class LayerNorm(nn.Module):
    """Normalizes the last axis in float32 and returns `dtype`; parameters `scale` and `bias` (features,), float32.

    `epsilon` is added to the variance.
    """

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32).astype(jnp.float32)
        features = (1,) * (x.ndim - 1) + (-1,)
        x = standardize(x.astype(jnp.float32), self.epsilon)
        return (x * scale.reshape(features) + bias.reshape(features)).astype(self.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def standardize(x: jax.Array, epsilon: float) -> jax.Array:
    """Normalizes `x` along its last axis: (x - mean) / sqrt(variance + epsilon), the variance divided by n.

    The backward pass keeps only the result and the inverse deviations.
    """
    return _standardize(x, epsilon)[0]


@standardize.defjvp
def _standardize_jvp(epsilon: float, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    y, inverse_deviation = _standardize(primals[0], epsilon)
    (t,) = tangents
    mean, slope = t.mean(-1, keepdims=True), (t * y).mean(-1, keepdims=True)
    return y, inverse_deviation * (t - mean - y * slope)


def _standardize(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    centered = x - x.mean(-1, keepdims=True)
    inverse_deviation = jax.lax.rsqrt((centered * centered).mean(-1, keepdims=True) + epsilon)
    return centered * inverse_deviation, inverse_deviation


def drop_out(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """Applies dropout at `rate` if `module` was applied with a "dropout" key; returns `x` otherwise."""
    if rate == 0.0 or not module.has_rng("dropout"):
        return x
    return dropout(module.make_rng("dropout"), x, rate)


def scan_layers(layer: Callable[..., Any], count: int, *, remat: bool) -> Callable[..., Any]:
    """Makes a module class that applies `count` layers one after another, with parameters stacked on axis 0.

    `layer(*fields)(x, *shared)` returns `(x, None)`, and so does the class, which takes the same fields. With `remat`,
    a layer's values are computed again in the backward pass instead of being kept.
    """
    return _scan(layer, count, remat, nn.broadcast)


def scan_decoder_layers(layer: Callable[..., Any], count: int, *, remat: bool) -> Callable[..., Any]:
    """Makes a module class that applies `count` layers one after another, with parameters stacked on axis 0.

    `layer(*fields)(x, shared, slots)` returns `(x, slots)`, and so does the class, which takes the same fields, has
    `layer` as an attribute, and stacks the layers' slots on axis 0. Slots may be None, and then None is returned. With
    `remat`, a layer's values are computed again in the backward pass instead of being kept.
    """
    scanned = _scan(layer, count, remat, (nn.broadcast, 0))
    scanned.layer = layer
    return scanned


def _scan(layer: Callable[..., Any], count: int, remat: bool, in_axes: Any) -> Any:
    body = remat_layer(layer, remat=remat, prevent_cse=False)
    return nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=count,
    )


def require_length(length: int, longest: int) -> None:
    """Raises ContextLengthError if a batch of `length` tokens is longer than the model's `longest`."""
    if length > longest:
        raise ContextLengthError(
            f"batch: expected at most {longest} tokens a row, the model has no more positions; "
            f"found {length}; cut the texts (data.max_length)"
        )
