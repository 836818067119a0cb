"""Converts PEFT's `lora_bias`: W x + bias + scale (B A x + b) is the same as a trained bias `bias + scale b`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jlora.errors import FileError, JloraError
from jlora.lora.entries import Adapter, Full, LowRank
from jlora.peft.tensor_keys import Slot, slots

_BIAS = ".lora_B.bias"


def fold_lora_bias(
    tensors: Mapping[str, np.ndarray], template: Adapter, leaves: Mapping[str, Any], where: str
) -> dict[str, np.ndarray]:
    """Adds each `lora_B.bias` to its module's own bias, which a file with `bias: lora_only` would hold.

    The result has `MODULE.base_layer.bias` = bias + scale * `MODULE.lora_B.bias` in place of `MODULE.lora_B.bias`. The
    bias is the file's own `MODULE.base_layer.bias`, or else the base's; the scale is that of the template's entry.

    Args:
      tensors: {PEFT's key: tensor}; it is not changed.
      template: the adapter, in which the biases of adapted modules are trained (`Full` entries).
      leaves: {path: leaf} of the base.
      where: the file, for messages.

    Raises:
      FileError: a `lora_B.bias` that is not zero, of a module without a trained bias; zeros are left out.
      JloraError: the base's bias is needed, but is only a shape.
    """
    by_key = {slot.key: slot for slot in slots(template)}
    folded = {key: tensor for key, tensor in tensors.items() if not key.endswith(_BIAS)}
    for key in tensors.keys() - folded.keys():
        module = key.removesuffix(_BIAS)
        product, own = by_key.get(f"{module}.lora_B.weight"), by_key.get(f"{module}.base_layer.bias")
        if own is None or product is None:
            if np.any(tensors[key]):
                raise FileError(
                    f"{where}: {key}: expected no such key, or zeros, because the base's module has no bias to add it"
                    " to; found other numbers (lora_bias in adapter_config.json). Neither jlora nor PEFT's merge can"
                    " put it anywhere: use the adapter with PEFT, or train it again without lora_bias"
                )
            continue
        start = folded[own.key] if own.key in folded else _bases_bias(own, template, leaves)
        folded[own.key] = start.astype(np.float32) + _scale(product, template) * tensors[key].astype(np.float32)
    return folded


def _scale(product: Slot, template: Adapter) -> np.float32:
    entry = template[product.path]
    assert isinstance(entry, LowRank)
    return np.asarray(entry.scale, np.float32)[product.index][0]


def _bases_bias(slot: Slot, template: Adapter, leaves: Mapping[str, Any]) -> np.ndarray:
    leaf, entry = leaves[slot.path], template[slot.path]
    assert isinstance(entry, Full)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise JloraError(
            f"{slot.path}: expected an array, because lora_bias is added to the base's values; found a shape alone."
            " Load the base with its weights"
        )
    whole = np.asarray(leaf, np.float32)
    return slot.tensor(whole if entry.layers is None else whole[list(entry.layers)])
