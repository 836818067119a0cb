"""Requires an adapter to be of the base that it is loaded with, by the base's name and by the sizes of its weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jlora.errors import AdapterMismatchError
from jlora.peft.tensor_keys import PREFIX
from jlora.tree.module_names import is_stacked, is_transposed, module_names
from jlora.tree.output_heads import OUTPUT_EMBEDDINGS

_A, _B = ".lora_A.weight", ".lora_B.weight"


def adapted_modules(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the modules that have a low-rank update in {PEFT's key: tensor}."""
    ends = (_A, ".lora_embedding_A")
    return [key.removeprefix(PREFIX).removesuffix(end) for key in tensors for end in ends if key.endswith(end)]


def require_base_name(named: str | None, base_model: str | None, file: Path) -> None:
    """Raises AdapterMismatchError if both names are given and cannot mean the same base.

    Args:
      named: the base that the adapter's configuration, which is `file`, names.
      base_model: the base that it is loaded with.
    """
    if base_model is not None and named is not None and not _may_be_same(named, base_model):
        raise AdapterMismatchError(
            f"{file}: base_model_name_or_path: expected {base_model}, found {named}. Load the"
            " base that the adapter was made for; or, if both names mean the same base, leave out base_model"
        )


def require_base_sizes(
    tensors: Mapping[str, np.ndarray], leaves: Mapping[str, Any], where: str, named: str | None
) -> None:
    """Raises AdapterMismatchError if A and B are for modules that the base does not have, or has in other sizes.

    Other errors about an adapter of another base would be about its token rows or its trained modules, which are not
    what is wrong. Only linear layers are compared: tables of tokens change their sizes when tokens are added, and a
    grouped convolution's A is not of its kernel's size.

    Args:
      tensors: {PEFT's key: tensor}.
      leaves: {path in the base, under PyTorch's names: leaf}.
      where: the file with the tensors, for the message.
      named: the base that the adapter's configuration names, or None.
    """
    sizes = _sizes_by_module(leaves)
    adapted = [module for module in adapted_modules(tensors) if module.rpartition(".")[2] not in OUTPUT_EMBEDDINGS]
    other = "the adapter is of another base. Load the base that it was made for (--base)"
    if named:
        other = (
            f"the adapter is of another base. Its configuration names {named}: load that one (--base); or if it is the"
            " one that was loaded, another model was there when the adapter was made"
        )
    if adapted and sizes and not any(module in sizes for module in adapted):
        key = next(key for key in tensors if adapted[0] in key)
        raise AdapterMismatchError(f"{where}: {_say_whose_module(key, adapted[0], sizes, other)}")
    for module in adapted:
        a, b = (tensors.get(f"{PREFIX}{module}{end}") for end in (_A, _B))
        if a is None or b is None or module not in sizes or a.ndim != 2:
            continue
        if a.shape[1] * b.shape[0] != math.prod(sizes[module]):
            raise AdapterMismatchError(f"{where}: {PREFIX}{module}: {_say_whose_sizes(a, b, sizes[module], other)}")


def _say_whose_module(key: str, module: str, sizes: Mapping[str, Any], other: str) -> str:
    """Returns the error about a key whose module the base does not have."""
    parts = module.split(".")
    ends = (".".join(parts[count:]) for count in range(1, len(parts)))
    if name := next((end for end in ends if end in sizes), None):
        return (
            f"{key.removeprefix(PREFIX)}: expected the base's name of the module, {name}, found"
            f" {module.removesuffix(name)!r} before it. A program that wraps the model has added it: save the adapter"
            " from the model inside, or rename the keys"
        )
    return f"{key}: found, but the base has no such module (it has {max(sizes, key=len)} and the like): {other}"


def _say_whose_sizes(a: np.ndarray, b: np.ndarray, size: tuple[int, ...], other: str) -> str:
    """Returns the error about A and B that are not for a weight of this size."""
    if a.shape[1] == b.shape[0] and a.shape[0] * math.prod(b.shape[1:]) == math.prod(size):
        return (
            f"expected lora_A.weight of shape (r, in) and lora_B.weight of shape (out, r), found {a.shape} and"
            f" {b.shape}, which are transposed. Transpose both, and save them again"
        )
    of_base = " x ".join(map(str, size))
    return f"A and B are for a weight of {b.shape[0]} x {math.prod(a.shape[1:])}, the base's is {of_base}: {other}"


def _sizes_by_module(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns {module: the shape of its weight, (out, in)} of all matrices, one for each layer of a stack.

    Whether a leaf is a stack is guessed by its name, so it is there as a whole too.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    for path, leaf in leaves.items():
        layers = leaf.shape[0] if is_stacked(path) and leaf.ndim else None
        shape = leaf.shape if layers is None else leaf.shape[1:]
        if len(shape) > 1:
            ordered = shape[::-1] if is_transposed(path) and len(shape) == 2 else shape
            sizes |= dict.fromkeys(module_names(path, layers), tuple(ordered))
            if layers is not None:
                sizes |= dict.fromkeys(module_names(path, None), tuple(leaf.shape))
    return sizes


def _may_be_same(first: str, second: str) -> bool:
    """Returns whether two names may mean the same model.

    If at least one is a folder, only the last parts are compared: a copy of a hub model may be in any folder.
    """
    names = [_hub_id(name) for name in (first, second)]
    if any(name.count("/") != 1 or name.startswith(("/", ".", "~")) or Path(name).is_dir() for name in names):
        names = [Path(os.path.abspath(name)).name for name in names]
    return names[0].lower() == names[1].lower()


def _hub_id(name: str) -> str:
    """Returns the hub id if the name is in the hub's cache (`…/models--org--name/snapshots/…`), else `name`."""
    cached = next((part for part in Path(name).parts if part.startswith("models--")), None)
    return name if cached is None else cached.removeprefix("models--").replace("--", "/")
