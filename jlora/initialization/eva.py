"""EVA: A from the inputs of each weight, and ranks where the inputs have the most to explain (Paischer et al. 2024)."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

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


def init_eva(
    key: jax.Array, config: LoraConfig, base: Any, fn: Callable, batches: Iterable[Any], *, rho: float = 2.0
) -> tuple[dict[str, Entry], LoraConfig]:
    """(adapter, config) for `init_lora_weights` "eva": A looks at the inputs of its weight, and B is zero.

    The rows of A are the directions in which the inputs of a weight, over all tokens of all batches, are largest:
    the first right singular vectors of the matrix of inputs. The ranks of all layers together are handed out
    again to the components that explain the largest share of their layer's inputs, at most round(rho * r) to one
    layer and as many in all as before; a layer may end with none, and is then not adapted.
    PEFT takes the mean of the inputs away first and leaves padded tokens out; here every token counts as it is.
    While the batches are read, (in, in) float32 numbers are held for each layer.

    Args:
      key: draws the tables and convolutions among the targets, which start as with `init_lora_weights` True.
      config: names the targets; its ranks are the budget.
      base: what `fn` takes first.
      fn: called as fn(base, batch); it must have derivatives.
      batches: one or more; those of one shape are compiled for once.
      rho: at least 1, which leaves the ranks as they are.

    Returns:
      The adapter, whose updates are zero, and the config that says what it is: the adapted modules by name in
      `target_modules`, their ranks in `rank_pattern`, and in `alpha_pattern` what keeps alpha / r as it was.

    Raises:
      JloraError: as for `init`; another `init_lora_weights`; a rho below 1; no batches.
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
    adapted = _with_ranks(config, low_rank, _redistributed(low_rank, spectra, rho))
    adapter = draw_default(key, adapted, base, fn, first)
    for path in spectra.keys() & adapter.keys():
        entry = adapter[path]
        assert isinstance(entry, LowRank)
        adapter[path] = _filled(entry, spectra[path].vectors)
    return adapter, adapted


def _total_moments(
    fn: Callable, base: Any, adapter: Mapping[str, LowRank], batches: Iterator[Any]
) -> dict[str, jax.Array]:
    """{path: (*stack, in, in)}: sums of x x^T over the inputs x of all batches."""
    of_batch = jax.jit(lambda base, batch: second_moments(fn, base, adapter, batch))
    total = of_batch(base, next(batches))
    for batch in batches:
        total = jax.tree.map(jnp.add, total, of_batch(base, batch))
    return total


class _Spectrum(NamedTuple):
    """Of the flattened stack of one leaf: shares of the explained inputs (layers, in), falling; vectors as rows."""

    shares: np.ndarray
    vectors: jax.Array


def _spectrum(entry: LowRank, moments: jax.Array) -> _Spectrum:
    """Eigenvectors of the moments are right singular vectors of the inputs, and eigenvalues their squared values."""
    width = moments.shape[-1]
    values, vectors = jnp.linalg.eigh(moments.reshape(-1, width, width))
    values = np.maximum(np.asarray(values[:, ::-1]), 0)
    shares = values / np.maximum(values.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    by_layer = shares.reshape(len(entry.ranks), -1, width).mean(1)  # a layer's matrices of one batched product
    return _Spectrum(by_layer, jnp.swapaxes(vectors[:, :, ::-1], 1, 2))


def _redistributed(
    adapter: Mapping[str, LowRank], spectra: Mapping[str, _Spectrum], rho: float
) -> dict[str, tuple[int, ...]]:
    """{path: rank of each layer}: the largest shares of all layers together, as many as there were ranks."""
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
    """The config of the new ranks, with each module's alpha / r as it was."""
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
    """The names as a list, but as a regular expression where the list would also mean a dropped module."""
    if any(matches(kept, name) for name in dropped):
        return "|".join(re.escape(name) for name in kept)
    return kept


def _pattern(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Names and values other than the default; all, the longest name first, where one is the end of another."""
    pattern = {name: value for name, value in values.items() if value != default}
    if any(pattern_value(pattern, name, default) != value for name, value in values.items()):
        return dict(sorted(values.items(), key=lambda item: -len(item[0])))
    return pattern


def _filled(entry: LowRank, vectors: jax.Array) -> LowRank:
    """The entry with the first rows of `vectors` (layers, in, in) for A, and B zero."""
    layers = [
        Matrices(rows[: len(layer.scale)], jnp.zeros_like(layer.b), layer.scale)
        for rows, layer in zip(vectors, to_matrices(entry), strict=True)
    ]
    return from_matrices(entry, layers)
