"""Plans which leaves a LoraConfig adapts, and the shapes of A and B, by tracing how the function uses its weights."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import JloraError, NoRuleError, TargetNotFoundError
from jlora.initialization.trace_uses import BaseUses, shaping_use, trace_uses, without_rule
from jlora.initialization.trainable_tokens import plan_token_rows
from jlora.lora.config import LoraConfig
from jlora.lora.entries import Entry, Full, LowRank, UseKind
from jlora.lora.spec import Spec
from jlora.lora.targets import (
    check_other_modules,
    check_targets,
    is_all_linear,
    is_target,
    is_trained_whole,
    pattern_value,
    require_quick_patterns,
)
from jlora.lora.tied_embedding import means, with_embedding_for_head
from jlora.transform.uses import Use
from jlora.tree.output_heads import HEAD


def abstract_adapter(
    config: LoraConfig,
    base: Any,
    fn: Callable,
    *args: Any,
    allow_materialize: bool = False,
    names: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> dict[str, Entry]:
    """Plans the adapter that `init` makes: {path: entry} with ShapeDtypeStructs for arrays, except the scales.

    Nothing is computed.

    Args:
      config: which modules, ranks and alphas; `init_lora_weights` is not read.
      base, fn, args, kwargs: the adapter is for `fn(base, *args, **kwargs)`; arrays may be ShapeDtypeStructs.
      allow_materialize: also plan entries for weights that go through an operation without a low-rank rule. Without it
        a warning lists them.
      names: {path: PyTorch's name}, such as {"blocks/q/kernel": "model.layers.{}.q_proj.weight"}, if the configuration
        uses those names; None if it uses the paths', such as "blocks.q".

    Raises:
      TargetNotFoundError: an entry of `config` matches no module that could be adapted, or names a matrix that `fn`
        never uses.
      NoRuleError: an entry matches only modules that go through an operation without a low-rank rule.
      JloraError: an embedding is to be trained both by rows and otherwise; a head that is tied is to be adapted alone.
    """
    seen = trace_uses(fn, base, args, kwargs, names)
    config = _naming_embeddings(config, seen)
    _require_used(config, seen)
    shaping = _shaping_uses(config, seen)
    low_ranks = _low_ranks(config, seen, shaping)
    stopped = {} if allow_materialize else without_rule(seen, low_ranks)
    _check(config, seen, [path for path in shaping if path not in stopped], stopped)
    _warn_of_stopped(stopped)
    return _plan_entries(config, seen, {path: entry for path, entry in low_ranks.items() if path not in stopped})


def abstract_stored(
    where: str,
    config: LoraConfig,
    seen: BaseUses,
    *,
    adapted: Collection[str] = (),
    allow_materialize: bool = False,
) -> dict[str, Entry]:
    """Plans the adapter of a stored configuration: what `abstract_adapter` returns, but names may match nothing.

    PEFT ignores names of modules that the model does not have, and the tensors of the file show whether they matter. If
    no name matches, the result is {}.

    Args:
      where: the file that the configuration is from, for messages.
      seen: the base and the uses of its leaves, as `trace_uses` finds them.
      adapted: the modules for which there are tensors; none of them may be left out.

    Raises:
      NoRuleError: an operation has no low-rank rule for a weight of one of the modules in `adapted`.
      FileError: a regular expression takes more than 5 seconds on the model's names.
      JloraError: an embedding is to be trained both by rows and otherwise; a head that is tied is to be adapted alone.
    """
    require_quick_patterns(config, [name for modules in seen.modules.values() for name in modules], where)
    config = _naming_embeddings(config, seen)
    low_ranks = _low_ranks(config, seen, _shaping_uses(config, seen))
    stopped = {} if allow_materialize else without_rule(seen, low_ranks)
    _require_none_stopped(where, stopped, seen, adapted)
    _warn_of_stopped(stopped)
    return _plan_entries(config, seen, {path: entry for path, entry in low_ranks.items() if path not in stopped})


def _plan_entries(config: LoraConfig, seen: BaseUses, low_ranks: Mapping[str, LowRank]) -> dict[str, Entry]:
    """Returns {path: entry} of all leaves that the configuration trains, those of `low_ranks` included."""
    plan: dict[str, Entry] = dict(low_ranks)
    for path, layers in _layers_trained_whole(config, low_ranks, seen).items():
        leaf, is_whole = seen.leaves[path], len(layers) == len(seen.modules[path])
        value = _abstract(leaf.shape if is_whole else (len(layers), *leaf.shape[1:]), leaf.dtype)
        plan[path] = Full(value, None if is_whole else layers, torch_axes=seen.torch_axes[path])
    # The entry of a tied table is one for both of its uses, or for only the lookups.
    both = config.ensure_weight_tying
    changes: dict[str, Any] = {"tied": both, "only": None if both else "lookup"}
    for path in seen.tied.keys() & plan.keys():
        plan[path] = dataclasses.replace(plan[path], **changes)
    for path, rows in plan_token_rows(config, seen).items():
        if path in plan:
            raise JloraError(
                f"{path}: expected an embedding that is either trained by rows (trainable_token_indices) or adapted"
                " (target_modules, modules_to_save), found both"
            )
        plan[path] = rows
    return {path: plan[path] for path in seen.leaves if path in plan}


def _naming_embeddings(config: LoraConfig, seen: BaseUses) -> LoraConfig:
    """Replaces the name of a tied head in the configuration with that of its embedding, to adapt both as one.

    Raises:
      JloraError: the configuration asks for an adapter of only the head, but the head is tied.
    """
    has_head = any(name.rpartition(".")[2] == HEAD for names in seen.modules.values() for name in names)
    if seen.tied and not has_head and not config.ensure_weight_tying and means(config, HEAD):
        raise JloraError(
            f"LoraConfig: {HEAD}: expected a head with its own table, found one tied to {next(iter(seen.tied))}. Load"
            " the base with tie_word_embeddings=False, or set ensure_weight_tying=True to adapt both uses together"
        )
    for names in seen.tied.values():
        config = with_embedding_for_head(config, names[0])
    return config


def _require_used(config: LoraConfig, seen: BaseUses) -> None:
    """Refuses an unused matrix that target_modules names; warns if only its regular expression matches it."""
    unused = [
        path
        for path, leaf in seen.leaves.items()
        if not seen.uses[path] and np.ndim(leaf) > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    meant = [path for path in unused if any(is_target(config, name) for name in seen.modules[path])]
    if not meant or is_all_linear(config):
        return
    if not isinstance(config.target_modules, str):
        raise TargetNotFoundError(
            f"{meant[0]}: matches target_modules, but the function never uses it; exclude_modules leaves it out"
        )
    warnings.warn(f"not adapted, because the function never uses it: {', '.join(meant)}", stacklevel=4)


def _check(config: LoraConfig, seen: BaseUses, adaptable: list[str], stopped: Mapping[str, str]) -> None:
    """Raises TargetNotFoundError for an entry of the configuration that matches nothing, NoRuleError as `init` does."""
    heads = [HEAD] if seen.tied else []
    refused = {name: operation for path, operation in stopped.items() for name in seen.modules[path]}
    check_targets(config, [*(name for path in adaptable for name in seen.modules[path]), *heads], refused)
    check_other_modules(config, [*(name for names in seen.modules.values() for name in names), *heads])


def _warn_of_stopped(stopped: Mapping[str, str]) -> None:
    if stopped:
        listed = ", ".join(f"{path} ({operation})" for path, operation in stopped.items())
        warnings.warn(
            f"not adapted, because an operation has no low-rank rule: {listed}. init(..., allow_materialize=True)"
            " adapts them; exclude_modules leaves them out without this warning",
            stacklevel=4,
        )


def _require_none_stopped(where: str, stopped: Mapping[str, str], seen: BaseUses, adapted: Collection[str]) -> None:
    """Raises NoRuleError for the first of the `stopped` leaves, {path: operation}, that has a module in `adapted`."""
    for path, operation in stopped.items():
        if module := next((name for name in seen.modules[path] if name in adapted), None):
            raise NoRuleError(
                f"{where}: {module}: expected a weight that the function uses in operations with a low-rank rule, found"
                f" {path} in {operation}, which has none. load_adapter(..., allow_materialize=True) reads the adapter,"
                " and jlora.adapt(fn, allow_materialize=True) applies it"
            )


def _shaping_uses(config: LoraConfig, seen: BaseUses) -> dict[str, Use]:
    """Returns {path: the use that determines the shapes of A and B} of leaves that target_modules may match."""
    only_linear = is_all_linear(config)
    found = {path: shaping_use(path, x, seen.uses[path], only_linear=only_linear) for path, x in seen.leaves.items()}
    return {path: use for path, use in found.items() if use is not None}


def _low_ranks(config: LoraConfig, seen: BaseUses, shaping: Mapping[str, Use]) -> dict[str, LowRank]:
    found: dict[str, LowRank] = {}
    for path, use in shaping.items():
        names = seen.modules[path]
        is_whole = any(is_trained_whole(config, name) for name in names)
        if not is_whole and any(is_target(config, name) for name in names):
            found[path] = _low_rank(config, path, seen.leaves[path].shape, use, names)
    return found


def _low_rank(config: LoraConfig, path: str, shape: tuple[int, ...], use: Use, names: list[str]) -> LowRank:
    """Plans the entry of one leaf: shapes, scale (*stack, r), spec and ranks; r is the largest rank of the stack."""
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
        kind=cast(UseKind, use.kind),
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
    return str(Spec(stack, inputs, outputs, letters))


def _abstract(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns a ShapeDtypeStruct in place of an entry's array."""
    return cast(jax.Array, jax.ShapeDtypeStruct(shape, dtype))


def _warn_of_rank(path: str, rank: int, inputs: int, outputs: int) -> None:
    if rank > min(inputs, outputs):
        message = f"{path}: rank {rank} is above the smaller side of a {inputs} x {outputs} weight: more parameters"
        warnings.warn(f"{message}, but no larger updates than rank {min(inputs, outputs)}", stacklevel=6)


def _layers_trained_whole(
    config: LoraConfig, low_ranks: Mapping[str, LowRank], seen: BaseUses
) -> dict[str, tuple[int, ...]]:
    """Returns {path: layers} of the leaves of `modules_to_save` and of the trained biases."""
    adapted = {
        name
        for path, entry in low_ranks.items()
        for name, rank in zip(seen.modules[path], entry.ranks, strict=True)
        if rank
    }
    found: dict[str, tuple[int, ...]] = {}
    for path, names in seen.modules.items():
        layers = tuple(layer for layer, name in enumerate(names) if is_trained_whole(config, name))
        if config.bias != "none" and path in seen.biases:
            trained = set(names) if config.bias == "all" else adapted
            layers = tuple(layer for layer, name in enumerate(names) if layer in layers or name in trained)
        if layers:
            found[path] = layers
    return found
