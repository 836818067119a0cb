"""Decides which modules a LoraConfig adapts, by PEFT's matching rules on dotted module names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from jlora.errors import NoRuleError, TargetNotFoundError, nearest
from jlora.lora.config import LoraConfig
from jlora.lora.name_patterns import is_end, is_whole, layer_number, require_quick
from jlora.tree.output_heads import HEAD_NAMES, OUTPUT_EMBEDDINGS, TASK_HEADS

Value = TypeVar("Value")

_ALL_LINEAR = "all-linear"


def is_target(config: LoraConfig, name: str) -> bool:
    """Returns whether the configuration adapts the module `name`, such as "model.layers.0.self_attn.q_proj".

    `target_modules` must match the name, and no other field may leave it out: `exclude_modules`, `modules_to_save` and
    `layers_to_transform`, which does not apply to a whole name in a list, as in PEFT. "all-linear" matches every name
    except output heads (`lm_head`, `embed_out`). With `target_modules` None no module is adapted.
    """
    if config.exclude_modules and matches(config.exclude_modules, name):
        return False
    if is_all_linear(config) and name.rpartition(".")[2] in OUTPUT_EMBEDDINGS:
        return False
    if is_trained_whole(config, name) or config.target_modules is None:
        return False
    if is_all_linear(config) or (not isinstance(config.target_modules, str) and name in config.target_modules):
        return True  # an exact name ignores layers_to_transform, as in PEFT
    return matches(config.target_modules, name) and _in_layers(config, name)


def is_all_linear(config: LoraConfig) -> bool:
    """Returns whether `config.target_modules` is "all-linear", in upper or lower case."""
    return isinstance(config.target_modules, str) and config.target_modules.lower() == _ALL_LINEAR


def is_trained_whole(config: LoraConfig, name: str) -> bool:
    """Returns whether the module `name` is, or is inside, one of `config.trained_whole`.

    These are `modules_to_save`, or the heads of the task type if that is None. PEFT compares the end of a name, also
    within a component. So `classifier` also matches DistilBERT's `pre_classifier` and everything in RoBERTa's
    `classifier`.
    """
    return any(is_in_module(entry, name) for entry in config.trained_whole)


def is_in_module(end: str, name: str) -> bool:
    """Returns whether `name` is, or is inside, a module whose name ends with `end`.

    With the end "score" it is true for "score", "model.score", "model.score.out" and "underscore.out".
    """
    parts = name.split(".")
    return any(".".join(parts[:count]).endswith(end) for count in range(1, len(parts) + 1))


def matches(patterns: str | Sequence[str], name: str) -> bool:
    """Returns whether `name` matches a regular expression as a whole, or is or ends with a name in a list.

    A text is a regular expression. `["q", "a.b"]` matches the names "q", "x.q" and "x.a.b", but not "xq". An empty list
    matches nothing.
    """
    if isinstance(patterns, str):
        return is_whole(patterns, name)
    return any(name == entry or name.endswith(f".{entry}") for entry in patterns)


def pattern_value(patterns: Mapping[str, Value], name: str, default: Value) -> Value:
    """Returns the value of the first pattern that matches `name`, or its end after a dot, as for `rank_pattern`.

    `patterns` is {regular expression: value}, in the order in which they are tried; `default` is returned if none
    matches. `{"q": 4}` gives 4 for "q" and "layers.0.q", and the default for "xq" and "q.x".
    """
    for pattern, value in patterns.items():
        if is_end(pattern, name):
            return value
    return default


def _in_layers(config: LoraConfig, name: str) -> bool:
    layers = config.layers_to_transform
    if layers is None or (not isinstance(layers, int) and not layers):
        return True
    return layer_number(config.layer_lists, name) in ((layers,) if isinstance(layers, int) else tuple(layers))


def require_quick_patterns(config: LoraConfig, names: Sequence[str], where: str) -> None:
    """Raises FileError if the configuration's regular expressions take more than 5 CPU seconds on all `names`.

    `where` is the file that the configuration is from; the message begins with it.
    """
    whole = [entry for entry in (config.target_modules, config.exclude_modules) if isinstance(entry, str)]
    if is_all_linear(config):
        whole.remove(str(config.target_modules))
    require_quick(whole, [*config.rank_pattern, *config.alpha_pattern], config.layer_lists, names, where)


def check_targets(config: LoraConfig, names: Sequence[str], stopped: Mapping[str, str] = MappingProxyType({})) -> None:
    """Requires each entry of `target_modules` to match one of `names`, and at least one of these to be adapted.

    Each pattern of `rank_pattern` and `alpha_pattern` must match an adapted module.

    Args:
      names: the modules that could be adapted.
      stopped: {module: the operation without a low-rank rule that prevents its adaptation}.

    Raises:
      NoRuleError: an entry of `target_modules` matches none of `names`, but a module in `stopped`.
      TargetNotFoundError: target_modules is not given, or an entry matches nothing; the message lists the nearest names
        and all available ones, without what precedes the number of a layer.
    """
    found = config.target_modules
    if found is None:
        expected = (
            'names of modules, a regular expression or "all-linear" (jlora.default_targets(model_type) are PEFT\'s)'
        )
        raise _no_match("target_modules", expected, "", names)
    for entry in [found] if isinstance(found, str) else found:
        pattern = entry if isinstance(found, str) else [entry]
        if not is_all_linear(config) and not any(matches(pattern, name) for name in names):
            _refuse_stopped(entry, {name: stopped[name] for name in stopped if matches(pattern, name)})
            raise _no_match("target_modules", "an entry that matches a module", entry, names, isinstance(found, str))
    targets = [name for name in names if is_target(config, name)]
    if not targets:
        _refuse_stopped(str(found), stopped)
        if is_all_linear(config) and not names:
            raise TargetNotFoundError(
                "LoraConfig.target_modules: 'all-linear': expected a function that multiplies by a matrix of the base,"
                " found none; target_modules can name convolutions and tables of embeddings"
            )
        _refuse_left_out(config, names)
        raise _no_match("target_modules", "a module that is not left out by another field", str(found), names)
    _require_layers(config, names)
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field):
            if not any(pattern_value({pattern: True}, name, False) for name in targets):
                raise _no_match(field, "a pattern that matches an adapted module", pattern, targets)


def _refuse_left_out(config: LoraConfig, names: Sequence[str]) -> None:
    """Raises TargetNotFoundError that names the field which alone leaves all targets out."""
    _require_layers(config, names)
    alone = {
        "exclude_modules": dataclasses.replace(config, exclude_modules=None),
        "modules_to_save": dataclasses.replace(config, modules_to_save=[]),
    }
    for field, without in alone.items():
        if left_out := [name for name in names if is_target(without, name)]:
            raise TargetNotFoundError(
                f"LoraConfig.{field}: expected it to leave a target of target_modules, found"
                f" {getattr(config, field)!r}, which leaves out all ({left_out[0]}, ...). Take the name out of one of"
                " the two"
            )


def _require_layers(config: LoraConfig, names: Sequence[str]) -> None:
    """Requires a target in each layer of `layers_to_transform`."""
    if config.layers_to_transform is None:
        return
    found = config.layers_to_transform
    anywhere = dataclasses.replace(config, layers_to_transform=None, layers_pattern=None)
    targets = [name for name in names if is_target(anywhere, name)]
    numbers = {number for name in targets if (number := layer_number(config.layer_lists, name)) is not None}
    if targets and not numbers:
        raise TargetNotFoundError(
            f"LoraConfig.layers_pattern: expected the name of the list of layers in {targets[0]}, found"
            f" {config.layers_pattern!r}, with which it has no number. Correct it, or leave out layers_to_transform"
        )
    asked = [found] if isinstance(found, int) else list(found)
    if targets and (wrong := [layer for layer in asked if layer not in numbers]):
        raise TargetNotFoundError(
            f"LoraConfig.layers_to_transform: expected layers that have a module of target_modules, {min(numbers)} to"
            f" {max(numbers)}, found {wrong[0]}"
        )


def _refuse_stopped(entry: str, stopped: Mapping[str, str]) -> None:
    if stopped:
        found = ", ".join(f"{name} in {operation!r}" for name, operation in stopped.items())
        raise NoRuleError(
            f"LoraConfig.target_modules: {entry!r}: expected a weight that is used in matrix products, convolutions or"
            f" table lookups alone, found {found}, for which there is no low-rank rule. Train it whole with"
            " modules_to_save, or allow W + BA to be computed there: init(..., allow_materialize=True) and"
            " adapt(fn, allow_materialize=True)."
        )


def check_other_modules(config: LoraConfig, names: Sequence[str]) -> None:
    """Requires each entry of exclude_modules and modules_to_save to match one of the modules `names`.

    The heads `classifier` and `score`, which PEFT lists for every classifier, need not match, unless they are all that
    `modules_to_save` names and the task is none.

    Raises:
      TargetNotFoundError: an entry matches nothing; the message lists the nearest names and all available ones.
    """
    excluded = config.exclude_modules or ()
    for entry in [excluded] if isinstance(excluded, str) else excluded:
        pattern = entry if isinstance(excluded, str) else [entry]
        if not any(matches(pattern, name) for name in names):
            expected = "an entry that matches a module"
            raise _no_match("exclude_modules", expected, entry, names, isinstance(excluded, str))
    there = [entry for entry in config.trained_whole if any(is_in_module(entry, name) for name in names)]
    may_lack_heads = there or TASK_HEADS.get(config.task_type or "")
    for entry in config.trained_whole:
        if entry not in there and not (may_lack_heads and entry in HEAD_NAMES):
            raise _no_match("modules_to_save", "an entry that ends a module's name", entry, names)


def _no_match(
    field: str, expected: str, found: str, names: Sequence[str], is_regex: bool = False
) -> TargetNotFoundError:
    # `encoder.layer.3.attention.self.query` -> `attention.self.query`
    ends = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in names})
    hint = nearest(found, [*ends, *(end.split(".")[-1] for end in ends)])
    if is_regex and any(re.search(found, name) for name in names):
        hint = f'; a string must match the whole name: ".*({found}).*" matches any part of it, [{found}] the end'
    return TargetNotFoundError(
        f"LoraConfig.{field}: expected {expected}, found {found!r}{hint}\nThere are: {', '.join(ends)}"
    )
