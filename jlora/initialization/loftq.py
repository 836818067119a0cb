"""LoftQ (Li et al. 2023): initializes adapters with the error that quantization makes in the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jlora.errors import JloraError
from jlora.initialization.init_adapter import draw_default, set_magnitude
from jlora.initialization.residual import as_wide_as_its_rank, largest_components, require_positive_alpha
from jlora.lora.config import LoraConfig
from jlora.lora.entries import Entry, LowRank
from jlora.lora.matrices import from_matrices, leaf_from_matrices, leaf_to_matrices, to_matrices
from jlora.quantization.encode import quantize_like
from jlora.quantization.quantize_base import quantize
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from jlora.tree.quantized import QuantizationKind, Quantized, as_array, is_quantized

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray, PyTree


def init_loftq(
    key: PRNGKeyArray,
    config: LoraConfig,
    base: PyTree,
    fn: Callable,
    *args: Any,
    kind: QuantizationKind = "nf4",
    iterations: int = 1,
    **kwargs: Any,
) -> tuple[PyTree, dict[str, Entry]]:
    """Returns (quantized base, adapter) whose sum is nearer to the base than the quantized weights are.

    For a weight W, starting from B A = 0, two steps are repeated `iterations` times: Q = quantize(W - s B A), then
    B A = the r largest singular components of (W - Q) / s. Here s = lora_alpha / r, which PEFT leaves out. Weights
    without an adapter are just quantized; adapted weights that `quantize` does not take start as in `init`.

    Args:
      key: draws A where an adapted weight is not quantized.
      config: which modules and ranks; `init_lora_weights` is "loftq" or True.
      base: dense; it is not changed.
      fn, args, kwargs: the adapter is for `fn(base, *args, **kwargs)`, which is only traced.
      kind: "nf4" (4 bits) or "int8": how `quantize` stores the weights.
      iterations: how often the two steps are repeated.

    Raises:
      JloraError: another `init_lora_weights`; an alpha of 0 or below; fewer than one iteration; a quantized base.
      TargetNotFoundError, NoRuleError: an entry of `config` matches no weight that can be adapted.
    """
    _require(config, base, iterations)
    adapter = draw_default(key, config, base, fn, *args, **kwargs)
    quantized = quantize(base, kind, fn, *args, **kwargs)
    leaves, codes = leaves_by_path(base), leaves_by_path(quantized)
    for path, entry in adapter.items():
        if isinstance(entry, LowRank) and is_quantized(codes[path]):
            codes[path], adapter[path] = _alternate(entry, leaves[path], codes[path], iterations)
    return replace_leaves(base, codes), adapter


def _require(config: LoraConfig, base: Any, iterations: int) -> None:
    if config.init_lora_weights not in (True, "loftq"):
        raise JloraError(
            f"LoraConfig.init_lora_weights: expected 'loftq' or true, found {config.init_lora_weights!r}; jlora.init"
            " and init_residual are for the others"
        )
    require_positive_alpha(config, "LoftQ")
    if iterations < 1:
        raise JloraError(f"init_loftq: expected one iteration or more, found {iterations}")
    found = next((path for path, leaf in leaves_by_path(base).items() if is_quantized(leaf)), None)
    if found is not None:
        raise JloraError(f"{found}: expected a dense weight to quantize, found a quantized one")


def _alternate(entry: LowRank, leaf: jax.Array, codes: Quantized, iterations: int) -> tuple[Quantized, LowRank]:
    """Alternates the two steps for one leaf and returns (codes, entry).

    Args:
      codes: the quantized leaf, as `quantize` made it.
    """
    weights = rest = leaf_to_matrices(entry, leaf.astype(jnp.float32))
    for _ in range(iterations):
        codes = quantize_like(codes, leaf_from_matrices(entry, rest))
        errors = weights - leaf_to_matrices(entry, as_array(codes, jnp.float32))
        layers = [
            as_wide_as_its_rank(largest_components(layer, error))
            for layer, error in zip(to_matrices(entry), errors, strict=True)
        ]
        rest = weights - jnp.stack([layer.update for layer in layers])
    return codes, set_magnitude(from_matrices(entry, layers), codes)
