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
from jlora.names import is_stacked, module_names
from jlora.paths import leaves_by_path
from jlora.targets import (
    check_other_modules,
    check_targets,
    is_all_linear,
    is_target,
    is_trained_whole,
    matches,
    pattern_value,
    require_quick_patterns,
)
from jlora.transform.adapt import find_uses
from jlora.transform.consume import Use
from jlora.tying import HEAD, means, with_embedding_for_head

Names = Mapping[str, list[str]]
"""{path: dotted names of the modules in the leaf, one for each layer of a stack}."""

_KINDS = frozenset(get_args(Kind))
_TOKEN_EMBEDDINGS = ("embed_tokens", "word_embeddings", "wte", "embed_in")


def abstract_adapter(config: LoraConfig, base: Any, fn: Callable, *args: Any, **kwargs: Any) -> dict[str, Entry]:
    """The adapter that `init` makes with ShapeDtypeStructs for arrays; the scales are true numbers.

    Nothing is computed, and `base` may be abstract itself. Arguments and errors are those of `init`.
    """
    leaves, uses = leaves_by_path(base), find_uses(fn, base, *args, **kwargs)
    modules = {path: _module_names(path, leaf, uses[path]) for path, leaf in leaves.items()}
    _check(config, leaves, uses, modules)
    return _planned(config, leaves, uses, modules)


def abstract_stored(
    where: str, config: LoraConfig, base: Any, fn: Callable, *args: Any, **kwargs: Any
) -> dict[str, Entry]:
    """`abstract_adapter` for the configuration in the file `where`, which may name modules that the model has not.

    PEFT ignores such names, and the tensors of the file say whether they matter.

    Raises:
      JloraError: as `abstract_adapter` does, names that match nothing apart; regular expressions that take too long.
    """
    leaves, uses = leaves_by_path(base), find_uses(fn, base, *args, **kwargs)
    modules = {path: _module_names(path, leaf, uses[path]) for path, leaf in leaves.items()}
    require_quick_patterns(config, [name for names in modules.values() for name in names], where)
    return _planned(config, leaves, uses, modules)


def _planned(
    config: LoraConfig, leaves: Mapping[str, Any], uses: Mapping[str, tuple[Use, ...]], modules: Names
) -> dict[str, Entry]:
    """{path: entry} of the leaves that the configuration means."""
    tied = _tied_tables(config, uses, modules)
    for names in tied.values():
        config = with_embedding_for_head(config, names[0])
    plan: dict[str, Entry] = {}
    for path, leaf in leaves.items():
        if not _whole_layers(config, modules[path]) and _is_adapted(config, uses[path], leaf, modules[path]):
            plan[path] = _low_rank(config, path, leaf.shape, uses[path], modules[path])
    for path, layers in _trained_whole(config, plan, modules).items():
        plan[path] = _full(leaves[path], layers, len(modules[path]))
    for path in tied.keys() & plan.keys():
        plan[path] = _of_tied_table(plan[path], config.ensure_weight_tying)
    for path, ids in _token_rows(config, uses, modules, tied).items():
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


def _tied_tables(config: LoraConfig, uses: Mapping[str, tuple[Use, ...]], modules: Names) -> Names:
    """The leaves that are looked up in and multiplied by: an embedding that is the output head too.

    Raises:
      JloraError: the head is to have an adapter of its own, and is no table of its own.
    """
    tied = {path: modules[path] for path in uses if {"lookup", "linear"} <= {use.kind for use in uses[path]}}
    if any(name.rpartition(".")[2] == HEAD for names in modules.values() for name in names):
        return tied
    if tied and not config.ensure_weight_tying and means(config, HEAD):
        raise JloraError(
            f"LoraConfig: {HEAD}: expected a head with a table of its own, found one tied to {next(iter(tied))}:"
            " load_base(..., tie_word_embeddings=False) gives it one; or ensure_weight_tying=True adapts both as one"
        )
    return tied


def _of_tied_table(entry: Entry, both: bool) -> Entry:
    """The entry as both uses of a tied table see it, or its lookups alone."""
    changes: dict[str, Any] = {"tied": both, "only": None if both else "lookup"}
    return dataclasses.replace(entry, **changes)


def _check(config: LoraConfig, leaves: Mapping[str, Any], uses: Mapping[str, tuple], modules: Names) -> None:
    for path, names in modules.items():
        unused = not uses[path] and np.ndim(leaves[path]) > 1
        if unused and not is_all_linear(config) and any(is_target(config, name) for name in names):
            raise JloraError(
                f"{path}: matches target_modules, but the function never uses it; exclude_modules leaves it out"
            )
    adaptable = [name for path in modules if _adaptable(config, uses[path], leaves[path]) for name in modules[path]]
    heads = [HEAD] if _tied_tables(config, uses, modules) else []
    check_targets(config, [*adaptable, *heads])
    check_other_modules(config, [*(name for names in modules.values() for name in names), *heads])


def _adaptable(config: LoraConfig, uses: tuple[Use, ...], leaf: Any) -> bool:
    kinds = {use.kind for use in uses}
    return kinds == {"linear"} if is_all_linear(config) else bool(kinds & _KINDS) and leaf.ndim > 1


def _is_adapted(config: LoraConfig, uses: tuple[Use, ...], leaf: Any, names: list[str]) -> bool:
    return _adaptable(config, uses, leaf) and any(is_target(config, name) for name in names)


def _shaping_use(uses: tuple[Use, ...], ndim: int) -> Use:
    """The use that shapes A and B: of those that go by layers a lookup, or else the first.

    Axes that the function drops (`w[2]`) count as free ones.
    """
    use = max((use for use in uses if use.kind in _KINDS), key=lambda use: (len(use.stack), use.kind == "lookup"))
    return dataclasses.replace(use, outputs=tuple(a for a in range(ndim) if a not in {*use.stack, *use.inputs}))


def _low_rank(
    config: LoraConfig, path: str, shape: tuple[int, ...], uses: tuple[Use, ...], names: list[str]
) -> LowRank:
    """The entry of one leaf: shapes, scale (*stack, r), spec and ranks; a stack is as wide as its largest rank."""
    use = _shaping_use(uses, len(shape))
    ranks = tuple(pattern_value(config.rank_pattern, n, config.r) if is_target(config, n) else 0 for n in names)
    stack, inputs, outputs = (tuple(shape[axis] for axis in axes) for axes in (use.stack, use.inputs, use.outputs))
    _warn_of_rank(path, max(ranks), math.prod(inputs), math.prod(outputs))
    norms = _abstract((*stack, *outputs), jnp.float32) if config.use_dora else None
    return LowRank(
        a=_abstract((*stack, max(ranks), *inputs), jnp.float32),
        b=_abstract((*stack, max(ranks), *outputs), jnp.float32),
        scale=jnp.asarray(_scale(config, names, ranks, stack)),
        spec=_spec(use, len(shape)),
        ranks=ranks,
        dropout=config.lora_dropout,
        kind=cast(Kind, use.kind),
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


def _trained_whole(config: LoraConfig, plan: Mapping[str, Entry], modules: Names) -> dict[str, tuple[int, ...]]:
    """{path: layers} of the leaves of `modules_to_save` and of the biases that are trained."""
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
        if path.rsplit("/", 1)[-1] == "bias" and config.bias != "none":
            trained = set(names) if config.bias == "all" else adapted
            layers = tuple(layer for layer, name in enumerate(names) if layer in layers or name in trained)
        if layers:
            found[path] = layers
    return found


def _full(leaf: Any, layers: tuple[int, ...], count: int) -> Full:
    if len(layers) == count:
        return Full(_abstract(leaf.shape, leaf.dtype))
    return Full(_abstract((len(layers), *leaf.shape[1:]), leaf.dtype), layers)


def _token_rows(
    config: LoraConfig, uses: Mapping[str, tuple[Use, ...]], modules: Names, tied: Names
) -> dict[str, tuple[int, ...]]:
    """{path of an embedding: ids of its trained rows}, which its tied head shares."""
    wanted = config.trainable_token_indices
    if wanted is None:
        return {}
    tables = {path: names[0] for path, names in modules.items() if any(use.kind == "lookup" for use in uses[path])}
    by_name = wanted if isinstance(wanted, Mapping) else {_token_embedding(tables): wanted}
    found: dict[str, tuple[int, ...]] = {}
    for end, ids in by_name.items():
        if tied and end == HEAD and any(list(ids) == list(others) for name, others in by_name.items() if name != HEAD):
            continue
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
