"""`quantize` and `dequantize`: convert the weights of a tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from jlora.errors import JloraError
from jlora.lora.config import LoraConfig
from jlora.lora.layer_names import leaf_layer_names
from jlora.lora.targets import check_targets, is_all_linear, is_target
from jlora.quantization.encode import quantize_leaf
from jlora.transform.adapt import find_uses
from jlora.transform.uses import Use
from jlora.tree.leaf_paths import array_leaves, replace_leaves
from jlora.tree.output_heads import is_in_head
from jlora.tree.quantized import QuantizationKind, Quantized, as_array, is_quantized

if TYPE_CHECKING:
    from jaxtyping import PyTree


def quantize(
    base: PyTree,
    kind: QuantizationKind,
    fn: Callable,
    *args: Any,
    target_modules: str | Sequence[str] = "all-linear",
    **kwargs: Any,
) -> PyTree:
    """Quantizes the weights of a base to 4 or 8 bits: the same tree with `Quantized` leaves, which `adapt` accepts.

    The layout is that of bitsandbytes: the rows of a weight (outputs, inputs), each layer of a stack on its own. Which
    axes are outputs and inputs follows from how `fn` uses the weight. The given base is not changed.

    Args:
      base: the first argument of `fn`, any pytree of arrays.
      kind: "nf4", 4 bits with double quantization (QLoRA), 0.516 bytes per number; or "int8", 8 bits with a scale for
        each output.
      fn, args, kwargs: the function `fn(base, *args, **kwargs)`, traced abstractly (args may be ShapeDtypeStructs).
      target_modules: as in LoraConfig. "all-linear" means all weights that are used only in matrix products and are not
        in an output head: embeddings, tied or not, and heads are not quantized.

    Raises:
      TargetNotFoundError: an entry matches nothing that could be quantized.
      JloraError: another kind; an entry matches only some layers of a stack; a weight has fewer than two axes or is not
        finite.
    """
    leaves, uses = array_leaves(base), find_uses(fn, base, *args, **kwargs)
    config = LoraConfig(target_modules=target_modules)
    dense = {path: leaf for path, leaf in leaves.items() if not is_quantized(leaf)}
    weights = [path for path in dense if any(use.inputs and use.outputs for use in uses[path])]
    names = {path: _names(path, dense[path], uses[path]) for path in weights}
    check_targets(config, [name for found in names.values() for name in found])
    chosen = [path for path in names if _is_chosen(config, path, names[path], uses[path])]
    return replace_leaves(base, {path: _quantize_weight(path, leaves[path], kind, uses[path]) for path in chosen})


def dequantize(tree: PyTree, dtype: Any = None) -> PyTree:
    """Replaces each `Quantized` leaf by an array of `dtype`, or of the weight's own dtype."""
    return jax.tree.map(lambda x: as_array(x, dtype) if is_quantized(x) else x, tree, is_leaf=is_quantized)


def _names(path: str, leaf: Any, uses: tuple[Use, ...]) -> list[str]:
    return leaf_layer_names(path, leaf.shape, {axis for use in uses for axis in use.stack})


def _is_chosen(config: LoraConfig, path: str, names: list[str], uses: tuple[Use, ...]) -> bool:
    if is_all_linear(config):
        return {use.kind for use in uses} == {"linear"} and not is_in_head(path)
    hits = sum(is_target(config, name) for name in names)
    if 0 < hits < len(names):
        raise JloraError(
            f"{path}: expected target_modules that match all {len(names)} layers of the stack or none, found {hits}"
        )
    return hits > 0


def _quantize_weight(path: str, leaf: Any, kind: QuantizationKind, uses: tuple[Use, ...]) -> Quantized:
    """Quantizes the leaf with the rows of its torch weight: the outputs of a Linear, the entries of an embedding."""
    use = next(use for use in uses if use.inputs and use.outputs)
    stack = len(use.stack) if use.stack == tuple(range(len(use.stack))) else 0
    columns = use.outputs if use.kind == "lookup" else use.inputs
    try:
        return quantize_leaf(leaf, kind, inputs=tuple(axis - stack for axis in columns), stack=stack)
    except JloraError as error:
        raise JloraError(f"{path}: {error}") from error
