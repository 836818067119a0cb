"""Reads the tensors in an adapter's folder under PEFT's keys, also if another program saved them.

The keys of a state_dict that was saved by hand may have additional parts, the adapter's name
(`lora_A.default.weight`) and wrappers of modules (`_orig_mod`), or lack the prefix `base_model.model.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jlora.errors import FileError
from jlora.files.safetensors_reader import open_safetensors
from jlora.peft import mlx
from jlora.peft.tensor_keys import PREFIX

WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; save_file({k: v.clone().contiguous() for k, v'
    f" in torch.load('{_PICKLE}', map_location='cpu', weights_only=True).items()}}, '{WEIGHTS}')\""
)
_NAMED = r"(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|trainable_tokens_delta)"
_WITH_NAME = re.compile(rf"\.{_NAMED}\.(?!weight$|bias$)([^.]+)(?=\.|$)")
_SAVED = re.compile(r"\.modules_to_save\.([^.]+)\.")
_WRAPPERS = re.compile(r"^module\.|\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def weights_file(folder: Path) -> Path:
    """Returns the file with the adapter's tensors: `adapter_model.safetensors`, else mlx-lm's `adapters.safetensors`.

    Raises:
      FileError: the folder has neither. The message names `adapter_model.bin`, which is never opened, or up to five
        other safetensors files, if there are any.
    """
    for name in (WEIGHTS, mlx.WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    path = folder / WEIGHTS
    if (folder / _PICKLE).exists():
        raise FileError(
            f"{path}: expected the adapter's weights as safetensors, found {_PICKLE}, a pickle, which may run code and"
            f" is never opened here. If you trust it, convert it by running in its folder: {_CONVERT}"
        )
    raise FileError(f"{path}: expected the adapter's weights as safetensors, found {_say_what_is_instead(folder)}")


def _say_what_is_instead(folder: Path) -> str:
    """Returns what a folder without the adapter's weights has, and what to do."""
    if others := sorted(file.name for file in folder.glob("*.safetensors"))[:5]:
        return (
            f"{', '.join(others)}. If that is the adapter, rename it to {WEIGHTS}; a whole model is given as the base"
        )
    if parts := sorted(file.name for name in ("global_step*", "*.distcp") for file in folder.glob(name)):
        return (
            f"a checkpoint in parts ({parts[0]}). Join them first: zero_to_fp32.py --safe_serialization for DeepSpeed,"
            " accelerate merge-weights for FSDP"
        )
    if foreign := sorted(file.name for name in ("*.h5", "*.npz", "*.gguf", "*.pt") for file in folder.glob(name)):
        return f"{foreign[0]}, which is not PEFT's. Save the adapter with PEFT's save_pretrained"
    return "none. Copy or download them, too"


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Returns {PEFT's key: tensor} of the folder's file; values are read from the disk when they are used.

    Raises:
      FileError: no file that `weights_file` finds, a dtype that is not floating point, an empty tensor, or the tensors
        of two adapters.
    """
    file = weights_file(folder)
    tensors = open_safetensors(file)
    for tensor in tensors.values():
        tensor.require_float()
    found = {key: tensor.as_numpy() for key, tensor in tensors.items()}
    return mlx.peft_tensors(found) if file.name == mlx.WEIGHTS else peft_keys(found, file)


def peft_keys(tensors: Mapping[str, np.ndarray], file: Path) -> dict[str, np.ndarray]:
    """Renames the tensors to the keys that PEFT's `save_pretrained` writes.

    `model.q.lora_A.default.weight` becomes `base_model.model.model.q.lora_A.weight`: the prefix is added if it is
    missing, and the adapter's name, `modules_to_save` and wrappers (`module.`, `_orig_mod`) are removed.

    Args:
      tensors: {key: tensor}.
      file: for messages.

    Raises:
      FileError: the keys have the names of several adapters, or two tensors with other values get one key.
    """
    names = {match[2] for key in tensors if (match := _WITH_NAME.search(key))} or {
        match[1] for key in tensors if (match := _SAVED.search(key)) and _SAVED.sub(".", key) in tensors
    }
    if len(names) > 1:
        raise FileError(
            f"{file}: expected one adapter, found {', '.join(sorted(names))}. Save the one that you want with"
            " save_pretrained(folder, selected_adapters=[name])"
        )
    name = re.escape(names.pop() if names else "default")
    renamed: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        plain = _without_name(_WRAPPERS.sub("", key), name)
        plain = plain if plain.startswith("base_model.") else PREFIX + plain
        if plain in renamed and not np.array_equal(renamed[plain], tensor):
            raise FileError(
                f"{file}: {key}: expected the same values as in {plain}, which names the same weight, found others."
                " Delete the one that was not trained, or save the adapter again"
            )
        renamed[plain] = tensor
    return renamed


def _without_name(key: str, name: str) -> str:
    """Removes from the key the adapter's name (an expression) and `modules_to_save`, as in PEFT's files."""
    key = re.sub(rf"\.{_NAMED}\.{name}(?=\.|$)", r".\1", key)
    key = re.sub(rf"\.modules_to_save\.({name}\.)?", ".", key)
    key = key.replace(".token_adapter.base_layer.", ".base_layer.")
    return key.removesuffix(".weight") if key.endswith(".lora_magnitude_vector.weight") else key
