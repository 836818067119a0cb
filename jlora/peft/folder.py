"""Folders that PEFT opens: `adapter_config.json` and `adapter_model.safetensors`, in and out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jlora.abstract_adapter import abstract_adapter
from jlora.adapter import Adapter, Entry, LowRank
from jlora.config import HEAD_NAMES, LoraConfig
from jlora.dora import squared_norm
from jlora.errors import JloraError
from jlora.finite import require_finite
from jlora.names import torch_path
from jlora.paths import array_leaves
from jlora.peft.config_file import read_base_name, read_config, write_config
from jlora.peft.copies import tied_head, without_copies
from jlora.peft.keys import PREFIX, adapted_names, from_peft, is_conv1d, to_peft
from jlora.peft.torch_paths import in_torch_paths
from jlora.peft.true_config import true_config
from jlora.peft.vllm import for_vllm
from jlora.safetensors_file import open_safetensors
from jlora.whole_folder import whole_folder

__all__ = ["from_peft", "head_rows", "load_adapter", "save_adapter", "to_peft"]


def save_adapter(
    folder: str | os.PathLike,
    adapter: Adapter,
    config: LoraConfig,
    *,
    base_model: str | None = None,
    vllm: bool = False,
    names: Mapping[str, str] | None = None,
) -> None:
    """Writes the adapter so that PEFT opens it, float32, with a configuration that is true of it.

    Ranks, scales and modules that are not the configuration's any more are written as they are. With
    `ensure_weight_tying` the tensors of an embedding `embed_tokens` stand under `lm_head` too, as PEFT has them.

    Args:
      folder: made where it is not there; its two adapter files are replaced.
      adapter: {path: LowRank | Full | Rows}.
      config: what the adapter was made with.
      base_model: name or folder of the base, recorded for those who load it.
      vllm: write what vLLM serves: the scale folded into B, all ranks padded to one r, lora_alpha = r.
      names: {path: torch's name of the parameter} of a tree whose paths are not those of the torch model:
        {"blocks/q/kernel": "model.layers.{}.self_attn.q_proj.weight"}, with {} for the number of the layer in a
        stack. It must hold every path of the adapter.

    Raises:
      JloraError: an entry for which PEFT's files, or vLLM with `vllm`, have no form; a path that gives no name under
        which PEFT could find it.
    """
    adapter = in_torch_paths(adapter, names)
    folder, adapted = Path(folder), adapted_names(adapter)
    if vllm:
        adapter, config = for_vllm(adapter, config, adapted)
    else:
        config = true_config(config, adapter)
    tensors = to_peft(adapter)
    if config.ensure_weight_tying:
        tensors = tied_head(tensors) | tensors
    tensors = {key: np.ascontiguousarray(tensor, np.float32) for key, tensor in tensors.items()}
    fan_in_fan_out = any(is_conv1d(path, entry) for path, entry in adapter.items())
    with whole_folder(folder) as partial:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        write_config(partial, config, base_model, adapted, fan_in_fan_out=fan_in_fan_out)


def load_adapter(
    folder: str | os.PathLike,
    base: Any,
    fn: Callable,
    *args: Any,
    base_model: str | None = None,
    names: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> tuple[dict[str, Entry], LoraConfig]:
    """Reads an adapter made here or by PEFT.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.
      base: the base that it was made for; leaves may be ShapeDtypeStructs where the adapter is not DoRA's.
      fn, args, kwargs: as for `init`: the function that will be adapted, traced abstractly.
      base_model: name or folder of `base`, compared with the one that `adapter_config.json` names; None: neither is.
      names: as for `save_adapter`; the configuration that is returned means modules by torch's names.

    Returns:
      (adapter, config).

    Raises:
      JloraError: no such file, a feature that is not supported, a pickle, NaN or infinite values, another base, or
        a key that is missing, unexpected or of another shape than the base's.
    """
    folder = Path(folder)
    config, where = read_config(folder), str(folder / "adapter_model.safetensors")
    _require_base(folder, base_model)
    tensors = _mapped_tensors(folder)
    template = abstract_adapter(config, base, fn, *args, names=names, **kwargs)
    leaves = array_leaves(base)
    named, named_leaves = ({torch_path(path, names): x for path, x in tree.items()} for tree in (template, leaves))
    tensors = without_copies(tensors, named, named_leaves, config.ensure_weight_tying, where)
    read = from_peft(tensors, named, where)
    adapter = {path: read[torch_path(path, names)] for path in template}
    for key, tensor in tensors.items():  # which have the expected shapes by now, and no more numbers than these
        require_finite(tensor, f"{where}: {key}")
    return _with_norms(adapter, leaves), config


def head_rows(folder: str | os.PathLike) -> int | None:
    """The number of outputs of the classification head in an adapter's file; None where it holds no head."""
    tensors = _mapped_tensors(Path(folder))
    ends = tuple(f"{head}{layer}.weight" for head in HEAD_NAMES for layer in ("", ".out_proj"))
    return next((value.shape[0] for key, value in tensors.items() if key.removeprefix(PREFIX) in ends), None)


def _with_norms(adapter: dict[str, Entry], leaves: Mapping[str, Any]) -> dict[str, Entry]:
    """The adapter with what DoRA needs of the base; the magnitudes of layers without an adapter are their norms."""
    for path, entry in adapter.items():
        if isinstance(entry, LowRank) and entry.magnitude is not None:
            if isinstance(leaves[path], jax.ShapeDtypeStruct):
                raise JloraError(f"{path}: expected the base's values, whose norms DoRA needs; found a shape alone")
            norms = squared_norm(entry, leaves[path])
            adapted = jnp.asarray(entry.ranks).reshape(-1, *(1,) * (norms.ndim - 1)) > 0
            if entry.scale.ndim == 1:
                adapted = jnp.ones_like(norms, bool)
            magnitude = jnp.where(adapted, entry.magnitude, jnp.sqrt(norms))
            adapter[path] = dataclasses.replace(entry, magnitude=magnitude, squared_norm=norms)
    return adapter


def _require_base(folder: Path, base_model: str | None) -> None:
    named = read_base_name(folder)
    if base_model is not None and named is not None and not _same_base(named, base_model):
        raise JloraError(
            f"{folder / 'adapter_config.json'}: base_model_name_or_path: expected {base_model}, found {named}. Load the"
            " base that the adapter was made for; or, if this is the same one under another name, give no base_model"
        )


def _same_base(first: str, second: str) -> bool:
    """Whether two names may mean one model: of folders, and of a hub id beside a folder, the last part counts."""
    first, second = (_hub_id(name) for name in (first, second))
    if any(_is_folder(name) or "/" not in name for name in (first, second)):
        first, second = (Path(os.path.abspath(name)).name for name in (first, second))
    return first.lower() == second.lower()


def _hub_id(name: str) -> str:
    """The hub's id where the name is a folder of its cache: `…/models--org--name/snapshots/…`."""
    cached = next((part for part in Path(name).parts if part.startswith("models--")), None)
    return name if cached is None else cached.removeprefix("models--").replace("--", "/")


def _is_folder(name: str) -> bool:
    return name.count("/") != 1 or name.startswith(("/", ".", "~")) or Path(name).is_dir()


def _mapped_tensors(folder: Path) -> dict[str, np.ndarray]:
    """{key: tensor} of the adapter's file, which is not touched before the numbers are."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        found = (
            "adapter_model.bin, a pickle, which is never opened" if (folder / "adapter_model.bin").exists() else "none"
        )
        raise JloraError(f"{path}: expected the adapter's weights as safetensors, found {found}")
    tensors = open_safetensors(path)
    for tensor in tensors.values():
        tensor.require_float()
    return {key: tensor.mapped() for key, tensor in tensors.items()}
