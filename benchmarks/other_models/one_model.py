"""The three lines on one model of others, as JSON: python -m benchmarks.other_models.one_model NAME FOLDER."""

from __future__ import annotations

import json
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jlora
from jlora.transform.adapt import find_uses
from jlora.tree.leaf_paths import is_array, leaves_by_path

TOLERANCE = 1e-5
_GRADIENT_TOLERANCE = 1e-3
_FIELDS: dict[str, Any] = {"r": 2, "lora_alpha": 4, "init_lora_weights": False, "ensure_weight_tying": True}
_RULES = ("linear", "conv", "lookup")


class Built(NamedTuple):
    """A function whose first argument is a tree of weights, the weights, and its other arguments."""

    fn: Callable
    weights: Any
    args: tuple


class Model(NamedTuple):
    """A model of others.

    Attributes:
      package: pinned, as pip takes it: `flaim==0.0.5`.
      title: what it is. framework: of its modules.
      build: makes it, small and with random weights.
      needs: other pinned packages that its import asks for.
    """

    package: str
    title: str
    framework: str
    build: Callable[[], Built]
    needs: tuple[str, ...] = ()

    @property
    def requirements(self) -> tuple[str, ...]:
        return (self.package, *self.needs)


def require_versions(model: Model) -> None:
    """Raises RuntimeError where a package is missing, or is there in another version than the pinned one."""
    for requirement in model.requirements:
        package, _, expected = requirement.partition("==")
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            found = "none"
        if found != expected:
            raise RuntimeError(f"{package}: expected version {expected}, found {found}. Use --install.")


def checked(built: Built) -> dict[str, Any]:
    """Runs the three lines.

    Returns:
      {"weights": how many leaves are matrices or more; "linear", "adapted": how many of these "all-linear" and ".*"
      adapt; "left": (path, operation) of those that ".*" does not; "difference": of adapt from merge, relative}.

    Raises:
      RuntimeError: adapt and merge differ, in value or gradient; a step is not finite; the base was changed.
    """
    fn, args = built.fn, built.args
    weights = shaken(1, built.weights)
    before = {path: np.array(leaf) for path, leaf in leaves_by_path(weights).items() if is_array(leaf)}
    adapter = _adapter(".*", weights, fn, args)
    apply = jlora.adapt(fn)

    of_adapter = _loss_results_gradient(lambda adapter: apply(weights, adapter, *args))
    of_merged = _loss_results_gradient(lambda adapter: fn(jlora.merge(weights, adapter), *args))
    (_, ours), our_slopes = of_adapter(adapter)
    (_, theirs), their_slopes = of_merged(adapter)
    difference = relative(ours, theirs)
    _require(difference <= TOLERANCE, f"adapt and merge differ by {difference:.1e}")
    (_, plain), _ = of_merged(jax.tree.map(jnp.zeros_like, adapter))
    _require(relative(ours, plain) > 100 * TOLERANCE, "the adapter has no effect")
    _require_same(_trained(our_slopes), _trained(their_slopes))
    step = 0.01 / _norm(_trained(their_slopes))
    moved = jax.tree.map(lambda leaf, slope: leaf - step * slope, adapter, our_slopes)
    _require(bool(jnp.isfinite(of_adapter(moved)[0][0])), "the loss after a step is not finite")
    after = leaves_by_path(weights)
    _require(all((before[path] == after[path]).all() for path in before), "the base was changed")

    uses = find_uses(fn, weights, *args)
    there = [path for path, leaf in before.items() if np.sum(np.array(leaf.shape) > 1) > 1 and leaf.dtype != np.int32]
    return {
        "weights": len(there),
        "linear": _linear(weights, fn, args, uses),
        "adapted": len(adapter),
        "left": [(path, _operation(uses[path])) for path in there if path not in adapter],
        "difference": difference,
    }


def shaken(seed: int, weights: Any) -> Any:
    """The weights with noise: what is zero at first (a last layer, a layer's scale) would hide what is before it."""

    def noisy(path: Any, leaf: Any) -> Any:
        if not is_array(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        own = np.random.default_rng([seed, zlib.crc32(jax.tree_util.keystr(path).encode())])
        return jnp.asarray(leaf + 0.05 * own.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(noisy, weights)


def relative(found: list, expected: list) -> float:
    """The largest difference, over the largest value, of any of the arrays."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(found, expected, strict=True)]
    return max(float(np.abs(a - b).max() / np.maximum(np.abs(b).max(), 1e-30)) for a, b in pairs)


def _adapter(targets: str, weights: Any, fn: Callable, args: tuple) -> dict:
    config = jlora.LoraConfig(target_modules=targets, **_FIELDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not adapted is in the table; a rank above a small weight's side
        return jlora.init(jax.random.key(0), config, weights, fn, *args)


def _linear(weights: Any, fn: Callable, args: tuple, uses: dict) -> int:
    """How many weights "all-linear" adapts; without any product of matrices it would be an error."""
    if not any(use.kind == "linear" for found in uses.values() for use in found):
        return 0
    return len(_adapter("all-linear", weights, fn, args))


def _floats(results: Any) -> list[jax.Array]:
    """The leaves of a result that can be compared and differentiated."""
    leaves = [leaf for leaf in jax.tree.leaves(results) if is_array(leaf)]
    return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _loss_results_gradient(run: Callable) -> Callable:
    """adapter -> ((mean square of the results, the results), gradient of the first); compiled once."""

    def loss(adapter: dict) -> tuple[jax.Array, list[jax.Array]]:
        results = _floats(run(adapter))
        return sum(jnp.mean(jnp.abs(result) ** 2) for result in results), results

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _require_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    _require(all(bool(np.isfinite(leaf).all()) for leaf in ours), "a gradient is not finite")
    difference = _norm([a - b for a, b in zip(ours, theirs, strict=True)]) / _norm(theirs)
    _require(difference <= _GRADIENT_TOLERANCE, f"the gradients of adapt and merge differ by {difference:.1e}")


def _norm(leaves: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(leaf) ** 2) for leaf in leaves)))


def _trained(gradient: dict) -> list[np.ndarray]:
    return [np.asarray(factor) for entry in gradient.values() for factor in (entry.a, entry.b)]


def _operation(uses: tuple) -> str:
    """The first operation on the weight that has no low-rank rule."""
    return next((use.kind for use in uses if use.kind not in _RULES), "no product" if uses else "unused")


def _require(is_so: bool, message: str) -> None:
    if not is_so:
        raise RuntimeError(message)


def main(name: str, folder: str) -> None:
    """Checks one model, with the packages of the folder after those of the environment."""
    from benchmarks.other_models.__main__ import MODELS

    sys.path.append(folder)
    begin, model = time.monotonic(), MODELS[name]
    require_versions(model)
    found = checked(model.build())
    print(json.dumps(found | {"seconds": time.monotonic() - begin}))


if __name__ == "__main__":
    main(*sys.argv[1:])
