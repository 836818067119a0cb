"""`adapt`: turns any JAX function of a base tree into a function of base and adapter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from jlora.lora.entries import Adapter, Entry, Full, insert_trained, require_fit
from jlora.transform.adapted_weight import attach_update, watch, wrap_quantized
from jlora.transform.context import Context
from jlora.transform.interpreter import Traced, results_of, trace
from jlora.transform.uses import Use
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from jlora.tree.quantized import is_quantized

if TYPE_CHECKING:
    from jaxtyping import PyTree


def adapt(fn: Callable, *, allow_materialize: bool = False) -> Callable:
    """Makes `fn(base, *args, **kwargs)` a function of `(base, adapter, *args, dropout_key=None, **kwargs)`.

    For a leaf W with a LowRank entry, the result is that of `fn` on W + einsum(spec, a, b * scale) (times DoRA's gain),
    but the sum is not formed: where `fn` computes x W, the adapted function computes x W + (x a) b. Full entries
    replace their leaves, and Rows replace rows of theirs. The result can be transformed in the same ways as `fn`: jit,
    grad, vmap, scan, checkpoint.

    The base may hold `Quantized` leaves (`jlora.quantize`): `fn` sees dense weights of their shape and dtype, which are
    dequantized when it uses them, and again in the backward pass.

    Args:
      fn: any JAX function whose first argument is a pytree. Leaves and arguments that are arrays are traced; all
        others (numbers, strings, functions) are passed unchanged.
      allow_materialize: where a primitive has no low-rank rule (or a function has custom derivatives), compute the sum
        W + B A instead of raising an error; `find_materialized` lists these places.

    Returns:
      A function. Its `adapter` is {path: LowRank | Full | Rows}, or None to use only the base. With a `dropout_key` the
      adapters' dropout is active.

    Raises:
      AdapterMismatchError (from the function returned): a path is not in the base, or an entry does not have its leaf's
        shape.
      NoRuleError (from the function returned): a primitive without a rule uses an adapted leaf; the message names both.
    """

    @functools.wraps(fn)
    def call_adapted(
        base: Any, adapter: Adapter | None, *args: Any, dropout_key: jax.Array | None = None, **kwargs: Any
    ) -> Any:
        adapter, leaves = adapter or {}, leaves_by_path(base)
        require_fit(adapter, leaves)
        updates = _updates(adapter)
        others = {path: entry for path, entry in adapter.items() if isinstance(entry, Full) and path not in updates}
        whole = {path: insert_trained(leaves[path], entry) for path, entry in others.items()}
        base = replace_leaves(base, whole)
        if not updates and not any(is_quantized(leaf) for leaf in (leaves | whole).values()):
            return fn(base, *args, **kwargs)
        traced = trace(fn, base, args, kwargs)
        results = results_of(Context(dropout_key, allow_materialize), traced, _values(traced, traced.leaves, updates))
        return jax.tree.unflatten(traced.structure, results)

    return call_adapted


def _updates(adapter: Adapter) -> dict[str, Entry]:
    """Returns the entries that do not replace their leaves in all uses."""
    return {path: entry for path, entry in adapter.items() if not isinstance(entry, Full) or entry.only is not None}


def _values(traced: Traced, leaves: list, updates: Mapping[str, Entry]) -> list:
    """Returns the jaxpr's inputs, with adapted and quantized leaves as AdaptedWeight."""
    return [
        wrap_quantized(path, leaf) if path is None or path not in updates else attach_update(path, leaf, updates[path])
        for path, leaf in zip(traced.paths, leaves, strict=True)
    ]


def find_uses(fn: Callable, base: Any, *args: Any, **kwargs: Any) -> dict[str, tuple[Use, ...]]:
    """Returns {path of an array leaf: how `fn(base, *args, **kwargs)` uses it}, without computing anything.

    A leaf has one `Use` for each different way in which it is used, in the order in which they come first; () if it is
    not used. For `x @ base["w"]`: {"w": (Use("linear", stack=(), inputs=(0,), outputs=(1,)),)}.

    Args:
      base, args, kwargs: arguments of `fn`; arrays may be ShapeDtypeStructs.
    """
    return uses_in(trace(fn, base, args, kwargs))


def uses_in(traced: Traced) -> dict[str, tuple[Use, ...]]:
    """Returns {path of an array leaf: how the traced function uses it}, as `find_uses` does.

    A leaf has one `Use` for each different way in which it is used, in the order in which they come first; () if it is
    not used.

    Args:
      traced: a result of `trace(fn, base, args, kwargs)`.
    """
    context = Context(None)

    def run(leaves: list) -> list:
        pairs = zip(traced.paths, leaves, strict=True)
        values = [leaf if path is None else watch(path, leaf) for path, leaf in pairs]
        return results_of(context, traced, values)

    jax.eval_shape(run, traced.leaves)
    return {path: tuple(context.uses.get(path, ())) for path in traced.paths if path is not None}


def find_materialized(
    fn: Callable, base: PyTree, adapter: Adapter, *args: Any, **kwargs: Any
) -> dict[str, tuple[str, ...]]:
    """Returns {path: the primitives for which `adapt(fn, allow_materialize=True)` forms weight plus update}.

    Nothing is computed, and arrays may be ShapeDtypeStructs. The result is {} if there are no such places. Primitives
    are in order, once for each place: {"w": ("tanh", "tanh")} for two; a primitive inside a loop is listed once. If
    `fn` returns the weight itself, the name is "the result".

    Args:
      base, args, kwargs: arguments of `fn`.
      adapter: {path in `base`: LowRank | Full | Rows}.

    Raises:
      AdapterMismatchError: a path is not in the base, or an entry does not have its leaf's shape.
    """
    require_fit(adapter, leaves_by_path(base))
    return find_materialized_in(trace(fn, base, args, kwargs), adapter)


def find_materialized_in(traced: Traced, adapter: Adapter) -> dict[str, tuple[str, ...]]:
    """Returns {path: the names of the primitives at which its weight plus update is formed, in order}.

    The same as `find_materialized`, for a function that `trace` has traced and an adapter that fits its base. Paths
    without such primitives are left out.
    """
    context = Context(None, materialize=True)
    jax.eval_shape(
        lambda leaves, updates: results_of(context, traced, _values(traced, leaves, updates)),
        traced.leaves,
        _updates(adapter),
    )
    places: dict[str, tuple[str, ...]] = {}
    for path, primitive, _ in context.formed:
        places[path] = (*places.get(path, ()), primitive)
    return places
