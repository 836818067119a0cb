"""Attention by JAX's splash kernel on TPUs: causal, windows, padding, packed texts, soft caps, shared keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jlora.models.attention.blockwise import Options
from jlora.models.attention.visibility import Visibility
from jlora.sharding.mesh import BATCH, current_mesh

_LANES = 128
_SIZES = (
    *("block_q", "block_kv", "block_kv_compute"),
    *("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"),
)


def splash_obstacle(
    options: Options, query: Any, key: Any, visibility: Visibility, *, biased: bool, dropped: bool
) -> str | None:
    """Returns why splash attention cannot compute such a call, the first reason found; None if it can.

    Reasons are a bias, dropout, keys of a cache (a `start`, or S is not T), and a mesh (`current_mesh`) that does not
    divide the rows and the key heads evenly. The platform is not checked.

    Args:
      query, key: (B, T, H, D) and (B, S, K, D), arrays or ShapeDtypeStructs.
      biased, dropped: whether there is a bias of the keys, and whether probabilities are dropped.
    """
    found = {
        "it takes no bias of the keys (ALiBi)": biased,
        "it has no dropout: train.dropout=false": dropped,
        "the keys are those of a cache": visibility.start is not None or query.shape[1] != key.shape[1],
        f"a mesh does not split {query.shape[0]} rows and {key.shape[2]} heads evenly": not _is_split_evenly(key.shape),
    }
    return next((reason for reason, is_so in found.items() if is_so), None)


def splash_attention(
    options: Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Computes softmax(capped scores) value over the visible keys with splash attention; 0 for queries that see none.

    The backward pass keeps only queries, keys and values, and runs the kernel again.

    Args:
      options: `scale` and `softcap` are read.
      query, key, value: (B, T, H, D), (B, T, K, D), (B, T, K, D); H / K query heads share each of the K heads.
      interpret: run the kernel in Pallas's interpreter, which is slow but needs no TPU.

    Returns:
      (B, T, H, D) in the query's dtype.
    """
    batch, length = query.shape[:2]
    size = -length % _LANES
    zeros = jnp.zeros((batch, length), jnp.int32)
    own, others = visibility.query_segments, visibility.key_segments
    segments = [zeros if numbers is None else numbers for numbers in (own, others)]
    own, others = (jnp.pad(numbers, ((0, 0), (0, size)), constant_values=-2 + i) for i, numbers in enumerate(segments))
    arrays = (jnp.pad(x, ((0, 0), (0, size), (0, 0), (0, 0))).swapaxes(1, 2) for x in (query, key, value))
    run = _on_mesh(partial(_rows, options, visibility, interpret))
    found = jax.checkpoint(run, prevent_cse=False)(*arrays, own, others)
    found, seeing = found.swapaxes(1, 2)[:, :length], _are_seeing(visibility)
    return found if seeing is None else jnp.where(seeing[..., None, None], found, jnp.zeros((), found.dtype))


def _are_seeing(visibility: Visibility) -> jax.Array | None:
    """Returns bool (B, T): which queries of padded rows see a key; None if all do.

    For queries that see none, the kernel returns an average of the values, which has to be replaced by zeros.
    """
    if visibility.query_segments is None or visibility.key_segments is None or visibility.packed:
        return None
    counts = jnp.cumsum(visibility.query_segments == visibility.key_segments, axis=1, dtype=jnp.int32)
    if not visibility.causal:
        return jnp.broadcast_to(counts[:, -1:] > 0, counts.shape)
    window = visibility.window
    if window is None or window >= counts.shape[1]:
        return counts > 0
    return counts > jnp.pad(counts, ((0, 0), (window, 0)))[:, : counts.shape[1]]


def _rows(
    options: Options,
    visibility: Visibility,
    interpret: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    own: jax.Array,
    others: jax.Array,
) -> jax.Array:
    """Computes (B, H, T, D) from query, key and value (B, heads, T, D) and the tokens' segment numbers (B, T)."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # takes a second; no other kernel needs it

    heads, length = query.shape[1:3]
    mask = _mask(splash, visibility, length)
    block = next(size for size in (512, 384, 256, _LANES) if length % size == 0)
    sizes: dict[str, Any] = {name: block for name in _SIZES}
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=options.softcap,
        interpret=interpret,
    )
    query = (query.astype(jnp.float32) * options.scale).astype(query.dtype)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # the kernel's code needs both
        return jax.vmap(kernel)(query, key, value, jax.vmap(splash.SegmentIds)(own, others))


def _mask(splash: Any, visibility: Visibility, length: int) -> Any:
    shape = (length, length)
    if visibility.window is not None:
        return splash.LocalMask(shape, (visibility.window - 1, 0), 0)
    return splash.CausalMask(shape) if visibility.causal else splash.FullMask(shape)


def _is_split_evenly(shape: tuple[int, ...]) -> bool:
    """Returns whether the mesh, if there is one, splits the rows and heads of keys (B, S, K, D) evenly."""
    mesh = current_mesh()
    if mesh is None:
        return True
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    return shape[0] % rows == 0 and shape[2] % mesh.shape["tensor"] == 0


def _on_mesh(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Makes each device of the mesh `run` its own rows and heads, because JAX does not split the kernel itself."""
    mesh = current_mesh()
    if mesh is None:
        return run
    heads, rows = PartitionSpec(*BATCH, "tensor"), PartitionSpec(*BATCH)
    specs = (heads, heads, heads, rows, rows)
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
