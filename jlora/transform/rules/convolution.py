"""Rules of convolutions with a factored kernel, in PEFT's form:

conv_general_dilated   conv(x, W)  ->  gain * (conv(x, W) + b conv(x, a)),  a: a kernel with r output channels, b: 1 x 1
depthwise              conv(x, W)  ->  gain * (conv(x, W) + conv(x, b a))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora.ops.dropout import dropout
from jlora.transform.adapted_weight import Update
from jlora.transform.uses import Use, leaf_axes, stack_axes


def conv_use(weight: Update, params: dict[str, Any]) -> Use:
    """Describes the use of a weight as the kernel of a convolution; inputs are its channels, then its window.

    A kernel (k, k, in, out) gives Use("conv", inputs=(2, 0, 1), outputs=(3,)). Groups of the batch, or a dim that has
    only a part of an axis of the leaf, have no rule: then the Use has only a kind, a text that says so.

    Args:
      weight: the kernel's update; its `axes`, `stack` and `picked` are read.
      params: of conv_general_dilated; `dimension_numbers` (a ConvDimensionNumbers) and `batch_group_count` are read.
    """
    out, *inputs = params["dimension_numbers"].rhs_spec
    axes = [axis for dim in inputs for axis in weight.axes[dim]]
    outputs = leaf_axes(weight, [out])
    if params["batch_group_count"] != 1 or set(axes) & set(outputs) or len(set(axes)) != len(axes):
        return Use("conv_general_dilated over a part of an axis or in groups of the batch")
    return Use("conv", stack_axes(weight, {*axes, *outputs}), tuple(axes), outputs)


def conv_update(
    update: Update, shape: Sequence[int], x: jax.Array, params: dict[str, Any], key: jax.Array | None
) -> jax.Array | None:
    """Computes b conv(x, a) in the layout of the convolution's result; None if the update does not have this form.

    It has this form if a does not vary over the output channels, and b over nothing else. Added to conv(x, W), it gives
    conv(x, W + b a). With groups, each group of inputs is convolved with the same a, and each group of outputs has its
    own part of b. If a group has at most as many outputs as the rank (depthwise), b a is the smaller kernel: x is
    convolved with b a.

    Args:
      update: of the kernel, whose dims have the sizes of `shape`.
      x: the convolution's input.
      params: of conv_general_dilated.
      key: drops elements of x at the rate `update.dropout`; None drops nothing.
    """
    (a, b), numbers = update.factors, params["dimension_numbers"]
    out_dim, *in_dims = numbers.rhs_spec
    if a.shape[1 + out_dim] != 1 or any(b.shape[1 + dim] != 1 for dim in in_dims):
        return None
    if key is not None:
        x = dropout(key, x, update.dropout)
    groups, rank, out = params["feature_group_count"], a.shape[0], b.shape[1 + out_dim]
    if groups > 1 and rank >= out // groups:
        kernel = jnp.broadcast_to(jnp.einsum("r...,r...->...", a, b), shape).astype(x.dtype)
        return lax.conv_general_dilated(x, kernel, **(conv_arguments(params) | {"preferred_element_type": x.dtype}))
    a = jnp.swapaxes(a, 0, 1 + out_dim)[0].astype(x.dtype)  # (*dims), r where the output channels were
    a = jnp.broadcast_to(a, [shape[d] if d in in_dims else rank for d in range(a.ndim)])
    low = _through_each_group(x, a, params)
    b = b.reshape(rank, groups, out // groups).astype(x.dtype)
    update_of_result = jnp.einsum("...gr,rgo->...go", low, b, precision=params["precision"])
    return jnp.moveaxis(update_of_result.reshape(*low.shape[:-2], out), -1, numbers.out_spec[1])


def _through_each_group(x: jax.Array, kernel: jax.Array, params: dict[str, Any]) -> jax.Array:
    """Convolves each group of channels with the same kernel; returns the result's other dims, then (groups, r).

    The groups become part of the batch: XLA:CPU takes ten times as long to compile a convolution in many groups.
    """
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    batch, features = numbers.lhs_spec[:2]
    width = x.shape[features] // groups
    x = x.reshape(*x.shape[:features], groups, width, *x.shape[features + 1 :])
    x = jnp.moveaxis(x, features, batch)
    x = x.reshape(*x.shape[:batch], groups * x.shape[batch + 1], *x.shape[batch + 2 :])
    options = {"feature_group_count": 1, "preferred_element_type": x.dtype}
    low = lax.conv_general_dilated(x, kernel, **(conv_arguments(params) | options))
    batch, channel = numbers.out_spec[:2]
    low = low.reshape(*low.shape[:batch], groups, low.shape[batch] // groups, *low.shape[batch + 1 :])
    return jnp.moveaxis(low, (batch, channel + (channel > batch)), (-2, -1))


def conv_gain(gain: jax.Array, params: dict[str, Any]) -> jax.Array | None:
    """Reshapes DoRA's gain, one for each output channel, to the result's layout; None if it varies over more.

    `gain` has the kernel's axes, of size 1 except for the output channels; the result has the axes of the convolution's
    result, of size 1 except for its channels. `params` are those of conv_general_dilated.
    """
    if gain.size != gain.shape[params["dimension_numbers"].rhs_spec[0]]:
        return None
    shape = [1] * gain.ndim
    shape[params["dimension_numbers"].out_spec[1]] = gain.size
    return gain.reshape(shape)


def conv_arguments(params: dict[str, Any]) -> dict[str, Any]:
    """Selects the keyword arguments of `lax.conv_general_dilated` from the primitive's parameters: {name: value}."""
    names = (
        "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
        "batch_group_count", "precision", "preferred_element_type",
    )  # fmt: skip
    return {name: params[name] for name in names}
