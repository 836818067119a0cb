"""`init`: a fresh adapter for any function, its shapes taken from how the function uses its weights."""

from __future__ import annotations

import dataclasses
import math
import warnings
import zlib
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jlora.adapt import find_uses
from jlora.adapter import Full, LowRank
from jlora.config import LoraConfig
from jlora.consume import Use
from jlora.errors import JloraError
from jlora.names import is_stacked, module_names
from jlora.paths import leaves_by_path
from jlora.targets import check_other_modules, check_targets, is_all_linear, is_target, is_trained_whole, pattern_value


def init(
    key: jax.Array, config: LoraConfig, base: Any, fn: Callable, *args: Any, **kwargs: Any
) -> dict[str, LowRank | Full]:
    """A fresh adapter: with PEFT's default initialization the adapted function equals the base's bit for bit.

    (On XLA:CPU from a width of 64 on: smaller products it may fuse with the sum, and round otherwise.)

    Args:
      key: draws A (and an embedding's B).
      config: which modules, and how.
      base: what `fn` takes first, any pytree of arrays.
      fn, args, kwargs: the function, traced abstractly (ShapeDtypeStructs will do for args; nothing is computed)
        to see over which axes each weight is contracted or looked up.

    Returns:
      {path: LowRank(a, b, scale) for each adapted leaf, Full(value) for each leaf of `modules_to_save`}; float32.

    Raises:
      JloraError: an entry of the configuration matches no module that could be adapted, or a matching weight
        that `fn` never uses.
    """
    leaves, adapter = leaves_by_path(base), dict[str, LowRank | Full]()
    for path, (entry, kind) in _plan(config, base, fn, *args, **kwargs).items():
        if isinstance(entry, Full):
            adapter[path] = Full(jnp.array(leaves[path], copy=True))
        else:
            adapter[path] = _drawn(jax.random.fold_in(key, zlib.crc32(path.encode())), config, entry, kind)
    return adapter


def abstract_adapter(
    config: LoraConfig, base: Any, fn: Callable, *args: Any, **kwargs: Any
) -> dict[str, LowRank | Full]:
    """The adapter that `init` makes with ShapeDtypeStructs for a, b and value; the scales are true numbers.

    Nothing is computed, and `base` may be abstract itself. Arguments and errors are those of `init`.
    """
    return {path: entry for path, (entry, _) in _plan(config, base, fn, *args, **kwargs).items()}


def _plan(
    config: LoraConfig, base: Any, fn: Callable, *args: Any, **kwargs: Any
) -> dict[str, tuple[LowRank | Full, str]]:
    """{path: (entry of ShapeDtypeStructs, kind of the weight's use)}."""
    leaves, uses = leaves_by_path(base), find_uses(fn, base, *args, **kwargs)
    modules = {path: _module_names(path, leaf, uses[path]) for path, leaf in leaves.items()}
    adaptable = {path: names for path, names in modules.items() if _adaptable(config, uses[path], leaves[path])}
    _require_used(
        config, {path: names for path, names in modules.items() if not uses[path] and np.ndim(leaves[path]) > 1}
    )
    check_targets(config, [name for names in adaptable.values() for name in names])
    check_other_modules(config, [name for names in modules.values() for name in names])
    plan: dict[str, tuple[LowRank | Full, str]] = {}
    for path, leaf in leaves.items():
        if _is_trained_whole(config, path, modules[path]):
            plan[path] = (Full(_abstract(leaf.shape, leaf.dtype)), "whole")
        elif path in adaptable and any(is_target(config, name) for name in modules[path]):
            use = _only_use(path, uses[path], len(leaf.shape))
            plan[path] = (_shaped(config, path, leaf.shape, use, modules[path]), use.kind)
    return plan


def _require_used(config: LoraConfig, unused: dict[str, list[str]]) -> None:
    for path, names in unused.items():
        if not is_all_linear(config) and any(is_target(config, name) for name in names):
            raise JloraError(
                f"{path}: matches target_modules, but the function never uses it; exclude_modules leaves it out"
            )


def _is_trained_whole(config: LoraConfig, path: str, names: list[str]) -> bool:
    whole = [name for name in names if is_trained_whole(config, name)]
    if whole and len(whole) < len(names):
        raise JloraError(
            f"{path}: expected modules_to_save to name all {len(names)} layers of a stack or none,"
            f" found {', '.join(whole)}"
        )
    return bool(whole)


def _module_names(path: str, leaf: Any, uses: set[Use]) -> list[str]:
    """Dotted names of the single layers in the leaf, or of the one module where it is not a stack of layers."""
    stacked = is_stacked(path) and any(use.stack for use in uses)
    return module_names(path, leaf.shape[0] if stacked else None)


def _adaptable(config: LoraConfig, uses: set[Use], leaf: Any) -> bool:
    kinds = {use.kind for use in uses}
    if is_all_linear(config):
        return kinds == {"linear"}
    return bool(kinds) and kinds <= {"linear", "lookup"} and leaf.ndim > 1


def _only_use(path: str, uses: set[Use], ndim: int) -> Use:
    """The use that shapes A and B; axes that the function drops (`w[2]`) count as free ones."""
    if len(uses) > 1:
        raise JloraError(
            f"{path}: expected one way of using the weight, found {len(uses)}:"
            f" {'; '.join(sorted(str(use) for use in uses))}. Weights used in several ways are not supported yet."
        )
    use = next(iter(uses))
    return dataclasses.replace(use, outputs=tuple(a for a in range(ndim) if a not in {*use.stack, *use.inputs}))


def _shaped(config: LoraConfig, path: str, shape: tuple[int, ...], use: Use, names: list[str]) -> LowRank:
    """The entry of one leaf: shapes, scale (*stack, r), spec and ranks; a stack is as wide as its largest rank."""
    ranks = tuple(pattern_value(config.rank_pattern, n, config.r) if is_target(config, n) else 0 for n in names)
    stack, inputs, outputs = (tuple(shape[axis] for axis in axes) for axes in (use.stack, use.inputs, use.outputs))
    _warn_of_rank(path, max(ranks), math.prod(inputs), math.prod(outputs))
    scale = np.zeros((len(names), max(ranks)), np.float32)
    for layer, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        alpha = pattern_value(config.alpha_pattern, name, config.lora_alpha)
        scale[layer, :rank] = alpha / max(1, math.sqrt(rank) if config.use_rslora else rank)
    inner_stack = range(1, len(stack))  # axes that a batched product adds to that of the layers
    scale = np.expand_dims(scale, tuple(inner_stack)) if len(names) > 1 else scale[0]
    scale = np.broadcast_to(scale, (*stack, max(ranks)))
    a, b = (_abstract((*stack, max(ranks), *axes), jnp.float32) for axes in (inputs, outputs))
    return LowRank(a, b, jnp.asarray(scale), _spec(use, len(shape)), ranks, config.lora_dropout)


def _abstract(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """A stand-in of this shape and dtype, where an entry's array will be."""
    return cast(jax.Array, jax.ShapeDtypeStruct(shape, dtype))


def _warn_of_rank(path: str, rank: int, inputs: int, outputs: int) -> None:
    if rank > min(inputs, outputs):
        message = f"{path}: rank {rank} is above the smaller side of a {inputs} x {outputs} weight: more parameters"
        warnings.warn(f"{message}, but no larger updates than rank {min(inputs, outputs)}", stacklevel=5)


def _spec(use: Use, ndim: int) -> str:
    letters = "abcdefghijklmnopq"[:ndim]
    stack, inputs, outputs = ("".join(letters[axis] for axis in axes) for axes in (use.stack, use.inputs, use.outputs))
    return f"{stack}r{inputs},{stack}r{outputs}->{letters}"


def _drawn(key: jax.Array, config: LoraConfig, entry: LowRank, kind: str) -> LowRank:
    """The entry with A and B as PEFT draws them: one is zero, unless init_lora_weights is False."""
    a_key, b_key = jax.random.split(key)
    rank_axis = entry.scale.ndim - 1
    fan_in, rank = math.prod(entry.a.shape[rank_axis + 1 :]), entry.a.shape[rank_axis]
    a, b = jnp.zeros(entry.a.shape, jnp.float32), jnp.zeros(entry.b.shape, jnp.float32)
    if kind == "lookup":
        b = jax.random.normal(b_key, b.shape, jnp.float32)
        a = a if config.init_lora_weights else jax.random.normal(a_key, a.shape, jnp.float32)
    else:
        gaussian = config.init_lora_weights == "gaussian"
        a = jax.random.normal(a_key, a.shape, jnp.float32) / rank if gaussian else _uniform(a_key, a.shape, fan_in)
        b = b if config.init_lora_weights else _uniform(b_key, b.shape, rank)
    return dataclasses.replace(entry, a=a, b=b)


def _uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """torch's default for Linear weights, which PEFT keeps: Kaiming uniform with a = sqrt(5) (He et al. 2015)."""
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)
