"""Converts adapters to and from the tensors of PEFT's `adapter_model.safetensors`. Its keys and layouts:

base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight         (r, in)
base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight         (out, r)
base_model.model.bert.encoder.layer.0.attention.self.query.lora_magnitude_vector (out,)
base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.bias       (out,), trained, of an adapted module
base_model.model.bert.encoder.layer.0.output.LayerNorm.bias                      trained, of any other module
base_model.model.bert.embeddings.word_embeddings.lora_embedding_A                (r, vocab)
base_model.model.bert.embeddings.word_embeddings.lora_embedding_B                (dim, r)
base_model.model.bert.embeddings.word_embeddings.token_adapter.trainable_tokens_delta  (rows, dim), the rows' values
base_model.model.classifier.weight                                               trained in full
base_model.model.patches.lora_A.weight, .lora_B.weight, .lora_magnitude_vector   (r, in, k, k), (out, r, 1, 1) and
                                                                                 (1, out, 1, 1) of a convolution
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import AdapterMismatchError, JloraError, nearest
from jlora.lora.entries import Adapter, Entry, Full, LowRank, Rows
from jlora.lora.layer_names import layer_names
from jlora.tree.module_names import hf_keys, is_stacked, is_transposed, module_names

PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of the file and the part of an entry's array that it holds.

    Attributes:
      key: PEFT's key.
      shape: of the tensor in the file.
      path, field: the entry and its array: a, b, magnitude or value.
      index: the part of the array: one layer of a stack, the true rank of a padded factor.
      order: the order of that part's axes in the file, before they are flattened to `shape`.
    """

    key: str
    shape: tuple[int, ...]
    path: str
    field: str
    index: tuple[int | slice, ...]
    order: tuple[int, ...]

    def view(self, array: np.ndarray) -> np.ndarray:
        """Returns the part of the array as a view, with its axes in the file's order."""
        return array[(*self.index, ...)].transpose(self.order)

    def tensor(self, array: np.ndarray) -> np.ndarray:
        """Returns the part of the array as the file's tensor."""
        return self.view(array).reshape(self.shape)


def slots(adapter: Adapter) -> list[Slot]:
    """Lists all tensors that the adapter has in PEFT's file.

    A `LowRank` has two for each layer with a rank above 0, and with DoRA a third; `Full` has one for each layer, `Rows`
    has one. A stack is recognized by its path (`layers/dense/kernel`).

    Raises:
      JloraError: PEFT's files cannot hold an entry: there is a stack inside one module, or two leaves have one key.
    """
    adapted, found = set(names_of_adapted(adapter)), list[Slot]()
    for path, entry in adapter.items():
        if isinstance(entry, LowRank):
            found += _low_rank_slots(path, entry)
        elif isinstance(entry, Rows):
            key = f"{PREFIX}{module_names(path, None)[0]}.token_adapter.trainable_tokens_delta"
            found.append(Slot(key, entry.value.shape, path, "value", (), (0, 1)))
        else:
            found += _full_slots(path, entry, adapted)
    _require_one_each(found)
    return found


def _require_one_each(found: list[Slot]) -> None:
    owners: dict[str, str] = {}
    for slot in found:
        other = owners.setdefault(slot.key, slot.path)
        if other != slot.path:
            raise JloraError(
                f"{slot.path}: expected a key of its own in PEFT's file, found {slot.key}, which is {other}'s"
            )


def to_peft(adapter: Adapter) -> dict[str, np.ndarray]:
    """Converts an adapter to {PEFT's key: tensor in PEFT's layout}.

    The entry `params/x/q/kernel`, a (r, in) and b (r, out), gives `base_model.model.x.q.lora_A.weight` (r, in) and
    `base_model.model.x.q.lora_B.weight` (out, r). A `Full` `params/score/kernel` (in, out) gives
    `base_model.model.score.weight` (out, in). The scale is not in the file.

    Raises:
      JloraError: PEFT's files cannot hold an entry: there is a stack inside one module, or two leaves have one key.
    """
    places, arrays = slots(adapter), dict[tuple[str, str], np.ndarray]()
    for path, field in {(slot.path, slot.field) for slot in places}:
        arrays[path, field] = np.asarray(getattr(adapter[path], field))
    return {slot.key: slot.tensor(arrays[slot.path, slot.field]) for slot in places}


def from_peft(tensors: Mapping[str, np.ndarray], template: Adapter, where: str) -> dict[str, Entry]:
    """Fills PEFT's tensors into the template's entries; the inverse of `to_peft`.

    Args:
      tensors: {PEFT's key: tensor}.
      template: from `abstract_adapter` or `init`: shapes, scales and settings. The file has no magnitudes of layers
        that are not adapted; those remain the template's (zero if it is abstract).
      where: the file, for messages.

    Raises:
      AdapterMismatchError: a key is missing, unexpected, or has another shape.
    """
    expected = slots(template)
    _check_keys(tensors, {slot.key: slot.shape for slot in expected}, where)
    arrays: dict[str, dict[str, np.ndarray]] = {path: {} for path in template}
    for slot in expected:
        fields = arrays[slot.path]
        if slot.field not in fields:
            fields[slot.field] = _blank(getattr(template[slot.path], slot.field), slot.field)
        part = slot.view(fields[slot.field])
        part[...] = tensors[slot.key].reshape(part.shape)
    return {path: _fill_entry(entry, arrays[path]) for path, entry in template.items()}


def _blank(like: jax.Array, field: str) -> np.ndarray:
    if field == "magnitude" and not isinstance(like, jax.ShapeDtypeStruct):
        return np.array(like, np.float32)
    return np.zeros(like.shape, like.dtype if field == "value" else np.float32)


def _fill_entry(entry: Entry, arrays: Mapping[str, np.ndarray]) -> Entry:
    changes: dict[str, Any] = {field: jnp.asarray(array) for field, array in arrays.items()}
    return dataclasses.replace(entry, **changes) if changes else entry


def names_of_adapted(adapter: Adapter) -> list[str]:
    """Returns the sorted dotted names of the modules with a low-rank update, without layers of rank 0.

    Raises:
      JloraError: there is a stack inside one module, which PEFT's files cannot hold.
    """
    return sorted(
        name
        for path, entry in adapter.items()
        if isinstance(entry, LowRank)
        for name, rank in zip(peft_layer_names(path, entry), entry.ranks, strict=True)
        if rank
    )


def peft_layer_names(path: str, entry: LowRank) -> list[str]:
    """Returns the dotted name of the module of each of the entry's layers, each a module of its own in PEFT.

    `params/layers/q/kernel` with two ranks gives ["layers.0.q", "layers.1.q"].

    Raises:
      JloraError: there is a stack inside one module, which PEFT's files cannot hold.
    """
    stack = entry.scale.shape[:-1]
    if len(stack) > 1 or (stack and not (is_stacked(path) and len(entry.ranks) == stack[0])):
        raise JloraError(
            f"{path}: expected one module a layer, found a stack {stack} inside a module,"
            " for which PEFT's files have no form"
        )
    return layer_names(path, entry)


def is_conv1d(path: str, entry: Entry) -> bool:
    """Returns whether the leaf is a Conv1D of GPT-2: called `weight`, as in the checkpoint, but stored as (in, out).

    True for a `LowRank` of kind "linear" whose path ends in /weight, and whose spec has the inputs first: "ra,rb->ab",
    but not "ra,rb->ba".
    """
    if not isinstance(entry, LowRank) or entry.kind != "linear" or not path.endswith("/weight"):
        return False
    axes = entry.axes
    return axes.leaf.index(axes.inputs[0]) < axes.leaf.index(axes.outputs[0])


def _low_rank_slots(path: str, entry: LowRank) -> Iterator[Slot]:
    stack = len(entry.scale.shape) - 1
    inputs, outputs = entry.a.shape[stack + 1 :], entry.b.shape[stack + 1 :]
    conv, lookup = entry.kind == "conv", entry.kind == "lookup"
    window = (1,) * (len(inputs) - 1) if conv else ()
    a_key, b_key = ("lora_embedding_A", "lora_embedding_B") if lookup else ("lora_A.weight", "lora_B.weight")
    a_order, b_order = tuple(range(1 + len(inputs))), (*range(1, 1 + len(outputs)), 0)
    width = math.prod(outputs)
    for layer, (name, rank) in enumerate(zip(peft_layer_names(path, entry), entry.ranks, strict=True)):
        if rank:
            index = (layer,) if stack else ()
            part, key = (*index, slice(rank)), f"{PREFIX}{name}"
            a_shape = (rank, *inputs) if conv else (rank, math.prod(inputs))
            yield Slot(f"{key}.{a_key}", a_shape, path, "a", part, a_order)
            yield Slot(f"{key}.{b_key}", (width, rank, *window), path, "b", part, b_order)
            if entry.magnitude is not None:
                shape = (1, width, *window) if conv else (width,)
                order = tuple(range(len(outputs)))
                yield Slot(f"{key}.lora_magnitude_vector", shape, path, "magnitude", index, order)


def _full_slots(path: str, entry: Full, adapted: set[str]) -> Iterator[Slot]:
    stacked, shape = is_stacked(path), entry.value.shape
    numbers = entry.layers if entry.layers is not None else range(shape[0] if stacked else 1)
    count = max(numbers, default=-1) + 1 if stacked else None
    keys, modules = hf_keys(path, count), module_names(path, count)
    layer = shape[1:] if stacked else shape
    if entry.torch_axes is not None and sum(map(len, entry.torch_axes)) != len(layer):
        raise JloraError(
            f"{path}: expected one module per layer, found a leaf of shape {shape}, which PEFT's files cannot hold:"
            f" its name says that it is {'' if stacked else 'not '}a stack of layers, but the function uses it"
            " otherwise. Leave it out of modules_to_save, or correct its name in names"
        )
    groups = entry.torch_axes or tuple((axis,) for axis in _checkpoint_order(path, len(layer)))
    order = tuple(axis for group in groups for axis in group)
    sizes = tuple(math.prod(layer[axis] for axis in group) for group in groups)
    for position, number in enumerate(numbers):
        key, module = keys[number], modules[number]
        if module in adapted and key != module:  # PEFT's module wraps the base's
            key = f"{module}.base_layer{key.removeprefix(module)}"
        index = (position,) if stacked else ()
        yield Slot(PREFIX + key, sizes, path, "value", index, order)


def _checkpoint_order(path: str, ndim: int) -> tuple[int, ...]:
    """Returns a kernel's axes in the checkpoint's order: (out, in), or (out, in, *window) for a convolution."""
    if is_transposed(path) and ndim > 1:
        return (ndim - 1, ndim - 2, *range(ndim - 2))
    return tuple(range(ndim))


def _check_keys(tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple], where: str) -> None:
    for key, shape in expected.items():
        if key not in tensors:
            raise AdapterMismatchError(
                f"{where}: {key}: expected a tensor of shape {shape}, found no such key{nearest(key, tensors)}."
                " Check that adapter_config.json and the base are those that the adapter was trained with"
            )
        if tensors[key].shape != shape:
            raise AdapterMismatchError(
                f"{where}: {key}: expected the shape {shape} that the base and adapter_config.json give,"
                f" found {tensors[key].shape}. Check that this is the base that the adapter was trained with"
            )
    for key in tensors:
        if key not in expected:
            raise AdapterMismatchError(
                f"{where}: {key}: found, but adapter_config.json names no such weight of this base"
                f"{nearest(key, expected)}. Check that adapter_config.json and the base are those that the adapter was"
                " trained with"
            )
