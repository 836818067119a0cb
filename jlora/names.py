"""From a leaf's path to the Hugging Face names of the single layers that it holds."""

from __future__ import annotations

import itertools
import re

_STACK = re.compile(r"(layer|layers|h)(?:_(\d+)_of_(\d+))?")
"""Names of modules whose leaves hold several transformer layers, stacked on a leading axis.

`layers` is all of them, `layers_1_of_6` every sixth from layer 1 on: 1, 7, 13, ...
"""
_SINGLE = re.compile(r"(layer|layers|h)_(\d+)")
"""Names of modules that are one transformer layer: `layers_24`."""

_PARAMETER_NAMES = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "weight": "weight",
    "bias": "bias",
}


def is_stack(name: str) -> bool:
    """Whether a module of this name (`layers`, `h_1_of_2`) holds a stack of layers."""
    return _STACK.fullmatch(name) is not None


def is_stacked(path: str) -> bool:
    """Whether the leaf at `path` (`params/bert/encoder/layer/output/dense/bias`) has an axis of layers."""
    parts = path.split("/")
    return any(_STACK.fullmatch(part) and not behind.isdigit() for part, behind in itertools.pairwise(parts))


def is_transposed(path: str) -> bool:
    """Whether the leaf is a dense kernel: (in, out) here, (out, in) in a checkpoint."""
    return path.endswith("/kernel")


def module_names(path: str, count: int | None) -> list[str]:
    """Dotted names of the modules that own the leaf at `path`.

    Args:
      path: `params/bert/encoder/layer/attention/self/query/kernel`; the leading `params` and a last part that
        only names the parameter (kernel, weight, embedding, scale, bias) are left out. A module `layers_24` with
        modules in it goes by `layers.24`.
      count: the number of stacked layers; None for a leaf that is not stacked.

    Returns:
      `["bert.encoder.layer.0.attention.self.query", ...]`, `count` names, or one where `count` is None. Those of
      `params/model/layers_1_of_6/mlp/up_proj/kernel` are `["model.layers.1.mlp.up_proj", "model.layers.7. ...", ...]`.
    """
    modules = _without_value(path.split("/"))
    if len(modules) > 1 and modules[-1] in _PARAMETER_NAMES:
        modules.pop()
    if len(modules) > 1 and modules[0] == "params":
        modules.pop(0)
    modules = [part.replace("_", ".") if _SINGLE.fullmatch(part) else part for part in modules[:-1]] + modules[-1:]
    if count is None:
        return [".".join(modules)]
    place, stack = next((i, found) for i, part in enumerate(modules) if (found := _STACK.fullmatch(part)))
    name, first, step = stack[1], int(stack[2] or 0), int(stack[3] or 1)
    layers = (f"{name}.{first + step * number}" for number in range(count))
    return [".".join([*modules[:place], layer, *modules[place + 1 :]]) for layer in layers]


def hf_keys(path: str, count: int | None) -> list[str]:
    """Checkpoint keys of the leaf at `path`: its modules' names and torch's name of the parameter.

    Returns:
      `["bert.encoder.layer.0.attention.self.query.weight", ...]`, as many as `module_names` gives. A leaf with
      another last part than those that `module_names` leaves out goes by its module's name.
    """
    parameter = _PARAMETER_NAMES.get(_without_value(path.split("/"))[-1])
    return [f"{module}.{parameter}" if parameter else module for module in module_names(path, count)]


def _without_value(parts: list[str]) -> list[str]:
    """The path without the last part that Flax NNX adds for the array in a Param: `query/kernel/value`."""
    return parts[:-1] if parts[-1] == "value" and len(parts) > 1 and parts[-2] in _PARAMETER_NAMES else parts
