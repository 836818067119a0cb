"""Where a factored kernel meets the data in a convolution, in PEFT's form.

conv_general_dilated   conv(x, W)  ->  gain * (conv(x, W) + b conv(x, a)),  a a kernel to r channels, b 1 x 1
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora.dropout import dropout
from jlora.transform.consume import Use, leaf_axes, stack_axes
from jlora.transform.factored import Factored


def conv_use(weight: Factored, params: dict[str, Any]) -> Use:
    """The use of a weight as the kernel of a convolution; inputs are its channels, then its window."""
    out, *inputs = params["dimension_numbers"].rhs_spec
    axes = [axis for dim in inputs for axis in weight.axes[dim]]
    outputs = leaf_axes(weight, [out])
    if params["batch_group_count"] != 1 or set(axes) & set(outputs) or len(set(axes)) != len(axes):
        return Use("conv_general_dilated over a part of an axis or in groups of the batch")
    return Use("conv", stack_axes(weight, {*axes, *outputs}), tuple(axes), outputs)


def conv_update(weight: Factored, x: jax.Array, params: dict[str, Any], key: jax.Array | None) -> jax.Array | None:
    """b conv(x, a) in the layout of the convolution's result; None where a and b do not come apart like this.

    With groups each group of inputs goes through the same a, and each group of outputs has its own part of b.
    """
    assert weight.a is not None
    assert weight.b is not None
    out_dim, *in_dims = params["dimension_numbers"].rhs_spec
    if weight.a.shape[1 + out_dim] != 1 or any(weight.b.shape[1 + dim] != 1 for dim in in_dims):
        return None
    if key is not None:
        x = dropout(key, x, weight.dropout)
    groups, rank, out = params["feature_group_count"], weight.a.shape[0], weight.b.shape[1 + out_dim]
    a = jnp.swapaxes(weight.a, 0, 1 + out_dim)[0].astype(x.dtype)  # (*dims), r where the output channels were
    a = jnp.broadcast_to(a, [weight.weight.shape[d] if d in in_dims else rank for d in range(a.ndim)])
    tiled = jnp.concatenate([a] * groups, axis=out_dim)
    low = lax.conv_general_dilated(x, tiled, **(conv_arguments(params) | {"preferred_element_type": x.dtype}))
    b = weight.b.reshape(rank, groups, out // groups).astype(x.dtype)
    channel = params["dimension_numbers"].out_spec[1]
    low = jnp.moveaxis(low, channel, -1)
    low = low.reshape(*low.shape[:-1], groups, rank)
    update = jnp.einsum("...gr,rgo->...go", low, b, precision=params["precision"])
    return jnp.moveaxis(update.reshape(*update.shape[:-2], out), -1, channel)


def conv_gain(gain: jax.Array, params: dict[str, Any]) -> jax.Array | None:
    """DoRA's gain, one for each output channel, in the layout of the result; None where it varies over more."""
    if gain.size != gain.shape[params["dimension_numbers"].rhs_spec[0]]:
        return None
    shape = [1] * gain.ndim
    shape[params["dimension_numbers"].out_spec[1]] = gain.size
    return gain.reshape(shape)


def conv_arguments(params: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `lax.conv_general_dilated` among the primitive's parameters."""
    names = (
        "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
        "batch_group_count", "precision", "preferred_element_type",
    )  # fmt: skip
    return {name: params[name] for name in names}
