"""Removes redundant tensors of PEFT's files: copies of the base's weights or of other tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jlora.errors import AdapterMismatchError
from jlora.lora.entries import Adapter, Full, Rows
from jlora.peft.tensor_keys import PREFIX, Slot, slots
from jlora.tree.module_names import module_names
from jlora.tree.output_heads import HEAD
from jlora.tree.quantized import is_quantized

_SAME = 1e-2
"""The relative L2 difference up to which two weights count as the same weight, rounded (bfloat16 has 3 digits)."""
_ROUNDED = (np.float32, ml_dtypes.bfloat16, np.float16)
_ADVICE = (
    "Check that this is the base that the adapter was made for. If the weight was trained, or the embedding resized,"
    " add its module to modules_to_save in adapter_config.json"
)


def tied_head(tensors: Mapping[str, np.ndarray], adapter: Adapter) -> dict[str, np.ndarray]:
    """Returns the tensors that PEFT writes for an output head that is tied to an adapted embedding.

    With the prefix `base_model.model.`, `lm_head.lora_A.weight` is `model.embed_tokens.lora_embedding_B` transposed,
    and `lm_head.lora_B.weight` is `model.embed_tokens.lora_embedding_A` transposed. `model.embed_tokens.weight` and
    `.base_layer.weight` are copied under `lm_head`.

    Args:
      tensors: {PEFT's key: tensor} of the adapter.
      adapter: {path: entry}; an embedding is tied if its entry has `tied`.

    Returns:
      {PEFT's key: tensor} of the head alone; {} without a tied entry.
    """
    tied: dict[str, np.ndarray] = {}
    for path in (path for path, entry in adapter.items() if not isinstance(entry, Rows) and entry.tied):
        embedding, head = f"{PREFIX}{module_names(path, None)[0]}.", f"{PREFIX}{HEAD}."
        for end, name, turned in _OF_THE_HEAD:
            if (tensor := tensors.get(embedding + end)) is not None:
                tied[head + name] = tensor.T if turned else tensor
    return tied


_OF_THE_HEAD = (
    ("lora_embedding_A", "lora_B.weight", True),
    ("lora_embedding_B", "lora_A.weight", True),
    ("weight", "weight", False),
    ("base_layer.weight", "base_layer.weight", False),
)
"""(key of an embedding, key of the head that is tied to it, whether the tensor is transposed)."""


def without_copies(
    tensors: Mapping[str, np.ndarray], template: Adapter, leaves: Mapping[str, Any], where: str
) -> dict[str, np.ndarray]:
    """Returns the tensors without those that only repeat other tensors or the base.

    PEFT writes the base's own `embed_tokens.base_layer.weight` for an adapted embedding, its `embed_tokens.weight` and
    `lm_head.weight` with `save_embedding_layers`, the head's tensors for a tied embedding, and, with bias "all",
    `classifier.original_module.bias`; a state_dict has the whole base.

    Keys that are neither the adapter's nor such copies are kept: `from_peft` refuses them.

    Args:
      tensors: {PEFT's key: tensor} of the file.
      template: the adapter whose tensors the file must have, of arrays or ShapeDtypeStructs.
      leaves: {path: leaf} of the base, arrays or ShapeDtypeStructs. The values of shapes and of quantized leaves are
        not compared.
      where: the file, for messages.

    Raises:
      AdapterMismatchError: a key of a weight of the base with another shape or other values than the base has. With
        `base_layer` or `original_module` in the key they may differ by 1%, else only by rounding to 16 bits.
    """
    expected = {slot.key for slot in slots(template)}
    repeated = tied_head(tensors, template)
    others = {key for key in tensors if key not in expected}
    others -= {key for key in others & repeated.keys() if np.array_equal(tensors[key], repeated[key])}
    whole = {slot.key: slot for slot in slots({path: Full(leaf) for path, leaf in leaves.items()})} if others else {}
    for key in sorted(others):
        name = re.sub(r"\.(base_layer|original_module)\.", ".", key)
        slot = whole.get(name)
        if slot is not None:
            near = slot.key != key  # PEFT would load a tensor with the base's own key, so that must be equal
            _require_bases(f"{where}: {key}", tensors[key], slot, leaves[slot.path], near=near)
            others.remove(key)
        elif name == f"{PREFIX}{HEAD}.weight" and _is_twice(key, tensors):
            others.remove(key)  # the embedding's table, to which the head is tied
    return {key: tensor for key, tensor in tensors.items() if key in expected or key in others}


def _is_twice(key: str, tensors: Mapping[str, np.ndarray]) -> bool:
    """Returns whether another tensor of the file has the same numbers."""
    alike = (other for name, other in tensors.items() if name != key and other.shape == tensors[key].shape)
    return any(np.array_equal(tensors[key], other) for other in alike)


def _require_bases(what: str, tensor: np.ndarray, slot: Slot, leaf: Any, *, near: bool) -> None:
    """Raises AdapterMismatchError unless the tensor equals the base's up to rounding, or is close to it if `near`."""
    if tensor.shape != slot.shape:
        raise AdapterMismatchError(
            f"{what}: expected the base's own weight of shape {slot.shape}, found one of {tensor.shape}. {_ADVICE}"
        )
    if isinstance(leaf, jax.ShapeDtypeStruct) or is_quantized(leaf):
        return
    own, found = slot.tensor(np.asarray(leaf, np.float32)), tensor.astype(np.float32)
    difference = float(np.linalg.norm(found - own) / max(float(np.linalg.norm(own)), 1e-30))
    if not (near and difference <= _SAME) and not _is_rounded(found, own):
        raise AdapterMismatchError(
            f"{what}: expected the base's own weight, found other values (relative difference {difference:.2g})."
            f" {_ADVICE}"
        )


def _is_rounded(first: np.ndarray, second: np.ndarray) -> bool:
    """Returns whether both are equal after rounding to a dtype in which one of them may have been stored."""
    with np.errstate(over="ignore"):
        return any(np.array_equal(first.astype(dtype), second.astype(dtype)) for dtype in _ROUNDED)
