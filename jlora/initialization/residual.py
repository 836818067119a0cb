"""Initializations that move part of the base into the adapter (PiSSA, OLoRA, LoRA-GA).

The base is reduced by the adapter's start, so base and adapter together still equal the original weights.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import AdapterMismatchError, JloraError
from jlora.initialization.init_adapter import draw_default, set_magnitude
from jlora.lora.config import LoraConfig
from jlora.lora.entries import Adapter, Entry, LowRank
from jlora.lora.matrices import Matrices, from_matrices, leaf_from_matrices, leaf_to_matrices, to_matrices
from jlora.lora.named_initializations import is_residual
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves, require
from jlora.tree.quantized import is_quantized

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray, PyTree

_STABLE_GAMMA = 16
"""LoRA-GA's gamma: the larger it is, the smaller B is at the start."""


def init_residual(
    key: PRNGKeyArray, config: LoraConfig, base: PyTree, fn: Callable, *args: Any, **kwargs: Any
) -> tuple[PyTree, dict[str, Entry]]:
    """Returns (residual base, adapter) for `init_lora_weights` "pissa", "pissa_niter_N" or "olora".

    The adapter starts with the r largest singular components of a weight (PiSSA, Meng et al. 2024; with niter, by
    N steps of subspace iteration, Halko et al. 2011), or with the first r columns of its QR decomposition (OLoRA,
    Büyükakyüz 2024), each layer of a stack on its own. Residual base and adapter together compute the same function as
    the base, up to rounding in the leaf's dtype. The given base is not changed; leaves that are not adapted are shared
    with it. Train and serve the adapter on the residual base, or convert it with `subtract_initial`.

    Args:
      key: draws the test vectors of "pissa_niter_N".
      config: which modules and ranks. With `use_dora` the magnitudes are the norms of the base's weights.
      base, fn, args, kwargs: the adapter is for `fn(base, *args, **kwargs)`, which is only traced; the base is dense.

    Raises:
      JloraError: another `init_lora_weights`; a target that is quantized or not used only in matrix products; PiSSA
        with an alpha of 0 or below.
      TargetNotFoundError, NoRuleError: an entry of `config` matches no weight that can be adapted.
    """
    name = str(config.init_lora_weights)
    _require_name(config, is_residual(name), "pissa, pissa_niter_N or olora")
    if name != "olora":
        require_positive_alpha(config, "PiSSA")

    def start(path: str, entry: LowRank, weights: jax.Array) -> list[Matrices]:
        keys = jax.random.split(jax.random.fold_in(key, zlib.crc32(path.encode())), len(weights))
        layers = zip(keys, to_matrices(entry), weights, strict=True)
        return [_of_weight(layer_key, name, layer, weight) for layer_key, layer, weight in layers]

    return _split_off(key, config, start, base, fn, *args, **kwargs)


def init_lora_ga(
    config: LoraConfig, base: PyTree, gradients: PyTree, fn: Callable, *args: Any, **kwargs: Any
) -> tuple[PyTree, dict[str, Entry]]:
    """Returns (residual base, adapter) for `init_lora_weights` "lora_ga", which starts from the weights' gradients.

    LoRA-GA (Wang et al. 2024) makes the first steps approximate those of full fine-tuning. With PEFT's defaults and
    U S V^T = dL/dW, (outputs, inputs), A is the first r rows of V^T, and B the next r columns of U S times
    outputs^(1/4) / sqrt(16). For the residual base see `init_residual`.

    Args:
      config, base, fn, args, kwargs: as for `init_residual`.
      gradients: a tree with the base's paths and dL/dW, of the weight's shape, for each targeted weight. For example
        the mean over a few batches of `jax.grad(lambda base: loss(fn(base, batch)))(base)`. Other leaves are not
        read, and may be None.

    Raises:
      JloraError: another `init_lora_weights`; a targeted weight that is quantized, not used only in matrix products,
        without a gradient of its shape, or with a side below 2 r.
    """
    _require_name(config, config.init_lora_weights == "lora_ga", "lora_ga")
    found = leaves_by_path(gradients)

    def start(path: str, entry: LowRank, weights: jax.Array) -> list[Matrices]:
        require(path, found, "the tree of gradients")
        if np.shape(found[path]) != entry.shape:
            raise AdapterMismatchError(
                f"{path}: expected a gradient of shape {entry.shape}, found {np.shape(found[path])}"
            )
        dense = leaf_to_matrices(entry, jnp.asarray(found[path]).astype(jnp.float32))
        return [_next_components(path, layer, grad) for layer, grad in zip(to_matrices(entry), dense, strict=True)]

    return _split_off(jax.random.key(0), config, start, base, fn, *args, **kwargs)


def subtract_initial(adapter: Adapter, initial: Adapter) -> dict[str, Entry]:
    """Converts an adapter of a residual base to one of twice the rank for the original base.

    From W = R + B0 A0 follows R + B A = W + [B, -B0] [A; A0]: `merge(base, subtract_initial(adapter, initial))` is
    `merge(residual, adapter)` up to rounding. `Full` and `Rows` entries are not changed.

    Args:
      adapter: trained on the residual base.
      initial: the adapter that `init_residual` or `init_lora_ga` returned together with the residual base.

    Raises:
      AdapterMismatchError: the two are not adapters of the same leaves.
    """
    return {
        path: _minus(path, entry, initial) if isinstance(entry, LowRank) else entry for path, entry in adapter.items()
    }


def of_plain_base(adapter: Adapter, config: LoraConfig, base: Any) -> dict[str, Entry]:
    """Converts an adapter of the residual base of "pissa" or "olora" to one of twice the rank for `base` itself.

    Its start is computed again from the weights of `base`, as PEFT does when it opens such a file: the result is that
    of `subtract_initial` with the adapter that `init_residual` returns for `base`.

    Args:
      adapter: {path: entry}, trained on the residual base.
      config: `init_lora_weights` says which start.
      base: the original weights, dense.

    Raises:
      JloraError: an adapted weight that is not used only in matrix products, is quantized, or is only a shape.
    """
    name = str(config.init_lora_weights)

    def start(path: str, entry: LowRank, weights: jax.Array) -> list[Matrices]:
        layers = zip(to_matrices(entry), weights, strict=True)
        return [_of_weight(jax.random.key(0), name, layer, weight) for layer, weight in layers]

    return subtract_initial(adapter, _split(adapter, config, start, base)[1])


def _minus(path: str, entry: LowRank, initial: Mapping[str, Entry]) -> LowRank:
    require(path, initial, "the initial adapter")
    start = initial[path]
    if not isinstance(start, LowRank) or (start.spec, start.shape) != (entry.spec, entry.shape):
        found = start.shape if isinstance(start, LowRank) else type(start).__name__
        raise AdapterMismatchError(
            f"{path}: expected a start of shape {entry.shape} in the initial adapter, found {found}"
        )
    layers = [
        Matrices(jnp.concatenate([x.a, y.a]), jnp.concatenate([x.b, -y.b], 1), jnp.concatenate([x.scale, y.scale]))
        for x, y in zip(to_matrices(entry), to_matrices(start), strict=True)
    ]
    doubled = from_matrices(entry, layers)
    if start.magnitude is None:
        return doubled
    return dataclasses.replace(doubled, squared_norm=start.magnitude**2)  # the first magnitudes are the base's norms


def require_positive_alpha(config: LoraConfig, method: str) -> None:
    """Raises JloraError if `lora_alpha` or a value of `alpha_pattern` is 0 or below: the method divides by the scale.

    `method` is its name in the message.
    """
    for field, alpha in {"lora_alpha": config.lora_alpha, **config.alpha_pattern}.items():
        if alpha <= 0:
            raise JloraError(f"LoraConfig: {field}: expected an alpha above 0 for {method}, found {alpha}")


FactorRule = Callable[[str, LowRank, jax.Array], list[Matrices]]
"""(path, entry, weights (layers, out, in) float32) -> the initial A and B of each layer."""


def _split_off(
    key: jax.Array, config: LoraConfig, start: FactorRule, base: Any, fn: Callable, *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, Entry]]:
    return _split(draw_default(key, config, base, fn, *args, **kwargs), config, start, base)


def _split(given: Adapter, config: LoraConfig, start: FactorRule, base: Any) -> tuple[Any, dict[str, Entry]]:
    """Returns (the base without the starts, the given adapter with the starts as A and B)."""
    adapter, leaves, residual = dict(given), leaves_by_path(base), dict[str, jax.Array]()
    for path, entry in given.items():
        if isinstance(entry, LowRank):
            _require_products(path, entry, config)
            _require_dense(path, leaves[path])
            weights = leaf_to_matrices(entry, leaves[path].astype(jnp.float32))
            layers = [as_wide_as_its_rank(layer) for layer in start(path, entry, weights)]
            rest = weights - jnp.stack([layer.update for layer in layers])
            residual[path] = leaf_from_matrices(entry, rest).astype(leaves[path].dtype)
            adapter[path] = set_magnitude(from_matrices(entry, layers), residual[path])
    return replace_leaves(base, residual), adapter


def as_wide_as_its_rank(layer: Matrices) -> Matrices:
    """Pads A and B with zeros to the layer's rank, len(scale), which may be larger than a side of the weight."""
    missing = len(layer.scale) - len(layer.a)
    return layer._replace(a=jnp.pad(layer.a, ((0, missing), (0, 0))), b=jnp.pad(layer.b, ((0, 0), (0, missing))))


def _require_name(config: LoraConfig, known: bool, expected: str) -> None:
    if not known:
        raise JloraError(
            f"LoraConfig.init_lora_weights: expected {expected}, found {config.init_lora_weights!r}; jlora.init is for"
            " what needs no look at the weights, init_residual, init_lora_ga and init_eva are for the rest"
        )


def _require_products(path: str, entry: LowRank, config: LoraConfig) -> None:
    if entry.kind != "linear" or entry.only is not None:
        raise JloraError(
            f"{path}: expected a weight of matrix products alone, found one of kind {entry.kind!r}; init_lora_weights"
            f" {config.init_lora_weights!r} takes the adapter's start out of the weight for all its uses and knows only"
            " matrices; exclude_modules leaves the weight out"
        )


def _require_dense(path: str, leaf: Any) -> None:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise JloraError(
            f"{path}: expected an array, because the adapter's start is computed from the base's values; found a shape"
            " alone. Load the base with its weights"
        )
    if is_quantized(leaf):
        raise JloraError(
            f"{path}: expected a dense weight to take the adapter's start out of, found a quantized one; begin with the"
            " dense base and give the residual base to jlora.quantize, or take jlora.init_loftq"
        )


def _of_weight(key: jax.Array, name: str, layer: Matrices, weight: jax.Array) -> Matrices:
    """Returns the initial A and B of one layer; weight (out, in)."""
    rank = len(layer.scale)
    if not rank:
        return layer
    if name == "olora":
        q, r = jnp.linalg.qr(weight)
        return layer._replace(a=r[:rank], b=q[:, :rank])
    if name == "pissa":
        return largest_components(layer, weight)
    return _balance(layer, *_randomized_svd(key, weight, rank, int(name.rsplit("_", 1)[1])))


def largest_components(layer: Matrices, matrix: jax.Array) -> Matrices:
    """Sets A and B so that the layer's update is the nearest of its rank to `matrix` (out, in).

    The rank and the scale, which must be positive, are those of `layer.scale`. A and B have the same norms: the
    singular values are split evenly. With a rank above min(out, in), A and B have only that many components, fewer than
    the scale: pad them before `Matrices.update` is used. A layer of rank 0 is returned as it is.
    """
    return _balance(layer, *_svd(matrix)) if len(layer.scale) else layer


def _balance(layer: Matrices, u: jax.Array, s: jax.Array, vh: jax.Array) -> Matrices:
    """Splits the components evenly: A and B are each multiplied by sqrt(singular value / scale)."""
    rank = len(layer.scale)
    root = jnp.sqrt(s[:rank] / layer.scale[: len(s)])
    return layer._replace(a=root[:, None] * vh[:rank], b=u[:, :rank] * root[None])


def _svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    u, s, vh = jnp.linalg.svd(matrix, full_matrices=False)
    return u, s, vh


def _randomized_svd(
    key: jax.Array, weight: jax.Array, rank: int, iterations: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes u (out, rank), s, vh (rank, in) as `torch.svd_lowrank` (Halko et al. 2011, algorithms 4.4 and 5.1)."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    basis, _ = jnp.linalg.qr(_product(tall, jax.random.normal(key, (tall.shape[1], rank), jnp.float32)))
    for _ in range(iterations):
        basis, _ = jnp.linalg.qr(_product(tall.T, basis))
        basis, _ = jnp.linalg.qr(_product(tall, basis))
    small_u, s, vh = _svd(_product(basis.T, tall))
    u = _product(basis, small_u)
    return (u, s, vh) if tall is weight else (vh.T, s, u.T)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def _next_components(path: str, layer: Matrices, gradient: jax.Array) -> Matrices:
    """Returns LoRA-GA's A and B of one layer; gradient (out, in)."""
    rank, outputs = len(layer.scale), gradient.shape[0]
    if 2 * rank > min(gradient.shape):
        raise JloraError(
            f"{path}: expected both sides to be at least 2 r = {2 * rank} for LoRA-GA, found {gradient.shape}"
        )
    if not rank:
        return layer
    u, s, vh = _svd(gradient)
    size = outputs**0.25 / math.sqrt(_STABLE_GAMMA)
    return layer._replace(a=vh[:rank], b=u[:, rank : 2 * rank] * s[None, rank : 2 * rank] * size)
