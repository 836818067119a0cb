"""`adapter_config.json`: PEFT's configuration of an adapter, in and out."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jlora.config import TASK_HEADS, LoraConfig
from jlora.errors import JloraError
from jlora.json_file import read_json

# Fields of PEFT's that say nothing about the function the adapter computes.
_NEUTRAL = {
    "peft_type", "base_model_name_or_path", "peft_version", "auto_mapping", "revision", "inference_mode",
    "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "runtime_config",
}  # fmt: skip
_OFF: tuple[Any, ...] = (None, False, "none", [], {})

# Initializations that leave the base's weights as they are: of a trained adapter they say no more.
_HARMLESS = ("gaussian", "orthogonal", "eva", "mica")

_LARGEST = 2**20
"""Bytes of an adapter_config.json; each of its patterns is tried on the name of each module."""

_MOST_RANK = 2**16
"""An adapter's scales are made before its tensors are looked at: one for each rank that the file claims."""


def _is_rank(found: Any) -> bool:
    return type(found) is int and found <= _MOST_RANK


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and abs(found) < 1e30


def _is_object(found: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(found, dict) and all(map(of, found.values()))


def _is_list(found: Any, kind: type) -> bool:
    return isinstance(found, list) and all(isinstance(entry, kind) for entry in found)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": (f"an integer of at most {_MOST_RANK}", _is_rank),
    "rank_pattern": ("an object of such integers", lambda found: _is_object(found, _is_rank)),
    "lora_alpha": ("a number", _is_number),
    "alpha_pattern": ("an object of numbers", lambda found: _is_object(found, _is_number)),
    "task_type": ("a text", lambda found: isinstance(found, str)),
    "target_modules": ("a text or a list of texts", lambda found: isinstance(found, str) or _is_list(found, str)),
    "exclude_modules": ("a text or a list of texts", lambda found: isinstance(found, str) or _is_list(found, str)),
    "modules_to_save": ("a list of texts", lambda found: _is_list(found, str)),
    "layers_to_transform": ("a number or a list of them", lambda found: isinstance(found, int) or _is_list(found, int)),
    "trainable_token_indices": (
        "a list of numbers, or an object of such lists",
        lambda found: all(_is_list(ids, int) for ids in (found.values() if isinstance(found, dict) else [found])),
    ),
    "use_rslora": ("true or false", lambda found: isinstance(found, bool)),
    "use_dora": ("true or false", lambda found: isinstance(found, bool)),
    "ensure_weight_tying": ("true or false", lambda found: isinstance(found, bool)),
}
"""{field: (what it is where it is not null, whether a value is that)}; `LoraConfig` looks at the others."""


def write_config(
    folder: Path, config: LoraConfig, base_model: str | None, targets: Sequence[str], *, fan_in_fan_out: bool = False
) -> None:
    """Writes PEFT's `adapter_config.json` (sorted keys) into an existing folder.

    An initialization that PEFT would run again on opening the file, over the base's weights, is written as true.

    Args:
      base_model: name or folder of the base, PEFT's `base_model_name_or_path`.
      targets: names of the adapted modules, written where `target_modules` does not list names itself.
      fan_in_fan_out: whether the adapted modules are GPT-2's Conv1D, their weights (in, out) in a checkpoint.
    """
    fields: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if config.target_modules is None or config.target_modules == "all-linear":
        fields["target_modules"] = list(targets)
    heads = TASK_HEADS.get(config.task_type or "", ())
    if heads and config.modules_to_save is None:
        fields["modules_to_save"] = list(heads)
    if heads and not set(heads) & set(config.trained_whole):
        fields["task_type"] = None  # told of a classifier, PEFT would look for its weights in the adapter's file
    if not isinstance(config.init_lora_weights, bool) and config.init_lora_weights != "gaussian":
        fields["init_lora_weights"] = True
    fields |= {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
    }
    in_order = dict(sorted(fields.items()))  # but patterns as given: the first that matches a name counts
    (folder / "adapter_config.json").write_text(json.dumps(in_order, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """What JSON does not know: numbers of numpy, mappings and sets."""
    if hasattr(value, "item"):
        return value.item()
    return dict(value) if isinstance(value, Mapping) else sorted(value)


def read_config(folder: Path) -> LoraConfig:
    """Reads PEFT's `adapter_config.json`.

    Raises:
      JloraError: no such file, not JSON, not LoRA, or a feature that is not supported here, each named.
    """
    raw, path = _read(folder), folder / "adapter_config.json"
    if raw.get("peft_type") != "LORA":
        raise JloraError(f"{path}: peft_type: expected LORA, found {raw.get('peft_type')!r}")
    names = {field.name for field in dataclasses.fields(LoraConfig)}
    for key in sorted(set(raw) - names - _NEUTRAL):
        if raw[key] not in _OFF:
            raise JloraError(f"{path}: {key}: expected it off or absent (not supported), found {raw[key]!r}")
    for key, (expected, is_so) in _KINDS.items():
        if raw.get(key) is not None and not is_so(raw[key]):
            raise JloraError(f"{path}: {key}: expected {expected}, found {reprlib.repr(raw[key])}")
    fields = {key: value for key, value in raw.items() if key in names}
    fields |= {key: {} for key in ("rank_pattern", "alpha_pattern") if fields.get(key) is None}
    fields["init_lora_weights"] = _initialization(path, raw.get("init_lora_weights", True))
    try:
        return LoraConfig(**fields)
    except (JloraError, RecursionError, OverflowError) as error:  # the last two of regular expressions
        raise JloraError(f"{path}: {error}") from None


def read_base_name(folder: Path) -> str | None:
    """The base that `adapter_config.json` names, None where it names none."""
    found = _read(folder).get("base_model_name_or_path") or None
    if found is not None and not isinstance(found, str):
        path = folder / "adapter_config.json"
        raise JloraError(f"{path}: base_model_name_or_path: expected a name, found {reprlib.repr(found)}")
    return found


def _initialization(path: Path, found: Any) -> bool | str:
    if isinstance(found, bool):
        return found
    if not isinstance(found, str) or found.lower() not in _HARMLESS:
        raise JloraError(
            f"{path}: init_lora_weights: expected true, false or one of {', '.join(_HARMLESS)}, found {found!r}, which"
            " changes the base's weights: the adapter is for that other base. PEFT's save_pretrained writes it for"
            " the plain one when it is given path_initial_model_for_weight_conversion"
        )
    return True if found.lower() == "mica" else found.lower()


def _read(folder: Path) -> dict[str, Any]:
    return read_json(folder / "adapter_config.json", _LARGEST)
