"""From a leaf's path to the Hugging Face names of the single layers that it holds."""

from __future__ import annotations

import itertools

LAYER_STACKS = ("layer", "layers", "h")
"""Module names under which the leaves of all transformer layers are stacked on a leading axis."""

_PARAMETER_NAMES = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "weight": "weight",
    "bias": "bias",
}


def is_stacked(path: str) -> bool:
    """Whether the leaf at `path` (`params/bert/encoder/layer/output/dense/bias`) has an axis of layers."""
    parts = path.split("/")
    return any(part in LAYER_STACKS and not behind.isdigit() for part, behind in itertools.pairwise(parts))


def is_transposed(path: str) -> bool:
    """Whether the leaf is a dense kernel: (in, out) here, (out, in) in a checkpoint."""
    return path.endswith("/kernel")


def module_names(path: str, count: int | None) -> list[str]:
    """Dotted names of the modules that own the leaf at `path`.

    Args:
      path: `params/bert/encoder/layer/attention/self/query/kernel`; the leading `params` and a last part that
        only names the parameter (kernel, weight, embedding, scale, bias) are left out.
      count: the number of stacked layers; None for a leaf that is not stacked.

    Returns:
      `["bert.encoder.layer.0.attention.self.query", ...]`, `count` names, or one where `count` is None.
    """
    modules = _without_value(path.split("/"))
    if len(modules) > 1 and modules[-1] in _PARAMETER_NAMES:
        modules.pop()
    if len(modules) > 1 and modules[0] == "params":
        modules.pop(0)
    if count is None:
        return [".".join(modules)]
    stack = next(i for i, part in enumerate(modules) if part in LAYER_STACKS) + 1
    return [".".join([*modules[:stack], str(layer), *modules[stack:]]) for layer in range(count)]


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
