"""Adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, in and out.

base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight   (r, in)
base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight   (out, r)
base_model.model.bert.embeddings.word_embeddings.lora_embedding_A          (r, vocab)
base_model.model.bert.embeddings.word_embeddings.lora_embedding_B          (dim, r)
base_model.model.classifier.weight                                         trained whole
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jlora.adapter import Adapter, Full, LowRank
from jlora.config import HEAD_NAMES, LoraConfig, read_config, write_config
from jlora.errors import JloraError
from jlora.init import abstract_adapter
from jlora.names import hf_keys, is_stacked, is_transposed, module_names
from jlora.paths import nearest

_PREFIX = "base_model.model."


def save_adapter(
    folder: str | os.PathLike, adapter: Adapter, config: LoraConfig, *, base_model: str | None = None
) -> None:
    """Writes the adapter so that PEFT opens it: float32, r and lora_alpha as in `config`.

    Args:
      folder: made where it is not there; its two adapter files are replaced.
      adapter: {path: LowRank | Full}.
      config: what the adapter was made with.
      base_model: name or folder of the base, recorded for those who load it.

    Raises:
      JloraError: an entry for which PEFT's files have no form.
    """
    folder = Path(folder)
    tensors = {key: np.ascontiguousarray(tensor, np.float32) for key, tensor in to_peft(adapter).items()}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "adapter_model.safetensors.part"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.replace(folder / "adapter_model.safetensors")
    names = sorted({name for path, entry in adapter.items() for name in _adapted_names(path, entry)})
    write_config(folder, config, base_model, names)


def load_adapter(
    folder: str | os.PathLike, base: Any, fn: Callable, *args: Any, **kwargs: Any
) -> tuple[dict[str, LowRank | Full], LoraConfig]:
    """Reads an adapter made here or by PEFT.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.
      base: the base that it was made for; leaves may be ShapeDtypeStructs.
      fn, args, kwargs: as for `init`: the function that will be adapted, traced abstractly.

    Returns:
      (adapter, config).

    Raises:
      JloraError: no such file, a feature that is not supported, a pickle, or a key that is missing, unexpected
        or of another shape than the base's.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = _read_tensors(folder)
    template = abstract_adapter(config, base, fn, *args, **kwargs)
    return from_peft(tensors, template, str(folder / "adapter_model.safetensors")), config


def head_rows(folder: str | os.PathLike) -> int | None:
    """The number of outputs of the classification head in an adapter's file; None where it holds no head."""
    tensors = _read_tensors(Path(folder))
    ends = tuple(f"{head}{layer}.weight" for head in HEAD_NAMES for layer in ("", ".out_proj"))
    return next((value.shape[0] for key, value in tensors.items() if key.removeprefix(_PREFIX) in ends), None)


def to_peft(adapter: Adapter) -> dict[str, np.ndarray]:
    """{PEFT's key: tensor in PEFT's layout} of an adapter."""
    tensors: dict[str, np.ndarray] = {}
    for path, entry in adapter.items():
        if isinstance(entry, Full):
            tensors |= _full_to_peft(path, np.asarray(entry.value))
        else:
            a, b = np.asarray(entry.a), np.asarray(entry.b)
            for place in _places(path, entry):
                layer_a = a[place.layer][: place.rank].reshape(place.rank, -1)
                layer_b = b[place.layer][: place.rank].reshape(place.rank, -1).T
                tensors |= {place.a_key: layer_a, place.b_key: layer_b}
    return tensors


def from_peft(tensors: Mapping[str, np.ndarray], template: Adapter, where: str) -> dict[str, LowRank | Full]:
    """The adapter of the template's shapes, scales and settings with PEFT's tensors in it; inverse of `to_peft`.

    Args:
      tensors: {PEFT's key: tensor}.
      template: from `abstract_adapter` or `init`: shapes, and the configuration's scales.
      where: the file, for messages.

    Raises:
      JloraError: a key that is missing, unexpected, or of another shape.
    """
    expected = _expected_shapes(template)
    _check_keys(tensors, expected, where)
    adapter: dict[str, LowRank | Full] = {}
    for path, entry in template.items():
        if isinstance(entry, Full):
            adapter[path] = _full_from_peft(path, entry, tensors)
        else:
            adapter[path] = _low_rank_from_peft(path, entry, tensors)
    return adapter


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where one layer of a LowRank entry stands: its index in the stack and its two keys."""

    layer: tuple[int, ...]
    rank: int
    a_key: str
    b_key: str


def _places(path: str, entry: LowRank) -> Iterator[_Place]:
    stacked = entry.scale.ndim > 1
    if entry.scale.ndim > 2 or (stacked and not is_stacked(path)):
        raise JloraError(
            f"{path}: expected one module a layer, found a stack {entry.scale.shape[:-1]} inside a module,"
            " for which PEFT's files have no form"
        )
    lookup = path.endswith("/embedding")
    names = module_names(path, len(entry.ranks) if stacked else None)
    for layer, (name, rank) in enumerate(zip(names, entry.ranks, strict=True)):
        if rank:
            keys = ["lora_embedding_A", "lora_embedding_B"] if lookup else ["lora_A.weight", "lora_B.weight"]
            index = (layer,) if stacked else ()
            yield _Place(index, rank, *(f"{_PREFIX}{name}.{key}" for key in keys))


def _adapted_names(path: str, entry: LowRank | Full) -> list[str]:
    if isinstance(entry, Full):
        return []
    return [place.a_key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for place in _places(path, entry)]


def _full_keys(path: str, shape: tuple[int, ...]) -> list[str]:
    return [_PREFIX + key for key in hf_keys(path, shape[0] if is_stacked(path) else None)]


def _full_to_peft(path: str, value: np.ndarray) -> dict[str, np.ndarray]:
    layers = value if is_stacked(path) else value[None]
    keys = _full_keys(path, value.shape)
    return {key: layer.T if is_transposed(path) else layer for key, layer in zip(keys, layers, strict=True)}


def _full_from_peft(path: str, entry: Full, tensors: Mapping[str, np.ndarray]) -> Full:
    layers = [tensors[key] for key in _full_keys(path, entry.shape)]
    value = np.stack([layer.T if is_transposed(path) else layer for layer in layers])
    return Full(jnp.asarray(value if is_stacked(path) else value[0], entry.value.dtype))


def _low_rank_from_peft(path: str, entry: LowRank, tensors: Mapping[str, np.ndarray]) -> LowRank:
    a, b = np.zeros(entry.a.shape, np.float32), np.zeros(entry.b.shape, np.float32)
    for place in _places(path, entry):
        layer_a, layer_b = a[place.layer], b[place.layer]  # views
        layer_a[: place.rank] = tensors[place.a_key].reshape(place.rank, *layer_a.shape[1:])
        layer_b[: place.rank] = tensors[place.b_key].T.reshape(place.rank, *layer_b.shape[1:])
    return dataclasses.replace(entry, a=jnp.asarray(a), b=jnp.asarray(b))


def _expected_shapes(template: Adapter) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path, entry in template.items():
        if isinstance(entry, Full):
            shape = entry.shape[1:] if is_stacked(path) else entry.shape
            shape = shape[::-1] if is_transposed(path) else shape
            shapes |= dict.fromkeys(_full_keys(path, entry.shape), shape)
            continue
        rank_axis = len(entry.scale.shape) - 1
        inputs, outputs = (int(np.prod(f.shape[rank_axis + 1 :])) for f in (entry.a, entry.b))
        for place in _places(path, entry):
            shapes |= {place.a_key: (place.rank, inputs), place.b_key: (outputs, place.rank)}
    return shapes


def _check_keys(tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple], where: str) -> None:
    for key, shape in expected.items():
        if key not in tensors:
            raise JloraError(f"{where}: {key}: expected a tensor of shape {shape}, found no such key")
        if tensors[key].shape != shape:
            raise JloraError(
                f"{where}: {key}: expected the shape {shape} that the base and adapter_config.json give,"
                f" found {tensors[key].shape}. Is this the base that the adapter was made for?"
            )
    for key in tensors:
        if key not in expected:
            raise JloraError(
                f"{where}: {key}: found, but adapter_config.json names no such weight{nearest(key, expected)}"
            )


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        found = (
            "adapter_model.bin, a pickle, which is never opened" if (folder / "adapter_model.bin").exists() else "none"
        )
        raise JloraError(f"{path}: expected the adapter's weights as safetensors, found {found}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise JloraError(f"{path}: expected safetensors, found a broken or truncated file ({error})") from None
