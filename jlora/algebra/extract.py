"""`extract`: makes an adapter from two full trees: the low-rank part of what fine-tuning changed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora.algebra.reduce_rank import from_svd, rank_for, with_fixed_signs
from jlora.errors import JloraError
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.lora.config import LoraConfig
from jlora.lora.entries import Adapter, Entry, Full, LowRank, Rows, own_values
from jlora.lora.layer_names import layer_names
from jlora.lora.matrices import Matrices, from_matrices, leaf_to_matrices
from jlora.tree.leaf_paths import array_leaves

if TYPE_CHECKING:
    from jaxtyping import Float, PyTree


def extract(
    tuned: PyTree,
    base: PyTree,
    config: LoraConfig,
    fn: Callable,
    *args: Any,
    energy: float | None = None,
    **kwargs: Any,
) -> tuple[dict[str, Entry], dict[str, Float[np.ndarray, " k"]]]:
    """Extracts the adapter nearest to `tuned - base`: the truncated SVD of each targeted leaf's change.

    The truncated SVD is the best approximation of its rank (Eckart & Young 1936). If the change of every targeted leaf
    has at most the rank that is kept, and nothing else changed, `merge(base, adapter)` is `tuned`. `outside` reports
    what else changed.

    With U S V^T the SVD of a layer, A is V^T and B is U S, as in PEFT's own SVDs, and the scale is 1. A's rows have
    norm 1, near those of a fresh A, so training can continue at the usual learning rates. A component whose singular
    value is 0 can still be trained, which would not be so with sqrt(S) in both factors.

    Args:
      tuned, base: trees of the same paths and shapes; neither is changed.
      config: which modules, and the ranks to keep (a layer keeps at most min(out, in)). Its alphas are not read.
      fn, args, kwargs: the adapter is for `fn(base, *args, **kwargs)`, which is only traced: args may be
        ShapeDtypeStructs.
      energy: in (0, 1]; replaces the ranks in `config`: each layer keeps the smallest rank, at least 1, that holds
        this share of its squared singular values.

    Returns:
      ({path: LowRank, or Full or Rows with the tuned values},
       {name of an adapted module: all singular values of its change, (min(out, in),) float32, falling}).

    Raises:
      JloraError: trees of different paths or shapes, a value that is not finite, no change in any targeted leaf, an
        `energy` outside (0, 1], `use_dora`, a tied embedding without `ensure_weight_tying`.
      TargetNotFoundError, NoRuleError: an entry of `config` matches no weight that can be adapted.
    """
    config = _plan_config(config, energy)
    leaves, changed = array_leaves(base), array_leaves(tuned)
    plan = abstract_adapter(config, base, fn, *args, **kwargs)
    _require_all_uses(plan)
    _require_same_shapes(changed, leaves)
    _require_finite(changed, "tuned")
    _require_finite(leaves, "base")
    adapter: dict[str, Entry] = {}
    spectra: dict[str, np.ndarray] = {}
    for path, entry in plan.items():
        if isinstance(entry, LowRank):
            adapter[path], found = _factorize(path, entry, _difference(changed[path], leaves[path]), energy)
            spectra |= found
        else:
            adapter[path] = _whole(entry, changed[path])
    if not any(values.any() for values in spectra.values()):
        raise JloraError(_no_change(outside(tuned, base, adapter)))
    return adapter, spectra


def outside(tuned: Any, base: Any, adapter: Adapter) -> dict[str, float]:
    """Returns {path: share} of what changed from `base` to `tuned` where the adapter has no entry, largest share first.

    A leaf's share is the sum of the squares of its change, divided by that of all leaves. A leaf with an entry is left
    out, also if its rank was cut; if the entry holds only some layers or rows, the change of the others is the leaf's
    share. Leaves that did not change are left out too: the result is {} for equal trees.

    Raises:
      JloraError: the trees do not have the same paths and shapes.
    """
    leaves, changed = array_leaves(base), array_leaves(tuned)
    _require_same_shapes(changed, leaves)
    total, left = 0.0, dict[str, float]()
    for path, leaf in leaves.items():
        difference = _difference(changed[path], leaf)
        total += _sum_of_squares(difference)
        left[path] = _sum_of_squares(_change_outside(adapter.get(path), difference))
    shares = {path: squared / total for path, squared in left.items() if squared}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _plan_config(config: LoraConfig, energy: float | None) -> LoraConfig:
    if config.use_dora:
        raise JloraError("LoraConfig.use_dora: expected false, found true: what is extracted is a plain sum")
    if energy is None:
        return config
    if not 0 < energy <= 1:
        raise JloraError(f"energy: expected a share in (0, 1], found {energy}")
    return dataclasses.replace(config, r=1, rank_pattern={})  # rank 1 only marks adapted layers


def _require_all_uses(plan: Adapter) -> None:
    for path, entry in plan.items():
        if not isinstance(entry, Rows) and entry.only is not None:
            raise JloraError(
                f"{path}: expected an adapter for all uses of the leaf, as its change concerns all of them; found one"
                f" for the {entry.only} alone (a tied embedding). Set ensure_weight_tying=True"
            )


def _require_same_shapes(tuned: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    for path in (*base, *(path for path in tuned if path not in base)):
        shapes = [np.shape(tree[path]) if path in tree else "no such leaf" for tree in (base, tuned)]
        if shapes[0] != shapes[1]:
            raise JloraError(f"{path}: expected the base's shape {shapes[0]} in the tuned tree, found {shapes[1]}")


def _require_finite(leaves: Mapping[str, Any], tree: str) -> None:
    for path, leaf in leaves.items():
        if not jnp.isfinite(leaf).all():
            raise JloraError(f"{path}: expected finite values in the {tree} tree, found NaN or infinity")


def _difference(tuned: Any, base: Any) -> jax.Array:
    return jnp.asarray(tuned, jnp.float32) - jnp.asarray(base, jnp.float32)


def _factorize(
    path: str, entry: LowRank, difference: jax.Array, energy: float | None
) -> tuple[LowRank, dict[str, np.ndarray]]:
    """Returns (the entry with A and B filled in, {name: singular values} of its adapted layers)."""
    matrices = leaf_to_matrices(entry, difference)  # (layers, out, in)
    copies = len(matrices) // len(entry.ranks)
    names = _names(path, entry, copies)
    layers: list[Matrices] = []
    spectra: dict[str, np.ndarray] = {}
    for number, rank in enumerate(entry.ranks):
        group = range(number * copies, (number + 1) * copies)
        if not rank:
            layers += [_absent(matrices[layer]) for layer in group]
            continue
        factors = [with_fixed_signs(*jnp.linalg.svd(matrices[layer], full_matrices=False)) for layer in group]
        values = {names[layer]: np.asarray(s) for layer, (_, s, _) in zip(group, factors, strict=True)}
        if energy is not None:  # matrices that share one rank all keep the largest that any of them needs
            rank = max(rank_for(s, energy) for s in values.values())
        layers += [from_svd(*factor, rank) for factor in factors]
        spectra |= values
    return from_matrices(entry, layers), spectra


def _absent(matrix: jax.Array) -> Matrices:
    out, inputs = matrix.shape
    return Matrices(jnp.zeros((0, inputs)), jnp.zeros((out, 0)), jnp.zeros(0))


def _names(path: str, entry: LowRank, copies: int) -> list[str]:
    """Names each matrix of the entry after its module, with a number if the module holds several."""
    modules = layer_names(path, entry)
    return modules if copies == 1 else [f"{module}[{copy}]" for module in modules for copy in range(copies)]


def _whole(entry: Full | Rows, tuned: Any) -> Full | Rows:
    value = own_values(jnp.asarray(tuned), entry)
    return dataclasses.replace(entry, value=jnp.array(value, entry.value.dtype, copy=True))


def _change_outside(entry: Entry | None, difference: jax.Array) -> jax.Array:
    """Returns the part of a leaf's change in layers or rows that the entry does not hold."""
    if entry is None:
        return difference
    if isinstance(entry, LowRank):
        matrices = leaf_to_matrices(entry, difference)
        held = np.repeat(np.asarray(entry.ranks) > 0, len(matrices) // len(entry.ranks))
        return matrices[~held]
    if entry.taken is None:
        return difference[:0]
    return jnp.delete(difference, np.asarray(entry.taken), axis=entry.axis if isinstance(entry, Rows) else 0)


def _sum_of_squares(x: jax.Array) -> float:
    return float(jnp.sum(jnp.square(x))) if math.prod(x.shape) else 0.0


def _no_change(left: dict[str, float]) -> str:
    if not left:
        return "tuned: expected weights that differ from the base's, found equal ones: give the fine-tuned model"
    some = ", ".join(list(left)[:3]) + (f" and {len(left) - 3} more leaves" if len(left) > 3 else "")
    return (
        f"target_modules: expected modules that differ between tuned and base, found no change in any of them; {some}"
        " changed: adapt those, or name them in modules_to_save"
    )
