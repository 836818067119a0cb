"""Translates a leaf's path to Hugging Face's names of the layers that it holds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Literal

from jlora.errors import JloraError

_STACK = re.compile(r"(layer|layers|h)(?:_(\d+)_of_(\d+))?")
"""Names of modules whose leaves hold several transformer layers, stacked on a leading axis.

`layers` is all of them, `layers_1_of_6` every sixth from layer 1 on: 1, 7, 13, ...
"""
_SINGLE = re.compile(r"(layer|layers|h)_(\d+)")
"""Names of modules that are one transformer layer: `layers_24`."""

_PARAMETERS: dict[str, Literal["kernel", "weight", "bias"]] = {
    "kernel": "kernel",
    "w": "kernel",  # Haiku
    "weight": "weight",
    "scale": "weight",
    "gamma": "weight",  # Keras
    "embedding": "weight",
    "embeddings": "weight",  # Haiku, Keras
    "bias": "bias",
    "b": "bias",  # Haiku
    "offset": "bias",
    "beta": "bias",  # Keras
}
"""{last part of a leaf's path: the parameter}; see `parameter`."""


def parameter(path: str) -> Literal["kernel", "weight", "bias"] | None:
    """Returns which parameter of its module a leaf is, by the leaf names of Flax, Equinox, Haiku and Keras.

    The last part of the path decides; NNX's `value` after it is skipped. "kernel" (`kernel`, `w`) is PyTorch's weight
    with other axes: (in, out), (*window, in, out). "weight" (`weight`, `scale`, `gamma`, `embedding`, `embeddings`) is
    PyTorch's weight unchanged, also an embedding or the scale of a norm. "bias" (`bias`, `b`, `offset`, `beta`) is
    PyTorch's bias. None means that the path does not name a parameter of a module.
    """
    return _PARAMETERS.get(_without_value(path.split("/"))[-1])


def torch_path(path: str, names: Mapping[str, str] | None) -> str:
    """Returns a path made from PyTorch's name of the leaf, if `names` has one; otherwise `path` itself.

    The name `model.layers.{}.self_attn.q_proj.weight` of a leaf `blocks/q/kernel` becomes
    `model.layers.{}.self_attn.q_proj/kernel`: `{}` is the number of the layer in a stack. The last part is `bias` for a
    name that ends in .bias; else `weight` if `has_outputs_first(path)`, and `kernel` if not.

    Args:
      names: {path: PyTorch's name}, or None.

    Raises:
      JloraError: the name does not end in .weight or .bias.
    """
    if names is None or path not in names:
        return path
    module, _, end = names[path].rpartition(".")
    if not module or end not in ("weight", "bias"):
        raise JloraError(f"names: {path}: expected PyTorch's name, ending in .weight or .bias, found {names[path]!r}")
    return f"{module}/{'bias' if end == 'bias' else 'weight' if has_outputs_first(path) else 'kernel'}"


def is_stack(name: str) -> bool:
    """Returns whether a module of this name holds a stack of layers.

    That is `layer`, `layers` or `h`, alone or with the numbers of its layers (`h_1_of_2`); `layers_24` is a single
    layer.
    """
    return _STACK.fullmatch(name) is not None


def is_stacked(path: str) -> bool:
    """Returns whether the leaf at `path` (`params/bert/encoder/layer/output/dense/bias`) has a layer axis.

    It has one if a part of the path is the name of a stack (`is_stack`), not the last one and not followed by a number
    (`layers/0`), or if the path contains `{}`.
    """
    parts = path.split("/")
    return "{}" in path or any(
        _STACK.fullmatch(part) and not behind.isdigit() for part, behind in itertools.pairwise(parts)
    )


def is_transposed(path: str) -> bool:
    """Returns whether the leaf is a kernel: (in, out) here, (out, in) in a checkpoint."""
    return parameter(path) == "kernel"


def is_bias(path: str) -> bool:
    """Returns whether the leaf has the name of a bias (`bias`, `b`, `offset`, `beta`: see `parameter`)."""
    return parameter(path) == "bias"


def has_outputs_first(path: str) -> bool:
    """Returns whether the leaf has the name of PyTorch's weight (out, in): `weight`, `embedding` (see `parameter`)."""
    return parameter(path) == "weight"


def module_names(path: str, count: int | None) -> list[str]:
    """Returns the dotted names of the modules that the leaf at `path` belongs to.

    Args:
      path: for example `params/bert/encoder/layer/attention/self/query/kernel`. The leading `params` is left out, and
        so is a last part that names a parameter (see `parameter`). A module `layers_24` that contains modules becomes
        `layers.24`.
      count: the number of stacked layers, if the path `is_stacked`; None for a leaf that is not stacked.

    Returns:
      `["bert.encoder.layer.0.attention.self.query", ...]`: `count` names, or one if `count` is None. The number comes
      after the first part that is the name of a stack (`is_stack`), or in place of `{}`. Those of
      `params/model/layers_1_of_6/mlp/up_proj/kernel` are `["model.layers.1.mlp.up_proj", "model.layers.7. ...", ...]`.
    """
    modules = _without_value(path.split("/"))
    if len(modules) > 1 and modules[-1] in _PARAMETERS:
        modules.pop()
    if len(modules) > 1 and modules[0] == "params":
        modules.pop(0)
    modules = [part.replace("_", ".") if _SINGLE.fullmatch(part) else part for part in modules[:-1]] + modules[-1:]
    if count is None:
        return [".".join(modules)]
    if "{}" in modules[-1]:
        return [modules[-1].replace("{}", str(number)) for number in range(count)]
    place, stack = next((i, found) for i, part in enumerate(modules) if (found := _STACK.fullmatch(part)))
    name, first, step = stack[1], int(stack[2] or 0), int(stack[3] or 1)
    layers = (f"{name}.{first + step * number}" for number in range(count))
    return [".".join([*modules[:place], layer, *modules[place + 1 :]]) for layer in layers]


def hf_keys(path: str, count: int | None) -> list[str]:
    """Returns the checkpoint keys of the leaf at `path`: its modules' names and torch's name of the parameter.

    Args:
      path: for example `params/bert/encoder/layer/attention/self/query/kernel`.
      count: the number of stacked layers, if the path `is_stacked`; else None.

    Returns:
      `["bert.encoder.layer.0.attention.self.query.weight", ...]`, as many as `module_names` returns. If the last part
      of the path does not name a parameter, the keys are the modules' names.
    """
    found = parameter(path)
    end = {"kernel": ".weight", "weight": ".weight", "bias": ".bias", None: ""}[found]
    return [f"{module}{end}" for module in module_names(path, count)]


def _without_value(parts: list[str]) -> list[str]:
    """Removes the last part that Flax NNX adds for the array in a Param: `query/kernel/value`."""
    return parts[:-1] if parts[-1] == "value" and len(parts) > 1 and parts[-2] in _PARAMETERS else parts
