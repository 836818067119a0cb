"""Which leaves a LoraConfig adapts and with what shapes: from how the function uses its weights, computing nothing."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jlora.adapter import Entry, Full, Kind, LowRank, Rows
from jlora.config import LoraConfig
from jlora.errors import JloraError
from jlora.names import has_outputs_first, is_bias, is_stacked, module_names, torch_path
from jlora.paths import array_leaves
from jlora.targets import (
    check_other_modules,
    check_targets,
    is_all_linear,
    is_target,
    is_trained_whole,
    matches,
    pattern_value,
)
from jlora.transform.adapt import materialized_in, uses_in
from jlora.transform.consume import Use
from jlora.transform.interpreter import Traced, trace

Names = Mapping[str, list[str]]
"""{path: dotted names of the modules in the leaf, one for each layer of a stack}."""

_KINDS = frozenset(get_args(Kind))
_TOKEN_EMBEDDINGS = ("embed_tokens", "word_embeddings", "wte", "embed_in")


def abstract_adapter(
    config: LoraConfig,
    base: Any,
    fn: Callable,
    *args: Any,
    allow_materialize: bool = False,
    names: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> dict[str, Entry]:
    """The adapter that `init` makes with ShapeDtypeStructs for arrays; the scales are true numbers.

    Nothing is computed, and `base` may be abstract itself. Arguments and errors are those of `init`.
    """
    leaves, traced = array_leaves(base), trace(fn, base, args, kwargs)
    uses = uses_in(traced)
    modules = {path: _module_names(torch_path(path, names), leaf, uses[path]) for path, leaf in leaves.items()}
    _require_used(config, leaves, uses, modules)
    adaptable = {p: use for p, leaf in leaves.items() if (use := _shaping_use(config, p, leaf, uses[p])) is not None}
    plan: dict[str, Entry] = {}
    for path, use in adaptable.items():
        if _is_adapted(config, modules[path]):
            plan[path] = _low_rank(config, path, leaves[path].shape, use, uses[path], modules[path])
    stopped = {} if allow_materialize else _stopped(traced, uses, plan)
    plan = {path: entry for path, entry in plan.items() if path not in stopped}
    _check(config, modules, [path for path in adaptable if path not in stopped], stopped)
    biases = [path for path in leaves if is_bias(torch_path(path, names)) and not _has_rule(uses[path])]
    for path, layers in _trained_whole(config, plan, biases, modules).items():
        plan[path] = _full(leaves[path], layers, len(modules[path]), uses[path])
    for path, ids in _token_rows(config, uses, modules).items():
        if path in plan:
            raise JloraError(
                f"{path}: expected an embedding of which either rows are trained (trainable_token_indices) or the"
                " whole is adapted (target_modules, modules_to_save), found both"
            )
        plan[path] = _rows(path, leaves[path], ids)
    return {path: plan[path] for path in leaves if path in plan}


def _module_names(path: str, leaf: Any, uses: tuple[Use, ...]) -> list[str]:
    """Dotted names of the single layers in the leaf, or of the one module where it is not a stack of layers."""
    stacked = is_stacked(path) and any(use.stack for use in uses)
    return module_names(path, leaf.shape[0] if stacked else None)


def _require_used(config: LoraConfig, leaves: Mapping[str, Any], uses: Mapping[str, tuple], modules: Names) -> None:
    for path, names in modules.items():
        unused = not uses[path] and np.ndim(leaves[path]) > 1
        if unused and not is_all_linear(config) and any(is_target(config, name) for name in names):
            raise JloraError(
                f"{path}: matches target_modules, but the function never uses it; exclude_modules leaves it out"
            )


def _stopped(traced: Traced, uses: Mapping[str, tuple[Use, ...]], plan: Mapping[str, Entry]) -> dict[str, str]:
    """{path: the first operation without a low-rank rule} of the entries that `adapt` would refuse."""
    without = {path: next((use.kind for use in uses[path] if use.kind not in _KINDS), None) for path in plan}
    stopped = {path: operation for path, operation in without.items() if operation is not None}
    others = {path: entry for path, entry in plan.items() if path not in stopped}
    return stopped | {path: places[0] for path, places in materialized_in(traced, others).items()}


def _check(config: LoraConfig, modules: Names, adaptable: list[str], stopped: Mapping[str, str]) -> None:
    """Each entry of the configuration must match something; what it means and cannot be adapted is listed."""
    names = {name: operation for path, operation in stopped.items() for name in modules[path]}
    check_targets(config, [name for path in adaptable for name in modules[path]], names)
    check_other_modules(config, [name for names in modules.values() for name in names])
    if stopped:
        listed = ", ".join(f"{path} ({operation})" for path, operation in stopped.items())
        warnings.warn(
            f"not adapted, because an operation has no low-rank rule: {listed}; init(..., allow_materialize=True)"
            " adapts them, and exclude_modules leaves them out",
            stacklevel=4,
        )


def _is_adapted(config: LoraConfig, names: list[str]) -> bool:
    whole = any(is_trained_whole(config, name) for name in names)
    return not whole and any(is_target(config, name) for name in names)


def _shaping_use(config: LoraConfig, path: str, leaf: Any, uses: tuple[Use, ...]) -> Use | None:
    """The use that gives A and B their shapes; None for a leaf that target_modules cannot mean.

    A use within layers comes first, then a lookup. Axes that the function drops (`w[2]`) count as outputs. Where no
    use has a low-rank rule, the axes are those of a kernel (in, out), or of torch's weight (out, in).
    """
    kinds = {use.kind for use in uses}
    if not uses or (is_all_linear(config) and (kinds & _KINDS) - {"linear"}):
        return None
    known = [use for use in uses if use.kind in _KINDS]
    if known:
        use = max(known, key=lambda use: (len(use.stack), use.kind == "lookup"))
        inputs = use.inputs
    else:
        use = Use("linear", max((use.stack for use in uses), key=len))
        free = [axis for axis in range(leaf.ndim) if axis not in use.stack]
        if sum(leaf.shape[axis] > 1 for axis in free) < 2 or is_bias(path):
            return None
        inputs = tuple(free[1:] if has_outputs_first(path) else free[:-1])
    outputs = tuple(axis for axis in range(leaf.ndim) if axis not in {*use.stack, *inputs})
    return dataclasses.replace(use, inputs=inputs, outputs=outputs) if inputs and outputs else None


def _low_rank(
    config: LoraConfig, path: str, shape: tuple[int, ...], use: Use, uses: tuple[Use, ...], names: list[str]
) -> LowRank:
    """The entry of one leaf: shapes, scale (*stack, r), spec and ranks; a stack is as wide as its largest rank."""
    kinds = {use.kind for use in uses}
    ranks = tuple(pattern_value(config.rank_pattern, n, config.r) if is_target(config, n) else 0 for n in names)
    stack, inputs, outputs = (tuple(shape[axis] for axis in axes) for axes in (use.stack, use.inputs, use.outputs))
    _warn_of_rank(path, max(ranks), math.prod(inputs), math.prod(outputs))
    tied = {"lookup", "linear"} <= kinds and not config.ensure_weight_tying
    norms = _abstract((*stack, *outputs), jnp.float32) if config.use_dora else None
    return LowRank(
        a=_abstract((*stack, max(ranks), *inputs), jnp.float32),
        b=_abstract((*stack, max(ranks), *outputs), jnp.float32),
        scale=jnp.asarray(_scale(config, names, ranks, stack)),
        spec=_spec(use, len(shape)),
        ranks=ranks,
        dropout=config.lora_dropout,
        kind=cast(Kind, use.kind),
        only="lookup" if tied else None,
        magnitude=norms,
        squared_norm=norms,
    )


def _scale(config: LoraConfig, names: list[str], ranks: tuple[int, ...], stack: tuple[int, ...]) -> np.ndarray:
    scale = np.zeros((len(names), max(ranks)), np.float32)
    for layer, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        alpha = pattern_value(config.alpha_pattern, name, config.lora_alpha)
        scale[layer, :rank] = alpha / max(1, math.sqrt(rank) if config.use_rslora else rank)
    inner_stack = range(1, len(stack))  # axes that a batched product adds to that of the layers
    scale = np.expand_dims(scale, tuple(inner_stack)) if len(names) > 1 else scale[0]
    return np.broadcast_to(scale, (*stack, max(ranks)))


def _spec(use: Use, ndim: int) -> str:
    letters = "abcdefghijklmnopq"[:ndim]
    stack, inputs, outputs = ("".join(letters[axis] for axis in axes) for axes in (use.stack, use.inputs, use.outputs))
    return f"{stack}r{inputs},{stack}r{outputs}->{letters}"


def _abstract(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """A stand-in of this shape and dtype, where an entry's array will be."""
    return cast(jax.Array, jax.ShapeDtypeStruct(shape, dtype))


def _warn_of_rank(path: str, rank: int, inputs: int, outputs: int) -> None:
    if rank > min(inputs, outputs):
        message = f"{path}: rank {rank} is above the smaller side of a {inputs} x {outputs} weight: more parameters"
        warnings.warn(f"{message}, but no larger updates than rank {min(inputs, outputs)}", stacklevel=5)


def _whole_layers(config: LoraConfig, names: list[str]) -> tuple[int, ...]:
    return tuple(layer for layer, name in enumerate(names) if is_trained_whole(config, name))


def _trained_whole(
    config: LoraConfig, plan: Mapping[str, Entry], biases: list[str], modules: Names
) -> dict[str, tuple[int, ...]]:
    """{path: layers} of the leaves of `modules_to_save` and of the `biases` that are trained."""
    adapted = {
        name
        for path, entry in plan.items()
        if isinstance(entry, LowRank)
        for name, rank in zip(modules[path], entry.ranks, strict=True)
        if rank
    }
    found: dict[str, tuple[int, ...]] = {}
    for path, names in modules.items():
        layers = _whole_layers(config, names)
        if config.bias != "none" and path in biases:
            trained = set(names) if config.bias == "all" else adapted
            layers = tuple(layer for layer, name in enumerate(names) if layer in layers or name in trained)
        if layers:
            found[path] = layers
    return found


def _has_rule(uses: tuple[Use, ...]) -> bool:
    return any(use.kind in _KINDS for use in uses)


def _full(leaf: Any, layers: tuple[int, ...], count: int, uses: tuple[Use, ...]) -> Full:
    axes = _torch_axes(leaf.ndim, uses)
    if len(layers) == count:
        return Full(_abstract(leaf.shape, leaf.dtype), torch_axes=axes)
    return Full(_abstract((len(layers), *leaf.shape[1:]), leaf.dtype), layers, torch_axes=axes)


def _torch_axes(ndim: int, uses: tuple[Use, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Torch's (out, in), (out, in, *window) or (rows, features) in axes of one layer; None where no use says it."""
    known = [use for use in uses if use.kind in _KINDS]
    if not known:
        return None
    use = next((use for use in known if use.kind == "lookup"), known[0])
    if use.stack not in ((), (0,)) or {*use.stack, *use.inputs, *use.outputs} != set(range(ndim)):
        return None
    columns = [(axis,) for axis in use.inputs] if use.kind == "conv" else [use.inputs]
    groups = [use.inputs, use.outputs] if use.kind == "lookup" else [use.outputs, *columns]
    return tuple(tuple(axis - len(use.stack) for axis in group) for group in groups if group)


def _token_rows(config: LoraConfig, uses: Mapping[str, tuple[Use, ...]], modules: Names) -> dict[str, tuple[int, ...]]:
    """{path of an embedding: ids of its trained rows}."""
    wanted = config.trainable_token_indices
    if wanted is None:
        return {}
    tables = {path: names[0] for path, names in modules.items() if any(use.kind == "lookup" for use in uses[path])}
    by_name = wanted if isinstance(wanted, Mapping) else {_token_embedding(tables): wanted}
    found: dict[str, tuple[int, ...]] = {}
    for end, ids in by_name.items():
        paths = [path for path, name in tables.items() if matches([end], name)]
        if len(paths) != 1:
            there = ", ".join(tables.values()) or "none"
            raise JloraError(
                f"LoraConfig.trainable_token_indices: expected the end of one embedding's name, found {end!r}, which"
                f" matches {len(paths)}\nThere are: {there}"
            )
        found[paths[0]] = tuple(int(i) for i in ids)
    return found


def _token_embedding(tables: Mapping[str, str]) -> str:
    names = list(tables.values())
    tokens = [name for name in names if matches(_TOKEN_EMBEDDINGS, name)] if len(names) > 1 else names
    if len(tokens) != 1:
        raise JloraError(
            "LoraConfig.trainable_token_indices: expected {name of the embedding: ids} where the function has not one"
            f" token embedding\nThere are: {', '.join(names) or 'none'}"
        )
    return tokens[0]


def _rows(path: str, leaf: Any, ids: tuple[int, ...]) -> Rows:
    if leaf.ndim != 2 or len(set(ids)) != len(ids) or not all(0 <= i < leaf.shape[0] for i in ids) or not ids:
        raise JloraError(
            f"LoraConfig.trainable_token_indices: {path}: expected different rows of a table {leaf.shape}, found {ids}"
        )
    return Rows(_abstract((len(ids), leaf.shape[1]), leaf.dtype), ids)
