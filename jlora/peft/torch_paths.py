"""Renames the entries of any tree's adapter to paths with PyTorch's module names, which PEFT looks for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from jlora.errors import JloraError
from jlora.lora.entries import Adapter, Entry, Full, LowRank
from jlora.tree.module_names import is_stacked, module_names, parameter, torch_path

_HELP = ". Give PyTorch's names: save_adapter(..., names={path: 'model.layers.{}.q_proj.weight'})"


def in_torch_paths(adapter: Adapter, names: Mapping[str, str] | None) -> dict[str, Entry]:
    """Returns the adapter under paths that have PyTorch's names of the modules.

    With {"blocks/q/kernel": "model.layers.{}.q_proj.weight"} the entry `blocks/q/kernel` is under
    `model.layers.{}.q_proj/kernel`. The last part is `bias` for a name that ends in .bias, `weight` if that is what the
    leaf is called (or `scale`, `embedding`), else `kernel`. {} is the number of the layer in a stack; a `LowRank` with
    a single rank gets it for each layer of the stack.

    Args:
      adapter: {path: entry}.
      names: {path: PyTorch's name, which ends in .weight or .bias}; with None the paths stay, but are checked too.

    Raises:
      JloraError: a path is missing in `names`; a name is not possible for a PyTorch module; the axes of a `Full` leaf
        follow neither from its name nor from its use.
    """
    for path, entry in adapter.items():
        if names is not None and path not in names:
            raise JloraError(
                f"names: {path}: expected PyTorch's name for each weight of the adapter, found none. Add this path"
            )
        _require_torch_name(path, torch_path(path, names), entry)
    renamed = {torch_path(path, names): entry for path, entry in adapter.items()}
    return {path: _with_layers(path, entry) for path, entry in renamed.items()}


def _with_layers(path: str, entry: Entry) -> Entry:
    """Gives the entry a rank for each layer, if it was made without a name that marks the axis of the layers."""
    if not isinstance(entry, LowRank) or "{}" not in path or len(entry.ranks) > 1:
        return entry
    return dataclasses.replace(entry, ranks=entry.ranks * entry.scale.shape[0])


def _require_torch_name(path: str, named: str, entry: Entry) -> None:
    (module,) = module_names(named, None)
    if not re.fullmatch(r"[\w{}]+(\.[\w{}]+)*", module):
        raise JloraError(f"{path}: expected the name of a PyTorch module for PEFT's file, found {module!r}{_HELP}")
    if not isinstance(entry, Full):
        return
    if parameter(named) is None:
        raise JloraError(
            f"{path}: expected the weight or bias of a module, the only leaves that PEFT trains whole, found a leaf"
            f" outside of a module{_HELP}"
        )
    if is_stacked(named) and entry.value.ndim < 2:
        raise JloraError(
            f"{path}: expected a stack of layers, as its name says, found the shape {entry.value.shape}{_HELP}"
        )
    known = entry.torch_axes is not None or parameter(path) is not None or parameter(named) == "bias"
    if not known and entry.value.ndim > 1:
        raise JloraError(
            f"{path}: expected a leaf whose output axes are known, found one that no product uses and whose name does"
            " not give them. Call it kernel (in, out) or weight (out, in)"
        )
