"""Combines several adapters of one base, with the same results as PEFT's `add_weighted_adapter`.

    linear, ties, dare_linear, dare_ties, magnitude_prune
        mix the A's with one another and the B's with one another. This is not the mixture of the updates, and the
        ranks must be equal
    cat
        concatenates the components: exactly the weighted sum of the updates; the ranks add up
    svd, ties_svd, dare_linear_svd, dare_ties_svd, magnitude_prune_svd
        mix the updates themselves, then cut the mixture to a rank

TIES is Yadav et al. 2023, DARE Yu et al. 2023.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from jlora.algebra.reduce_rank import from_svd, svd, with_fixed_signs
from jlora.errors import JloraError, nearest
from jlora.lora.entries import Adapter, Entry, LowRank
from jlora.lora.matrices import Matrices, from_matrices, to_matrices

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PRNGKeyArray

COMBINATION_TYPES = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip


def scale(adapter: Adapter, factor: float | Float[Array, ""]) -> dict[str, Entry]:
    """Multiplies the low-rank updates by `factor`, of any sign: merged, the result is base + factor * update.

    With DoRA the factor changes only the direction, because the magnitude sets the length. `Full` and `Rows` entries
    have no update to scale and are not changed.

    Raises:
      JloraError: the factor is a Python number and not finite. The value of a `jax.Array` is not checked.
    """
    if not isinstance(factor, jax.Array) and not math.isfinite(factor):
        raise JloraError(f"scale: factor: expected a finite number, found {factor!r}")
    return {
        path: dataclasses.replace(entry, scale=entry.scale * jnp.asarray(factor, entry.scale.dtype))
        if isinstance(entry, LowRank)
        else entry
        for path, entry in adapter.items()
    }


def add_weighted_adapter(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    combination_type: str = "linear",
    *,
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
    key: PRNGKeyArray | None = None,
) -> dict[str, Entry]:
    """Combines several adapters into one, with a weight for each, in float32.

    "cat" joins the components: the update is the sum of weight * update. "svd" cuts this sum to `svd_rank`. "linear"
    instead adds the A's and the B's, each times sqrt(|weight * scale|), and A also times the sign. "ties",
    "magnitude_prune", "dare_linear" and "dare_ties" prune A and B first; with "_svd" at the end they prune and add the
    updates, and cut the result to `svd_rank`. Those with "ties" do not add all values at a place, but average those
    with the elected sign.

    A layer that only some of the adapters have is combined from those. `Full` and `Rows` entries (a head, a bias, rows
    of an embedding) may be in only one of the adapters; they are copied without a weight.

    Args:
      adapters: adapters of one base, at least one.
      weights: a number for each adapter, of any sign.
      combination_type: one of COMBINATION_TYPES; a single adapter is always "linear", as in PEFT.
      svd_rank: the most components of the `svd` kinds; None is the largest rank of any layer of any adapter.
      svd_clamp: in [0, 1]; the `svd` kinds clip A and B to [-q, q], with q this quantile of the values of both.
      density: share of the values that the kinds with `ties`, `dare` and `magnitude_prune` keep, in (0, 1]; they
        require it, and the others ignore it. The largest are kept; with `dare` random ones, divided by the density.
      majority_sign_method: how `ties` elects the sign of a value: "total", that of the sum of the values; or
        "frequency", that of most of them.
      key: draws the values that `dare` keeps; required there if `density` is below 1.

    Returns:
      An adapter with scale 1 (lora_alpha equal to r); `jlora.fitted_config` gives its configuration.

    Raises:
      JloraError: an argument out of its range; adapters whose leaves differ in form or, for kinds that mix the factors,
        in rank; a leaf that two adapters train in full; DoRA.
    """
    kind = "linear" if len(adapters) == 1 else combination_type
    _check_adapters(adapters, weights)
    _check_options(combination_type, svd_rank, svd_clamp, majority_sign_method)
    density = _check_density(kind, density)
    if kind.startswith("dare") and density < 1 and key is None:
        raise JloraError(f"key: expected a key for {kind}, which drops values by chance, found None")
    entries = [entry for adapter in adapters for entry in adapter.values()]
    largest = max((rank for entry in entries if isinstance(entry, LowRank) for rank in entry.ranks), default=1)
    mixture = _Mixture(kind, density, majority_sign_method, svd_rank or largest, svd_clamp)
    combined: dict[str, Entry] = {}
    for path in dict.fromkeys(path for adapter in adapters for path in adapter):
        found = {index: adapter[path] for index, adapter in enumerate(adapters) if path in adapter}
        low_rank = {index: entry for index, entry in found.items() if isinstance(entry, LowRank)}
        if low_rank.keys() == found.keys():
            drawn = None if key is None else jax.random.fold_in(key, zlib.crc32(path.encode()))
            combined[path] = _combine_entries(path, low_rank, weights, mixture, drawn)
        else:
            combined[path] = _only_one(path, found)
    return combined


class _Mixture(NamedTuple):
    """The checked arguments of `add_weighted_adapter` that say how to combine."""

    kind: str
    density: float
    majority_sign_method: str
    rank: int
    clamp: float | None


def _combine_entries(
    path: str, entries: dict[int, LowRank], weights: Sequence[float], mixture: _Mixture, key: jax.Array | None
) -> LowRank:
    """Combines the entries of one leaf, layer by layer; a layer that none of the adapters has keeps rank 0."""
    _check_entries(path, entries)
    first = next(iter(entries.values()))
    own_weights = [float(weights[index]) for index in entries]
    layers = []
    for number, parts in enumerate(zip(*(to_matrices(entry) for entry in entries.values()), strict=True)):
        present = [
            (part.in_float32(), weight) for part, weight in zip(parts, own_weights, strict=True) if part.scale.shape[0]
        ]
        where = path if len(first.ranks) == 1 else f"{path}, layer {number}"
        layer_key = None if key is None else jax.random.fold_in(key, number)
        layers.append(_combine_layer(where, present, mixture, layer_key) if present else parts[0])
    combined = from_matrices(first, layers)
    return dataclasses.replace(combined, a=combined.a.astype(first.a.dtype), b=combined.b.astype(first.b.dtype))


def _combine_layer(
    where: str, parts: list[tuple[Matrices, float]], mixture: _Mixture, key: jax.Array | None
) -> Matrices:
    """Combines one layer; the result has scale 1."""
    if mixture.kind == "cat":
        return _side_by_side(parts)
    if mixture.kind == "svd":
        return _truncate(svd(_side_by_side(parts)), mixture)
    if mixture.kind.endswith("_svd"):
        updates = [part.update for part, _ in parts]
        mixed = _mix(updates, [jnp.full((1, 1), weight, jnp.float32) for _, weight in parts], mixture, key)
        return _truncate(with_fixed_signs(*jnp.linalg.svd(mixed, full_matrices=False)), mixture)
    return _mix_factors(where, parts, mixture, key)


def _side_by_side(parts: list[tuple[Matrices, float]]) -> Matrices:
    """Concatenates the components of all parts; A is multiplied by weight and scale, as in PEFT."""
    a = jnp.concatenate([part.a * (weight * part.scale)[:, None] for part, weight in parts])
    b = jnp.concatenate([part.b for part, _ in parts], axis=1)
    return Matrices(a, b, jnp.ones_like(a[:, 0]))


def _truncate(decomposed: tuple[jax.Array, jax.Array, jax.Array], mixture: _Mixture) -> Matrices:
    layer = from_svd(*decomposed, mixture.rank)
    if mixture.clamp is None:
        return layer
    highest = jnp.quantile(jnp.concatenate([layer.b.ravel(), layer.a.ravel()]), mixture.clamp)
    return layer._replace(a=jnp.clip(layer.a, -highest, highest), b=jnp.clip(layer.b, -highest, highest))


def _mix_factors(where: str, parts: list[tuple[Matrices, float]], mixture: _Mixture, key: jax.Array | None) -> Matrices:
    """Mixes the A's and the B's: each is multiplied by sqrt(|weight * scale|), A also by the sign."""
    ranks = [part.scale.shape[0] for part, _ in parts]
    if len(set(ranks)) > 1:
        raise JloraError(
            f"{where}: expected adapters of one rank for {mixture.kind}, which mixes A with A and B with B,"
            f' found ranks {ranks}; "cat" and the svd kinds take any, jlora.reduce_rank makes them equal'
        )
    signed = [weight * part.scale for part, weight in parts]
    roots = [jnp.sqrt(jnp.abs(weight)) for weight in signed]
    a_key, b_key = (None, None) if key is None else jax.random.split(key)
    a_weights = [jnp.copysign(root, weight)[:, None] for root, weight in zip(roots, signed, strict=True)]
    a = _mix([part.a for part, _ in parts], a_weights, mixture, a_key)
    b = _mix([part.b for part, _ in parts], [root[None, :] for root in roots], mixture, b_key)
    return Matrices(a, b, jnp.ones_like(roots[0]))


def _mix(tensors: list[jax.Array], weights: list[jax.Array], mixture: _Mixture, key: jax.Array | None) -> jax.Array:
    """Sums the pruned tensors with weights; with `ties`, averages the values that have the elected sign."""
    keys = [None] * len(tensors) if key is None else list(jax.random.split(key, len(tensors)))
    pruned = jnp.stack([_prune(tensor, mixture, own) for tensor, own in zip(tensors, keys, strict=True)])
    weighted = pruned * jnp.stack(weights)
    if "ties" not in mixture.kind:
        return weighted.sum(axis=0)
    votes = pruned if mixture.majority_sign_method == "total" else jnp.sign(pruned)
    elected = jnp.where(votes.sum(axis=0) >= 0, 1.0, -1.0)
    agrees = jnp.sign(pruned) == elected[None]
    return jnp.where(agrees, weighted, 0).sum(axis=0) / jnp.maximum(agrees.sum(axis=0), 1).astype(weighted.dtype)


def _prune(tensor: jax.Array, mixture: _Mixture, key: jax.Array | None) -> jax.Array:
    """Sets a share of 1 - density of the values to zero: the smallest ones, or random ones with `dare`."""
    if mixture.density >= 1:
        return tensor
    if mixture.kind.startswith("dare"):
        assert key is not None  # `add_weighted_adapter` has asked for it
        kept = jax.random.bernoulli(key, mixture.density, tensor.shape)
        return jnp.where(kept, tensor, 0) / mixture.density  # keeps the expectation
    magnitudes = jnp.abs(tensor).ravel()
    _, largest = jax.lax.top_k(magnitudes, int(mixture.density * tensor.size))
    kept = jnp.zeros(magnitudes.shape, bool).at[largest].set(True)
    return jnp.where(kept.reshape(tensor.shape), tensor, 0)


def _only_one(path: str, entries: dict[int, Entry]) -> Entry:
    if len(entries) > 1:
        raise JloraError(
            f"{path}: expected at most one adapter that trains this leaf whole (or rows of it) and no other that"
            f" changes it, found adapters {sorted(entries)}; whole weights are not combined: take the path out of"
            " all adapters but one"
        )
    return next(iter(entries.values()))


def _check_adapters(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    if not adapters:
        raise JloraError("adapters: expected one at least, found none")
    if len(adapters) != len(weights):
        raise JloraError(f"weights: expected {len(adapters)}, one for each adapter, found {len(weights)}")
    for index, weight in enumerate(weights):
        if not math.isfinite(weight):
            raise JloraError(f"weights[{index}]: expected a finite number, found {weight!r}")


def _check_entries(path: str, entries: dict[int, LowRank]) -> None:
    for index, entry in entries.items():
        if entry.magnitude is not None:
            raise JloraError(
                f"{path}: expected low-rank updates without a magnitude, found DoRA in adapter {index}: a direction has"
                " no sum with others; merge each adapter, mix the weights, and take jlora.extract of the result"
            )
    forms = {index: (entry.shape, entry.spec, entry.kind, entry.only, entry.tied) for index, entry in entries.items()}
    if len(set(forms.values())) > 1:
        found = "; ".join(f"adapter {index}: {form}" for index, form in forms.items())
        raise JloraError(
            f"{path}: expected adapters of one base, with equal shape, spec, kind, only and tied, found {found}"
        )


def _check_options(kind: str, svd_rank: int | None, svd_clamp: float | None, majority_sign_method: str) -> None:
    if kind not in COMBINATION_TYPES:
        raise JloraError(
            f"combination_type: expected one of {', '.join(COMBINATION_TYPES)}, found {kind!r}"
            f"{nearest(kind, COMBINATION_TYPES)}"
        )
    if svd_rank is not None and not (isinstance(svd_rank, int) and svd_rank >= 1):
        raise JloraError(f"svd_rank: expected an integer of at least 1, or None, found {svd_rank!r}")
    if svd_clamp is not None and not 0 <= svd_clamp <= 1:
        raise JloraError(f"svd_clamp: expected a quantile in [0, 1], or None, found {svd_clamp!r}")
    if majority_sign_method not in ("total", "frequency"):
        raise JloraError(f"majority_sign_method: expected total or frequency, found {majority_sign_method!r}")


def _check_density(kind: str, density: float | None) -> float:
    """Returns the share of values to keep: 1 for the kinds that prune nothing."""
    if kind in ("linear", "cat", "svd"):
        return 1.0
    if density is None or not 0 < density <= 1:
        raise JloraError(f"density: expected a share in (0, 1] for {kind}, found {density!r}")
    return float(density)
