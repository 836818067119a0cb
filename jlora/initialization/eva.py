"""EVA (Paischer et al. 2024): initializes A from the inputs of each weight and redistributes the ranks."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import JloraError
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.initialization.init_adapter import draw_default
from jlora.lora.config import LoraConfig
from jlora.lora.entries import Entry, LowRank
from jlora.lora.layer_names import layer_names
from jlora.lora.matrices import Matrices, from_matrices, to_matrices
from jlora.lora.targets import matches, pattern_value
from jlora.transform.input_moments import second_moments

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray, PyTree


def init_eva(
    key: PRNGKeyArray, config: LoraConfig, base: PyTree, fn: Callable, batches: Iterable[Any], *, rho: float = 2.0
) -> tuple[dict[str, Entry], LoraConfig]:
    """Returns (adapter, config) for `init_lora_weights` "eva": A from the inputs of its weight, and B zero.

    The rows of A are the directions in which the inputs of a weight, over all tokens of all batches, are largest:
    the first right singular vectors of the matrix of inputs. The ranks of all layers are pooled and given to the
    components that explain the largest share of their layer's inputs: at most round(rho * r) to one layer, and as many
    in all as before. A layer that gets none is not adapted.

    PEFT subtracts the mean of the inputs first and ignores padded tokens; here every token counts unchanged. While the
    batches are read, each layer needs memory for (in, in) float32 numbers.

    Args:
      key: draws the tables and convolutions among the targets, which start as with `init_lora_weights` True.
      config: names the targets; its ranks are the budget.
      base: the first argument of `fn`.
      fn: called as fn(base, batch); it must be differentiable.
      batches: one or more; compiled once for each shape.
      rho: at least 1. With 1 the ranks do not change.

    Returns:
      The adapter, whose updates are zero, and the config that describes it: the adapted modules by name in
      `target_modules`, their ranks in `rank_pattern`, and alphas in `alpha_pattern` that keep alpha / r as it was.

    Raises:
      JloraError: another `init_lora_weights`; a rho below 1; no batches.
      TargetNotFoundError, NoRuleError: an entry of `config` matches no weight that can be adapted.
    """
    if config.init_lora_weights != "eva":
        raise JloraError(f'LoraConfig.init_lora_weights: expected "eva", found {config.init_lora_weights!r}')
    if not rho >= 1:
        raise JloraError(f"rho: expected at least 1, found {rho}")
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise JloraError("batches: expected at least one batch, found none")
    plan = abstract_adapter(config, base, fn, first)
    low_rank = {path: entry for path, entry in plan.items() if isinstance(entry, LowRank)}
    moments = _total_moments(fn, base, low_rank, itertools.chain([first], batches))
    spectra = {path: _spectrum(low_rank[path], total) for path, total in moments.items()}
    adapted = _with_ranks(config, low_rank, _redistribute_ranks(low_rank, spectra, rho))
    adapter = draw_default(key, adapted, base, fn, first)
    for path in spectra.keys() & adapter.keys():
        entry = adapter[path]
        assert isinstance(entry, LowRank)
        layers = [
            Matrices(rows[: len(layer.scale)], jnp.zeros_like(layer.b), layer.scale)
            for rows, layer in zip(spectra[path].vectors, to_matrices(entry), strict=True)
        ]
        adapter[path] = from_matrices(entry, layers)
    return adapter, adapted


def _total_moments(
    fn: Callable, base: Any, adapter: Mapping[str, LowRank], batches: Iterator[Any]
) -> dict[str, jax.Array]:
    """Returns {path: (*stack, in, in)}: sums of x x^T over the inputs x of all batches."""
    of_batch = jax.jit(lambda base, batch: second_moments(fn, base, adapter, batch))
    total = of_batch(base, next(batches))
    for batch in batches:
        total = jax.tree.map(jnp.add, total, of_batch(base, batch))
    return total


class _Spectrum(NamedTuple):
    """Principal directions of the inputs of one leaf, with its stack flattened.

    Attributes:
      shares: (layers, in), the share of the inputs that each direction explains, the largest first.
      vectors: (matrices, in, in), the directions as rows.
    """

    shares: np.ndarray
    vectors: jax.Array


def _spectrum(entry: LowRank, moments: jax.Array) -> _Spectrum:
    """Computes the directions from the moments, whose eigenvectors are the inputs' right singular vectors."""
    width = moments.shape[-1]
    values, vectors = jnp.linalg.eigh(moments.reshape(-1, width, width))
    values = np.maximum(np.asarray(values[:, ::-1]), 0)
    shares = values / np.maximum(values.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    by_layer = shares.reshape(len(entry.ranks), -1, width).mean(1)  # a batched product has several per layer
    return _Spectrum(by_layer, jnp.swapaxes(vectors[:, :, ::-1], 1, 2))


def _redistribute_ranks(
    adapter: Mapping[str, LowRank], spectra: Mapping[str, _Spectrum], rho: float
) -> dict[str, tuple[int, ...]]:
    """Returns {path: rank of each layer} after giving the old total of ranks to the largest shares of all layers."""
    places, shares, budget = [], [], 0
    for path, spectrum in spectra.items():
        for layer, rank in enumerate(adapter[path].ranks):
            offered = spectrum.shares[layer, : round(rank * rho)]
            places += [(path, layer)] * len(offered)
            shares += list(offered)
            budget += rank
    ranks = {path: [0] * len(adapter[path].ranks) for path in spectra}
    for place in np.argsort(-np.asarray(shares), kind="stable")[:budget]:
        path, layer = places[place]
        ranks[path][layer] += 1
    return {path: tuple(of_path) for path, of_path in ranks.items()}


def _with_ranks(
    config: LoraConfig, adapter: Mapping[str, LowRank], new_ranks: Mapping[str, tuple[int, ...]]
) -> LoraConfig:
    """Returns the config for the new ranks, with each module's alpha / r unchanged."""
    ranks, alphas, dropped = dict[str, int](), dict[str, float](), list[str]()
    for path, entry in adapter.items():
        found = zip(layer_names(path, entry), entry.ranks, new_ranks.get(path, entry.ranks), strict=True)
        for name, old, new in found:
            if new:
                ranks[name] = new
                alpha = pattern_value(config.alpha_pattern, name, config.lora_alpha)
                alphas[name] = alpha if new == old else alpha * new / old
            else:
                dropped.append(name)
    return dataclasses.replace(
        config,
        target_modules=_targets(list(ranks), dropped),
        layers_to_transform=None,
        layers_pattern=None,
        rank_pattern=_pattern(ranks, config.r),
        alpha_pattern=_pattern(alphas, config.lora_alpha),
    )


def _targets(kept: list[str], dropped: list[str]) -> list[str] | str:
    """Returns the names as a list, or as a regular expression if the list would also match a dropped module."""
    if any(matches(kept, name) for name in dropped):
        return "|".join(re.escape(name) for name in kept)
    return kept


def _pattern(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Returns {name: value} of the values other than the default.

    If one name is the end of another, it returns all values, the longest name first.
    """
    pattern = {name: value for name, value in values.items() if value != default}
    if any(pattern_value(pattern, name, default) != value for name, value in values.items()):
        return dict(sorted(values.items(), key=lambda item: -len(item[0])))
    return pattern
