"""Checks a stored config before transformers builds a config class from it: possible sizes, and no code.

Some of these classes make a list entry for each layer and label that the config claims.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jlora.errors import FileError, UnsupportedModelError
from jlora.files.limits import LARGEST_NUMBER, LARGEST_SIZE, MOST_LABELS, MOST_LAYERS

_MOST = {"num_hidden_layers": MOST_LAYERS, "num_labels": MOST_LABELS} | dict.fromkeys(
    ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
     "max_position_embeddings"),
    LARGEST_SIZE,
)  # fmt: skip
"""{key: the largest value}. Values are integers from 1 on; null means the class's default."""
_ABOVE_ZERO = (
    "rope_theta", "rope_local_base_freq", "factor", "attention_factor", "low_freq_factor", "high_freq_factor",
    "short_factor", "long_factor", "beta_fast", "beta_slow", "original_max_position_embeddings",
)  # fmt: skip
"""Keys with numbers, or lists of numbers, that positions are divided by."""


def require_plain(file: Any, stored: Mapping[str, Any], config_class: Any) -> None:
    """Checks that the keys of config.json have values that a model of transformers' `config_class` can have.

    Args:
      file: config.json, for messages, which begin with "{file}: {key}: ".
      stored: {key: value} of the file.
      config_class: for example transformers' LlamaConfig.

    Raises:
      FileError: a size (`vocab_size`, `hidden_size`, `num_hidden_layers`, ...) that is no integer from 1 to its limit,
        a number that is not finite, a dropout outside [0, 1), a number that positions are divided by and that is not
        above 0, or a key that is a method of the class.
      UnsupportedModelError: a class from the repository's code (`auto_map`), or weights that another library quantized
        (`quantization_config`).
    """
    for key, most in _MOST.items():
        for name in {key, config_class.attribute_map.get(key, key)}:
            found = stored.get(name)
            if found is not None and not (type(found) is int and 1 <= found <= most):
                raise FileError(f"{file}: {name}: expected an integer from 1 to {most}; found {found!r}")
    for key in ("id2label", "label2id"):
        if not isinstance(stored.get(key), dict | None):
            raise FileError(f"{file}: {key}: expected an object; found {reprlib.repr(stored[key])}")
    for key, value in stored.items():
        if key.startswith("__") or callable(getattr(config_class, key, None)):
            raise FileError(
                f"{file}: {key}: expected a setting of a model; found a method of its config. Delete the key"
            )
        if not all(math.isfinite(number) for number in _floats(value)):
            raise FileError(f"{file}: {key}: expected finite numbers; found NaN or infinity")
        if key.endswith(("dropout", "dropout_prob", "_pdrop")) and not _is_number(value, lambda x: 0 <= x < 1):
            raise FileError(f"{file}: {key}: expected a number from 0 to below 1; found {reprlib.repr(value)}")
        if key in _ABOVE_ZERO:
            _require_above_zero(file, key, value)
        if key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            _require_rotary(file, key, value)
        if key.endswith("_token_id"):
            require_token_ids(file, key, value)
    _require_unquantized(file, stored)
    _require_few_layers(file, stored.get("attention_types"))
    _require_no_code(file, stored.get("auto_map"), config_class)


def require_token_ids(file: Any, key: str, found: Any) -> None:
    """Raises FileError unless the value of a `*_token_id` is an id, a list of ids or null; -1 means no token."""
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int and -1 <= token <= LARGEST_SIZE for token in ids):
        raise FileError(f"{file}: {key}: expected a token's id, a list of ids or null; found {reprlib.repr(found)}")


def _require_rotary(file: Any, name: str, parameters: Mapping[str, Any]) -> None:
    """Checks the numbers of RoPE scaling, also if there is one scaling for each type of layer."""
    for key, value in parameters.items():
        where = f"{name}.{key}"
        if isinstance(value, dict):
            _require_rotary(file, where, value)
        elif key in _ABOVE_ZERO:
            _require_above_zero(file, where, value)
    low, high = parameters.get("low_freq_factor"), parameters.get("high_freq_factor")
    if low is not None and high is not None and high <= low:
        raise FileError(f"{file}: {name}.high_freq_factor: expected more than low_freq_factor, {low}; found {high}")


def _require_above_zero(file: Any, key: str, found: Any) -> None:
    for number in found if isinstance(found, list) else [found]:
        if not _is_number(number, lambda x: 0 < x <= LARGEST_NUMBER):
            raise FileError(f"{file}: {key}: expected a number above 0; found {reprlib.repr(found)}")


def _is_number(value: Any, fits: Callable[[float], bool]) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and fits(value))


def _floats(value: Any) -> Iterator[float]:
    """Yields all floats in nested dicts and lists of any depth."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, float):
            yield value
        elif isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)


def _require_unquantized(file: Any, stored: Mapping[str, Any]) -> None:
    for key in ("quantization_config", "quantization", "compression_config"):  # transformers', mlx-lm's, an old one
        if (found := stored.get(key)) is not None:
            method = found.get("quant_method", "another library") if isinstance(found, dict) else found
            raise UnsupportedModelError(
                f"{file}: {key}: expected none; found weights quantized by {reprlib.repr(method)}, which are not read"
                " here. Give the 16-bit model that they were made from (for an adapter, with --base). Its name is often"
                " this one without -bnb-4bit, -4bit, -GPTQ or -AWQ. jlora can quantize it itself (docs/quantize.md)"
            )


def _require_few_layers(file: Any, found: Any) -> None:
    """Limits the number of layers that GPT-Neo's `attention_types`, [[kinds, how often], ...], expands to."""
    try:
        layers = sum(len(kinds) * abs(count) for kinds, count in found or ())
    except (TypeError, ValueError):
        layers = -1
    if not 0 <= layers <= MOST_LAYERS:
        raise FileError(
            f"{file}: attention_types: expected pairs of layer types and a repeat count, for at most {MOST_LAYERS}"
            f" layers; found {reprlib.repr(found)}"
        )


def _require_no_code(file: Any, auto_map: Any, config_class: Any) -> None:
    """Refuses classes from the repository's Python files (`auto_map`), unless transformers has the same class.

    With a known model_type the code may still be another model's, such as JinaBERT's with "bert".
    """
    stem = config_class.__name__.removesuffix("Config")
    known = re.compile(rf"([\w./-]+[.])?{stem}(Config|Model|LMHeadModel|For\w+)")
    named = auto_map if isinstance(auto_map, dict) else {"": auto_map} if auto_map is not None else {}
    for name, found in named.items():
        # AutoTokenizer is checked when the tokenizer is loaded.
        if name != "AutoTokenizer" and not (isinstance(found, str) and known.fullmatch(found)):
            raise UnsupportedModelError(
                f"{file}: auto_map: {name}: expected a class of transformers' {stem}, because a repository's own code"
                f" is never run here; found {found!r}. If that code is {stem}'s own, delete auto_map; else take another"
                " model"
            )
