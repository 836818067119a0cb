"""Reduces the rank of adapters by the SVD of small factors; the full update is never formed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import JloraError
from jlora.lora.entries import Adapter, Entry, LowRank
from jlora.lora.matrices import Matrices, from_matrices, to_matrices

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_HIGHEST = jax.lax.Precision.HIGHEST


def reduce_rank(adapter: Adapter, rank: int | None = None, *, energy: float | None = None) -> dict[str, Entry]:
    """Returns the best adapter of a smaller rank: the largest singular components of each update.

    This is the nearest update of that rank (Eckart and Young 1936). Each layer of a stack is cut on its own. With DoRA,
    the low-rank update inside the direction is cut and the magnitude is kept. `Full` and `Rows` entries do not change.

    Args:
      adapter: of any ranks and scales.
      rank: the most components that each layer keeps.
      energy: in (0, 1], instead of `rank`: each layer keeps the fewest components (at least one) that hold this share
        of its squared singular values. The rank then depends on values, so it cannot run inside `jax.jit`.

    Returns:
      An adapter with scale 1 (lora_alpha equal to r) in the dtypes of the given one: A has orthonormal rows, the
      singular values are in B. `jlora.fitted_config` gives its configuration.

    Raises:
      JloraError: not exactly one of rank and energy, a rank below 1, or an energy outside (0, 1].
    """
    if (rank is None) == (energy is None):
        raise JloraError(f"reduce_rank: expected one of rank and energy, found rank {rank!r} and energy {energy!r}")
    if rank is not None and not (isinstance(rank, int) and rank >= 1):
        raise JloraError(f"reduce_rank: rank: expected an integer of at least 1, found {rank!r}")
    if energy is not None and not 0 < energy <= 1:
        raise JloraError(f"reduce_rank: energy: expected a share in (0, 1], found {energy!r}")
    return {
        path: _reduce_entry(entry, rank, energy) if isinstance(entry, LowRank) else entry
        for path, entry in adapter.items()
    }


def singular_values(low_rank: LowRank) -> list[Float[Array, " k"]]:
    """Returns the singular values of each layer's update: float32 (min(rank, in, out),), the largest first.

    The list has one array for each layer of the stack, or a single one if there is no stack. A layer of rank 0 has an
    empty array.
    """
    return [svd(layer)[1] for layer in to_matrices(low_rank)]


@jax.jit
def svd(layer: Matrices) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes u (out, k), s (k,), vh (k, in) of the update (b * scale) @ a, float32; k = min(rank, out, in).

    After a QR of each factor, only a rank x rank matrix has to be decomposed. Signs are those of `with_fixed_signs`.
    """
    a, b, scale = layer.in_float32()
    q_a, r_a = jnp.linalg.qr(a.T)  # (in, i), (i, rank)
    q_b, r_b = jnp.linalg.qr(b * scale[None, :])  # (out, o), (o, rank)
    u, s, vh = jnp.linalg.svd(jnp.matmul(r_b, r_a.T, precision=_HIGHEST), full_matrices=False)
    u, vh = jnp.matmul(q_b, u, precision=_HIGHEST), jnp.matmul(vh, q_a.T, precision=_HIGHEST)
    return with_fixed_signs(u, s, vh)


def with_fixed_signs(u: jax.Array, s: jax.Array, vh: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Makes the largest entry of each row of vh positive, so that all machines get the same signs.

    u (out, k) and vh (k, in) change by the same signs, so that u s vh remains; s (k,) is returned as it is. The largest
    is by absolute value, the first of equal ones; k may be 0.
    """
    if not s.shape[0]:
        return u, s, vh
    largest = jnp.take_along_axis(vh, jnp.argmax(jnp.abs(vh), axis=1, keepdims=True), axis=1)  # (k, 1)
    signs = jnp.where(largest < 0, -1.0, 1.0)
    return u * signs.T, s, vh * signs


def from_svd(u: jax.Array, s: jax.Array, vh: jax.Array, rank: int) -> Matrices:
    """Makes a layer of scale 1 from the first `rank` components, split as in PEFT: a is vh, b is u s.

    u (out, k), s (k,), vh (k, in); with fewer than `rank` components all are taken.
    """
    return Matrices(vh[:rank], u[:, :rank] * s[None, :rank], jnp.ones_like(s[:rank]))


def _reduce_entry(entry: LowRank, rank: int | None, energy: float | None) -> LowRank:
    parts = [svd(layer) for layer in to_matrices(entry)]
    if rank is None:
        ranks = _largest_per_layer([rank_for(np.asarray(s), energy or 1.0) for _, s, _ in parts], len(entry.ranks))
    else:
        ranks = [min(rank, s.shape[0]) for _, s, _ in parts]
    reduced = from_matrices(entry, [from_svd(u, s, vh, kept) for (u, s, vh), kept in zip(parts, ranks, strict=True)])
    return dataclasses.replace(reduced, a=reduced.a.astype(entry.a.dtype), b=reduced.b.astype(entry.b.dtype))


def rank_for(singular_values: np.ndarray, energy: float) -> int:
    """Returns the smallest rank, at least 1, that keeps the share `energy` of the squared singular values.

    Args:
      singular_values: (n,), the largest first. The rank is 0 if there are none.
      energy: in (0, 1].
    """
    if not singular_values.size:
        return 0
    kept = np.cumsum(np.square(singular_values, dtype=np.float64))
    return min(int(np.searchsorted(kept, energy * kept[-1])), len(kept) - 1) + 1


def _largest_per_layer(ranks: Sequence[int], count: int) -> list[int]:
    """Gives the layers that share one entry of `LowRank.ranks` the largest rank that any of them needs."""
    copies = len(ranks) // count
    return [max(ranks[i - i % copies :][:copies]) for i in range(len(ranks))]
