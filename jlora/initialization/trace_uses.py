"""Finds, only by tracing, how a function uses the leaves of its base, and names these leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from jlora.lora.entries import LowRank, UseKind
from jlora.lora.layer_names import leaf_layer_names
from jlora.transform.adapt import find_materialized_in, uses_in
from jlora.transform.interpreter import Traced, trace
from jlora.transform.uses import Use
from jlora.tree.leaf_paths import array_leaves
from jlora.tree.module_names import has_outputs_first, is_bias, is_stacked, torch_path

TorchAxes = tuple[tuple[int, ...], ...]

_KINDS = frozenset(get_args(UseKind))


class BaseUses(NamedTuple):
    """A traced function and its base. All dicts except `tied` have each path of `leaves`; `trace_uses` makes it.

    Attributes:
      traced: the function, traced to a jaxpr.
      leaves: {path: leaf that is an array}.
      uses: {path: a `Use` for each time that the function uses the leaf, in order; () if never}.
      modules: {path: dotted names of the modules in the leaf, one for each layer of a stack}; PyTorch's where given.
      biases: paths of the leaves that are biases by name and use.
      torch_axes: {path: `Full.torch_axes`}. None for a leaf called `weight`, which is already PyTorch's tensor (also
        GPT-2's Conv1D, (in, out)), unless `names` gives it another name.
      tied: {path: its modules} of the embeddings that are also the output head: used in lookups and in products.
    """

    traced: Traced
    leaves: dict[str, Any]
    uses: dict[str, tuple[Use, ...]]
    modules: dict[str, list[str]]
    biases: list[str]
    torch_axes: dict[str, TorchAxes | None]
    tied: dict[str, list[str]]


def trace_uses(fn: Callable, base: Any, args: tuple, kwargs: dict, names: Mapping[str, str] | None) -> BaseUses:
    """Traces `fn(base, *args, **kwargs)` and finds how it uses each array leaf of the base; computes nothing.

    Args:
      base: any pytree; its arrays may be ShapeDtypeStructs.
      args, kwargs: the other arguments of `fn`; arrays may be ShapeDtypeStructs.
      names: {path: PyTorch's name}, such as {"blocks/q/kernel": "model.layers.{}.q_proj.weight"} with {} for the number
        of the layer in a stack; None if the paths themselves name the modules.
    """
    leaves, traced = array_leaves(base), trace(fn, base, args, kwargs)
    uses = {path: _of_one_layer(torch_path(path, names), leaves[path], uses) for path, uses in uses_in(traced).items()}
    stacks = {path: {axis for use in uses[path] for axis in use.stack} for path in leaves}
    modules = {p: leaf_layer_names(torch_path(p, names), leaf.shape, stacks[p]) for p, leaf in leaves.items()}
    without_rule = [path for path in leaves if not any(use.kind in _KINDS for use in uses[path])]
    biases = [path for path in without_rule if is_bias(torch_path(path, names))]
    by_use = [path for path in leaves if path in (names or {}) or not has_outputs_first(path)]
    axes = dict.fromkeys(leaves) | {path: _torch_axes(leaves[path].ndim, uses[path]) for path in by_use}
    tied = {path: modules[path] for path in leaves if {"lookup", "linear"} <= {use.kind for use in uses[path]}}
    return BaseUses(traced, leaves, uses, modules, biases, axes, tied)


def _of_one_layer(path: str, leaf: Any, uses: tuple[Use, ...]) -> tuple[Use, ...]:
    """Adds axis 0 to the stack of each use of a stack of one layer, where `w[0]` looks like no slice at all."""
    if not is_stacked(path) or leaf.ndim < 2 or leaf.shape[0] > 1 or any(0 in (*u.stack, *u.inputs) for u in uses):
        return uses
    found = (dataclasses.replace(use, stack=(0, *use.stack)) for use in uses)
    return tuple(dataclasses.replace(use, outputs=tuple(axis for axis in use.outputs if axis)) for use in found)


def without_rule(seen: BaseUses, low_ranks: Mapping[str, LowRank]) -> dict[str, str]:
    """Returns {path: the primitive without a low-rank rule} for the entries that `adapt` would refuse.

    If there are several primitives, it is the first. A leaf that is used in a product and also in `sin` is refused: its
    value is "sin". An empty result means that all can be adapted.

    Args:
      seen: from `trace_uses`.
      low_ranks: {path: entry}, with arrays or ShapeDtypeStructs.
    """
    without = {path: next((use.kind for use in seen.uses[path] if use.kind not in _KINDS), None) for path in low_ranks}
    stopped = {path: operation for path, operation in without.items() if operation is not None}
    others = {path: entry for path, entry in low_ranks.items() if path not in stopped}
    return stopped | {path: places[0] for path, places in find_materialized_in(seen.traced, others).items()}


def shaping_use(path: str, leaf: Any, uses: tuple[Use, ...], *, only_linear: bool) -> Use | None:
    """Returns the use that determines the shapes of A and B; None for a leaf that cannot have a low-rank update.

    Of the uses "linear", "lookup" and "conv" it takes the one with the longest stack, then a lookup, then the first.
    Its `outputs` are all axes that are neither stack nor inputs. If there is no such use, its kind is "linear" and the
    axes are those of a kernel (*in, out), or with a path that ends in `weight` those of PyTorch's (out, *in); then a
    bias, or a leaf with fewer than two axes longer than 1, gives None. Without uses, inputs or outputs the result is
    None.

    Args:
      path: of the leaf.
      leaf: only its shape is read.
      uses: how the function uses it.
      only_linear: also return None if there is a lookup or a convolution among the uses.
    """
    kinds = {use.kind for use in uses}
    if not uses or (only_linear and (kinds & _KINDS) - {"linear"}):
        return None
    known = [use for use in uses if use.kind in _KINDS]
    if known:
        use = max(known, key=lambda use: (len(use.stack), use.kind == "lookup"))
        inputs = use.inputs
    else:
        use = Use("linear", max((use.stack for use in uses), key=len))
        free = [axis for axis in range(leaf.ndim) if axis not in use.stack]
        if sum(leaf.shape[axis] > 1 for axis in free) < 2 or is_bias(path):
            return None
        inputs = tuple(free[1:] if has_outputs_first(path) else free[:-1])
    outputs = tuple(axis for axis in range(leaf.ndim) if axis not in {*use.stack, *inputs})
    return dataclasses.replace(use, inputs=inputs, outputs=outputs) if inputs and outputs else None


def _torch_axes(ndim: int, uses: tuple[Use, ...]) -> TorchAxes | None:
    """Returns PyTorch's (out, in), (out, in, *window) or (rows, features) as axes of one layer; None if unknown."""
    known = [use for use in uses if use.kind in _KINDS]
    if not known:
        return None
    use = next((use for use in known if use.kind == "lookup"), known[0])
    if use.stack not in ((), (0,)) or {*use.stack, *use.inputs, *use.outputs} != set(range(ndim)):
        return None
    columns = [(axis,) for axis in use.inputs] if use.kind == "conv" else [use.inputs]
    groups = [use.inputs, use.outputs] if use.kind == "lookup" else [use.outputs, *columns]
    return tuple(tuple(axis - len(use.stack) for axis in group) for group in groups if group)
