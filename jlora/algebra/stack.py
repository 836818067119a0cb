"""`stack` joins adapters along a new leading axis, for `jax.vmap`; `unstack` splits them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jlora.errors import JloraError
from jlora.lora.entries import Adapter, Entry, LowRank, Rows


def stack(adapters: Sequence[Adapter]) -> dict[str, Entry]:
    """Stacks n adapters of one base along a new leading axis of size n, so that `jax.vmap` runs them together.

        jax.vmap(lambda adapter, x: jlora.adapt(fn)(base, adapter, x))(stack(adapters), xs)

    Ranks may differ: all are padded to the largest with components of scale 0. If an adapter lacks a path that another
    one has, it gets an entry of rank 0 there, which has no effect.

    Returns:
      {path: LowRank(a (n, *stack, r, *in), b (n, *stack, r, *out), scale (n, *stack, r), ...)
             | Full((n, *leaf)) | Rows((n, rows, dim))}; `ranks` are those of all adapters, one adapter after another.

    Raises:
      JloraError: no adapter; entries of one path that differ in anything but values and ranks (shape, dtype, spec, use,
        dropout, DoRA, layers or rows of `Full` or `Rows`); a leaf that only some adapters train in full.
    """
    if not adapters:
        raise JloraError("adapters: expected one at least, found none")
    paths = dict.fromkeys(path for adapter in adapters for path in adapter)
    return {path: _stack_entries(path, [adapter.get(path) for adapter in adapters]) for path in paths}


def unstack(stacked: Adapter) -> list[dict[str, Entry]]:
    """Splits a stacked adapter into the adapters that `stack` was given, bit for bit.

    A path at which all ranks of an adapter are 0 is left out of that adapter. `unstack({})` is [].

    Raises:
      JloraError: a `LowRank` entry without the leading axis that `stack` adds; leading axes of different lengths.
    """
    counts = {path: _count(path, entry) for path, entry in stacked.items()}
    if len(set(counts.values())) > 1:
        raise JloraError(f"unstack: expected one leading axis at all paths, as jlora.stack adds it, found {counts}")
    adapters = []
    for index in range(next(iter(counts.values()), 0)):
        parts = {path: _part(entry, index) for path, entry in stacked.items()}
        adapters.append({p: part for p, part in parts.items() if not isinstance(part, LowRank) or any(part.ranks)})
    return adapters


def _stack_entries(path: str, entries: Sequence[Entry | None]) -> Entry:
    """Stacks the entries of one path; an adapter without an entry has None."""
    _check_forms(path, entries)
    first = next(entry for entry in entries if entry is not None)
    if not isinstance(first, LowRank):
        return jax.tree.map(lambda *values: jnp.stack(values), *entries)
    present = [entry if isinstance(entry, LowRank) else _without_effect(first) for entry in entries]
    width = max(entry.scale.shape[-1] for entry in present)
    ranks = tuple(rank for entry in present for rank in entry.ranks)
    same = [dataclasses.replace(_widen_rank(entry, width), ranks=ranks) for entry in present]
    return jax.tree.map(lambda *values: jnp.stack(values), *same)


def _without_effect(like: LowRank) -> LowRank:
    """Makes an entry of rank 0. With DoRA its magnitude equals the norm that it is divided by, so the gain is 1."""
    zeros: LowRank = jax.tree.map(jnp.zeros_like, like)
    norm = None if like.squared_norm is None else jnp.sqrt(like.squared_norm)
    return dataclasses.replace(zeros, ranks=(0,) * len(like.ranks), magnitude=norm, squared_norm=like.squared_norm)


def _widen_rank(entry: LowRank, width: int) -> LowRank:
    axis = entry.scale.ndim - 1

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, width - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    return dataclasses.replace(entry, a=pad(entry.a), b=pad(entry.b), scale=pad(entry.scale))


def _part(entry: Entry, index: int) -> Entry:
    part = jax.tree.map(lambda x: x[index], entry)
    if not isinstance(part, LowRank):
        return part
    axis = part.scale.ndim - 1
    layers = len(part.ranks) // _count("", entry)
    ranks = part.ranks[index * layers :][:layers]
    width = max(1, *ranks)
    a, b, scale = (jax.lax.slice_in_dim(x, 0, width, axis=axis) for x in (part.a, part.b, part.scale))
    return dataclasses.replace(part, a=a, b=b, scale=scale, ranks=ranks)


def _count(path: str, entry: Entry) -> int:
    """Returns the length of the leading axis."""
    if not isinstance(entry, LowRank):
        return entry.value.shape[0]
    axes = len(entry.axes.stack) + 2  # those of the leaf's own stack, the adapters' and the ranks'
    if entry.scale.ndim != axes or len(entry.ranks) % entry.scale.shape[0]:
        raise JloraError(
            f"{path}: expected an entry of jlora.stack with {axes} axes of scale, the adapters' first,"
            f" found the shape {entry.scale.shape}"
        )
    return entry.scale.shape[0]


def _check_forms(path: str, entries: Sequence[Entry | None]) -> None:
    """Refuses entries of one path that differ in what must be the same for all adapters."""
    forms = {index: _form(entry) for index, entry in enumerate(entries) if entry is not None}
    first = next(iter(forms.values()))
    if len(forms) < len(entries) and "whole" in first:
        missing = [index for index, entry in enumerate(entries) if entry is None]
        raise JloraError(
            f"{path}: expected all adapters to train it whole or none, found no entry in adapters {missing}. Give"
            " these another adapter's entry with the base's value: dataclasses.replace(entry, value=...)"
        )
    for index, form in forms.items():
        for field in {**first, **form}:
            if form.get(field) != first.get(field):
                raise JloraError(
                    f"{path}: {field}: expected the same in all adapters, found {first.get(field)!r} in adapter"
                    f" {next(iter(forms))} and {form.get(field)!r} in adapter {index}; only adapters of one base and"
                    " one form run together: stack the others apart"
                )


def _form(entry: Entry) -> dict[str, Any]:
    """Returns {name: value} of the properties that must be equal for entries to be stacked."""
    if not isinstance(entry, LowRank):
        kind: dict[str, Any] = {"entry": type(entry).__name__, "whole": True}
        if isinstance(entry, Rows):
            kind |= {"rows": entry.indices, "axis": entry.axis}
        else:
            kind |= {"layers": entry.layers, "only": entry.only, "tied": entry.tied, "torch_axes": entry.torch_axes}
        return kind | {"shape": entry.value.shape, "dtype": entry.value.dtype}
    return {
        "entry": "LowRank",
        "shape": entry.shape,
        "spec": entry.spec,
        "kind": entry.kind,
        "only": entry.only,
        "tied": entry.tied,
        "dropout": entry.dropout,
        "use_dora": entry.magnitude is not None,
        "layers": len(entry.ranks),
        "dtype": (entry.a.dtype, entry.b.dtype, entry.scale.dtype),
    }
