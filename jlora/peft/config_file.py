"""Reads and writes `adapter_config.json`, PEFT's configuration of an adapter."""

from __future__ import annotations

import dataclasses
import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jlora.errors import FileError, JloraError
from jlora.files.bounded_json import read_json
from jlora.files.limits import LARGEST_ADAPTER_CONFIG, MOST_RANK
from jlora.files.nearest_file import nearest_file
from jlora.files.run_folder import say_what_is_inside
from jlora.files.safetensors_reader import open_safetensors
from jlora.lora.config import LoraConfig
from jlora.lora.named_initializations import INITIALIZATIONS, find_initialization
from jlora.peft import mlx
from jlora.peft.stored_tensors import weights_file
from jlora.tree.output_heads import TASK_HEADS

CONFIG = "adapter_config.json"

# PEFT's fields that do not change the function that the adapter computes.
_NEUTRAL = {
    "peft_type", "base_model_name_or_path", "peft_version", "auto_mapping", "revision", "inference_mode",
    "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "runtime_config",
}  # fmt: skip
_TRANSLATED = {"lora_bias", "target_parameters"}
"""Fields that are translated to other fields with the same effect."""
_OTHER_FUNCTIONS = {
    "layer_replication", "use_qalora", "alora_invocation_tokens", "kasa_config", "velora_config", "arrow_config",
    "use_bdlora", "monteclora_config", "megatron_config",
}  # fmt: skip
"""Fields that change the function or the tensors of PEFT's adapter."""
_NAMES = frozenset(field.name for field in dataclasses.fields(LoraConfig))
_OFF: tuple[Any, ...] = (None, False, "none", [], {})

# Initializations that leave the base's weights as they are: of a trained adapter they say no more.
_HARMLESS = (*(one.name for one in INITIALIZATIONS if one.in_files == "unchanged"), "mica")
RECOMPUTED = tuple(one.name for one in INITIALIZATIONS if one.in_files == "recomputed")
"""Initializations that changed the base's weights by an amount that can be computed from them again."""

_MERGE = "merge the adapter into its base with PEFT (merge_and_unload), save the model, and use that"
_ONLY_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")


def _is_rank(found: Any) -> bool:
    return type(found) is int and found <= MOST_RANK


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and abs(found) < 1e30


def _is_object(found: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(found, dict) and all(map(of, found.values()))


def _is_list(found: Any, kind: type) -> bool:
    return isinstance(found, list) and all(isinstance(entry, kind) for entry in found)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": (f"an integer of at most {MOST_RANK}", _is_rank),
    "rank_pattern": (
        f"an object {{module: integer of at most {MOST_RANK}}}",
        lambda found: _is_object(found, _is_rank),
    ),
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
    "layers_pattern": ("a text or a list of texts", lambda found: isinstance(found, str) or _is_list(found, str)),
    "target_parameters": ("a list of texts", lambda found: _is_list(found, str)),
    "lora_bias": ("true or false", lambda found: isinstance(found, bool)),
    "use_rslora": ("true or false", lambda found: isinstance(found, bool)),
    "use_dora": ("true or false", lambda found: isinstance(found, bool)),
    "ensure_weight_tying": ("true or false", lambda found: isinstance(found, bool)),
}
"""{field: (what is expected unless it is null, the check of a value)}; `LoraConfig` checks the other fields."""


def write_config(
    folder: Path, config: LoraConfig, base_model: str | None, targets: Sequence[str], *, fan_in_fan_out: bool = False
) -> None:
    """Writes PEFT's `adapter_config.json` (sorted keys) into an existing folder.

    `init_lora_weights` is written as true if PEFT would otherwise initialize from the base's weights again when it
    opens the file. If `modules_to_save` is None, the heads of the task type are written in its place; if it names none
    of these heads, `task_type` is written as null.

    Args:
      base_model: name or folder of the base, PEFT's `base_model_name_or_path`; None is written as null.
      targets: names of the adapted modules, written as `target_modules` if it is None or "all-linear".
      fan_in_fan_out: whether the adapted modules are GPT-2's Conv1D, whose weights are (in, out) in a checkpoint.
    """
    fields: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if config.target_modules is None or config.target_modules == "all-linear":
        fields["target_modules"] = list(targets)
    heads = TASK_HEADS.get(config.task_type or "", ())
    if heads and config.modules_to_save is None:
        fields["modules_to_save"] = list(heads)
    if heads and not set(heads) & set(config.trained_whole):
        fields["task_type"] = None  # told of a classifier, PEFT would look for its weights in the adapter's file
    start = find_initialization(config.init_lora_weights)
    if not isinstance(config.init_lora_weights, bool) and not (start and start.written):
        fields["init_lora_weights"] = True
    fields |= {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
    }
    in_order = dict(sorted(fields.items()))  # but not the patterns: the first that matches a name counts
    (folder / CONFIG).write_text(json.dumps(in_order, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """Converts what JSON cannot encode: numpy's numbers, mappings and sets."""
    if hasattr(value, "item"):
        return value.item()
    return dict(value) if isinstance(value, Mapping) else sorted(value)


def read_config(folder: Path) -> LoraConfig:
    """Reads the LoraConfig in a folder's `adapter_config.json`, PEFT's or mlx-lm's.

    Raises:
      FileError: the file is missing, is not JSON, is not LoRA, or has an unsupported feature, which is named.
    """
    return to_config(read_fields(folder), folder / CONFIG)


def read_fields(folder: Path) -> dict[str, Any]:
    """Reads the fields of a folder's `adapter_config.json`: PEFT's unchanged, mlx-lm's translated to PEFT's.

    Raises:
      FileError: the file is missing, is not JSON or larger than 1 MiB, or its `peft_type` is not "LORA"; with mlx-lm's
        also if the file of the tensors is missing or damaged.
    """
    _require_adapter_folder(folder)
    fields, path = read_json(folder / CONFIG, LARGEST_ADAPTER_CONFIG), folder / CONFIG
    if mlx.is_mlx(fields):
        return mlx.peft_fields(fields, open_safetensors(weights_file(folder)), path)
    if fields.get("peft_type") == "LORA":
        return fields
    if "model_type" in fields or "architectures" in fields:
        raise FileError(
            f"{path}: expected PEFT's adapter configuration, found a model's config.json (model_type"
            f" {fields.get('model_type')!r}), which has replaced it. Copy the file again from where the adapter comes"
            ' from, or write {"peft_type": "LORA", "r": ..., "lora_alpha": ..., "target_modules": [...]} with the'
            " values that it was trained with"
        )
    if "peft_type" not in fields:
        raise FileError(
            f'{path}: expected "peft_type": "LORA", found {", ".join([*fields][:5]) or "no key"}. If PEFT wrote the'
            " file and the adapter is LoRA, add it; else take the configuration that PEFT saved with these weights"
        )
    raise FileError(f"{path}: peft_type: expected LORA, {_say_other_method(fields['peft_type'])}")


def _say_other_method(found: Any) -> str:
    if found in _ONLY_PROMPTS:
        return f"found {found!r}, which trains no weights, so nothing can be merged. Use it with PEFT, or train LoRA"
    return f"found {found!r}, which is not read. If its method can be merged: {_MERGE}"


def _require_adapter_folder(folder: Path) -> None:
    """Raises FileError, which says what to give instead, for a file and for a folder without adapter_config.json."""
    expected = f"{folder}: expected the folder of an adapter ({CONFIG} and its weights)"
    if folder.is_file() and folder.suffix == ".gguf":
        raise FileError(f"{expected}, found a GGUF file. Give the adapter in PEFT's format, from which it was made")
    if folder.is_file():
        raise FileError(f"{expected}, found a file. Give the folder that it is in: {folder.parent}")
    if not folder.is_dir():
        raise FileError(f"{expected}, found no such folder{nearest_file(folder)}")
    if not (folder / CONFIG).is_file():
        raise FileError(f"{expected}, found no {CONFIG}{say_what_is_inside(folder, name='adapter', file=CONFIG)}")


def unknown_fields(stored: Mapping[str, Any]) -> list[str]:
    """Returns the fields that neither PEFT nor jlora has, unless they are off (null, false, "none", [] or {})."""
    on = {key for key, value in stored.items() if value not in _OFF}
    return sorted(on - _NAMES - _NEUTRAL - _TRANSLATED - _OTHER_FUNCTIONS)


def to_config(stored: Mapping[str, Any], path: Path) -> LoraConfig:
    """Makes the configuration from PEFT's fields `stored`, which were read from the file `path`.

    Fields that are missing have LoraConfig's defaults. As in PEFT, unknown fields are ignored (`unknown_fields`).
    `lora_bias` sets `bias` to "lora_only", and `target_parameters` (["q_proj.weight"]) are added to `target_modules`.

    Raises:
      FileError: begins with `path` and the field: a value of the wrong type, a feature that is not supported and is not
        off (such as `layer_replication`), or an `init_lora_weights` that changed the base in an unknown way ("loftq",
        "lora_ga", "pissa_niter_4").
    """
    on = {key for key, value in stored.items() if value not in _OFF}
    for key in sorted(on & _OTHER_FUNCTIONS):
        raise FileError(
            f"{path}: {key}: expected it off or absent (not supported), found {reprlib.repr(stored[key])}. If PEFT can"
            f" merge it: {_MERGE}. Do not delete the key: the adapter would compute something else"
        )
    for key, (expected, is_so) in _KINDS.items():
        if stored.get(key) is not None and not is_so(stored[key]):
            raise FileError(f"{path}: {key}: expected {expected}, found {_say_value(stored[key])}")
    fields = {key: value for key, value in stored.items() if key in _NAMES}
    fields |= {key: {} for key in ("rank_pattern", "alpha_pattern") if fields.get(key) is None}
    fields["init_lora_weights"] = _initialization(path, stored.get("init_lora_weights", True))
    if stored.get("lora_bias") and fields.get("bias") in (None, "none"):
        fields["bias"] = "lora_only"  # `fold_lora_bias` adds it there
    if stored.get("target_parameters"):
        fields["target_modules"] = _with_parameters(path, stored)
    try:
        return LoraConfig(**fields)
    except (JloraError, RecursionError, OverflowError) as error:  # regular expressions raise the last two
        raise FileError(f"{path}: {error}") from None


def _say_value(found: Any) -> str:
    is_quoted = isinstance(found, str) and found.strip().lstrip("-").replace(".", "", 1).isdigit()
    return f"the text {found!r}; write it without quotes" if is_quoted else reprlib.repr(found)


def read_base_name(folder: Path) -> str | None:
    """Returns the base that a folder's `adapter_config.json` names; None if it names none.

    Raises:
      FileError: the file is missing, is not JSON or not LoRA, or the name is not text.
    """
    return base_name_in(read_fields(folder), folder / CONFIG)


def base_name_in(fields: Mapping[str, Any], path: Path) -> str | None:
    """Returns the base that PEFT's fields, read from the file `path`, name; None if they name none.

    It is the field `base_model_name_or_path`. An empty name is none; a value that is not text raises FileError.
    """
    found = fields.get("base_model_name_or_path") or None
    if found is not None and not isinstance(found, str):
        raise FileError(f"{path}: base_model_name_or_path: expected a name, found {reprlib.repr(found)}")
    return found


def _with_parameters(path: Path, stored: Mapping[str, Any]) -> Any:
    """Adds the modules whose weights `target_parameters` names to `target_modules`: both have the update B A."""
    modules, names = stored.get("target_modules"), stored["target_parameters"]
    if others := [name for name in names if not name.endswith(".weight")]:
        raise FileError(
            f"{path}: target_parameters: expected weights of linear layers, such as q_proj.weight (those of stacked"
            f" experts are not supported), found {reprlib.repr(others)}. {_MERGE[0].upper()}{_MERGE[1:]}"
        )
    if stored.get("layers_to_transform") is not None:
        raise FileError(
            f"{path}: layers_to_transform: expected null together with target_parameters, to which PEFT does not apply"
            " it. Write one regular expression for all adapted modules as target_modules, and delete the other two"
        )
    for field in ("rank_pattern", "alpha_pattern"):
        if stored.get(field):
            raise FileError(
                f"{path}: {field}: expected none together with target_parameters, where PEFT matches it against names"
                f" that end in .weight, found {reprlib.repr(stored[field])}. Name the modules in target_modules"
                f" instead of target_parameters, and in {field} those whose value differs"
            )
    ends = [name.removesuffix(".weight") for name in names]
    if isinstance(modules, str):
        return rf"(?:{modules})|(?:.*\.)?(?:{'|'.join(map(re.escape, ends))})"
    return [*(modules or ()), *ends]


def _initialization(path: Path, found: Any) -> bool | str:
    if isinstance(found, bool):
        return found
    name = found.lower() if isinstance(found, str) else None
    if name in RECOMPUTED or name in _HARMLESS:
        return True if name == "mica" else str(name)
    raise FileError(
        f"{path}: init_lora_weights: expected true, false or one of {', '.join((*_HARMLESS, *RECOMPUTED))}, found"
        f" {found!r}. That initialization changed the base's weights in a way that the file does not record, so the"
        " adapter fits the changed base alone. Load the changed base and write true here; or let PEFT convert the"
        " adapter for the original base: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
    )
