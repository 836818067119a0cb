"""Says which field of `adapter_config.json`, or which other base, makes the keys of an adapter's file wrong."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jlora.errors import AdapterMismatchError
from jlora.lora.config import LoraConfig
from jlora.lora.entries import Adapter, Full, LowRank, Rows
from jlora.lora.name_patterns import layer_number
from jlora.lora.targets import is_all_linear, is_in_module, is_trained_whole, matches
from jlora.peft.config_file import CONFIG
from jlora.peft.tensor_keys import PREFIX, Slot, slots
from jlora.tree.output_heads import HEAD

_PART = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_embedding_[AB]|lora_magnitude_vector|lora_B\.bias)")
_LAYER = re.compile(r"\.(\d+)\.")
_OTHER_HALF = {"a": ("A", "B"), "b": ("B", "A")}


def require_keys(
    tensors: Mapping[str, np.ndarray], template: Adapter, config: LoraConfig, modules: Collection[str], where: str
) -> None:
    """Raises AdapterMismatchError for the first wrong key whose reason is known; `from_peft` refuses the others.

    Args:
      tensors: {PEFT's key: tensor}.
      template: the adapter that the configuration describes.
      config: the stored configuration.
      modules: the dotted names of all modules of the base.
      where: the file with the tensors.
    """
    expected = {slot.key: slot for slot in slots(template)}
    for key, slot in expected.items():
        if key not in tensors:
            raise AdapterMismatchError(f"{where}: {key}: {_say_why_expected(slot, template, tensors, config)}")
        if (rank := _other_rank(slot, template, tensors[key].shape)) is not None:
            raise AdapterMismatchError(
                f"{where}: {key}: expected the rank {rank[1]}, which {CONFIG} gives it (r = {config.r}), found"
                f" {rank[0]}. Correct r or rank_pattern, or take the configuration that belongs to these weights"
            )
        if tensors[key].shape != slot.shape:
            return
    names = {f"{PREFIX}{module}" for module in modules}
    for key in tensors:
        if key not in expected:
            _refuse_unexpected(key, tensors, expected, config, names, where)
            return


def _say_why_expected(slot: Slot, template: Adapter, tensors: Mapping[str, np.ndarray], config: LoraConfig) -> str:
    """Returns why the key of a tensor that is missing is expected, and what to do."""
    entry, (module, _, _) = template[slot.path], slot.key.removeprefix(PREFIX).rpartition(".")
    missing = f"expected a tensor of shape {slot.shape}, found no such key"
    if isinstance(entry, Rows):
        return (
            f"{missing}. trainable_token_indices in {CONFIG} asks for it. Save the adapter again, or delete the field"
        )
    if isinstance(entry, Full):
        return f"{missing}. {_say_why_whole(module.removesuffix('.base_layer'), tensors, config)}"
    if slot.field == "magnitude":
        return (
            f"{missing}, although use_dora is true in {CONFIG}. If the adapter is plain LoRA, write false; else save it"
            " again"
        )
    own, other = _OTHER_HALF[slot.field]
    if (half := slot.key.replace(f"lora_{own}", f"lora_{other}").replace(f"ding_{own}", f"ding_{other}")) in tensors:
        return f"{missing}, although {half} is there: the file is not whole. Copy or save it again"
    if theirs := next((key for key in tensors if re.search(r"lora_(up|down)\.|lora_(unet|te\d?)_", key)), None):
        theirs = theirs.removeprefix(PREFIX)
        return f"{missing}, but those of kohya's scripts ({theirs}). Convert the adapter to PEFT's format first"
    if (last := _last_layer_before(slot.key, tensors)) is not None:
        return (
            f"{missing}. target_modules in {CONFIG} names its module, and the base has more layers than the adapter,"
            f" which ends at layer {last}. Load the base that the adapter was made for (--base); or if it is this"
            " one, the file is not whole: save the adapter again"
        )
    return (
        f"{missing}. target_modules in {CONFIG} names its module. Take the configuration that was saved with these"
        " weights, or save the adapter again"
    )


def _last_layer_before(missing: str, tensors: Iterable[str]) -> int | None:
    """Returns the last layer in the file if the missing key is of a later one, else None."""
    layer = _LAYER.search(missing)
    last = max((int(found[1]) for key in tensors if (found := _LAYER.search(key))), default=None)
    return last if layer is not None and last is not None and int(layer[1]) > last else None


def _say_why_whole(module: str, tensors: Mapping[str, np.ndarray], config: LoraConfig) -> str:
    """Returns why a module should be in the file whole, and what to do as it is not."""
    if any(key.startswith(f"{PREFIX}{module}.") for key in tensors):
        return f"Other tensors of {module} are there: the file is not whole. Copy or save it again"
    if not is_trained_whole(config, module):
        return f"bias is {config.bias!r} in {CONFIG}, which asks for it. Save the adapter again"
    if config.modules_to_save is None:
        return (
            f"The task_type {config.task_type} in {CONFIG} trains {module} whole. Save the adapter again; or if it was"
            ' not trained, add "modules_to_save": []'
        )
    names = ", ".join(entry for entry in config.modules_to_save if is_in_module(entry, module))
    return (
        f"modules_to_save in {CONFIG} names {names}. Save the adapter again; or if it was not trained, delete the name"
    )


def _other_rank(slot: Slot, template: Adapter, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Returns (the tensor's rank, the expected one) if A or B differs from the slot in its rank alone."""
    axis = {"a": 0, "b": 1}.get(slot.field)
    if not isinstance(template[slot.path], LowRank) or axis is None or len(shape) != len(slot.shape):
        return None
    differ = [index for index, size in enumerate(shape) if size != slot.shape[index]]
    return (shape[axis], slot.shape[axis]) if differ == [axis] else None


def _refuse_unexpected(
    key: str,
    tensors: Mapping[str, np.ndarray],
    expected: Collection[str],
    config: LoraConfig,
    modules: Collection[str],
    where: str,
) -> None:
    """Raises AdapterMismatchError if it is known why the configuration does not describe the tensor `key`."""
    part = _PART.fullmatch(key)
    module, end = part.groups() if part else (key.rpartition(".")[0], "")
    found = f"{where}: {key}: found, but"
    if ".switch_mlp." in key or ".experts." in key:
        raise AdapterMismatchError(f"{found} adapters of stacked experts are not supported. Train it without them")
    if module == f"{PREFIX}{HEAD}" and module not in modules:  # tied to the embedding
        return
    if module not in modules:
        raise AdapterMismatchError(f"{found} {_say_what_base_has(module, modules, is_lora=part is not None)}")
    if end == "lora_magnitude_vector" and not config.use_dora:
        hint = "Write true if the adapter was trained with DoRA"
        raise AdapterMismatchError(f"{found} use_dora is not true in {CONFIG}. {hint}")
    if end == "lora_B.bias":
        hint = "Write true if the adapter was trained with it"
        raise AdapterMismatchError(f"{found} lora_bias is not true in {CONFIG}. {hint}")
    if part and not any(other.startswith(f"{module}.lora_") for other in expected):
        left_out = _left_out(tensors, expected, modules)
        raise AdapterMismatchError(_say_left_out(key, module, left_out, config, Path(where)))


def _say_what_base_has(module: str, modules: Collection[str], *, is_lora: bool) -> str:
    name, layer = module.removeprefix(PREFIX), _LAYER.search(module)
    if layer is not None:
        start = module[: layer.start() + 1]
        numbers = {
            int(other[len(start) :].split(".")[0]) for other in modules if re.match(re.escape(start) + r"\d", other)
        }
        if numbers and int(layer[1]) not in numbers:
            there = (
                f"the layers {min(numbers)} to {max(numbers)}"
                if len(numbers) > 1
                else f"the layer {min(numbers)} alone"
            )
            return f"the base has {there}: the adapter is of a larger base. Load the base that it was made for"
    if is_lora:
        return f"the base has no module {name}. Load the base that the adapter was made for"
    return (
        f"the base has no module {name}, and it is no part of a LoRA adapter. If it is left over, save the adapter"
        " again without it"
    )


def _left_out(tensors: Iterable[str], expected: Collection[str], modules: Collection[str]) -> list[str]:
    """Returns the modules of the base with tensors of A in the file but none in the adapter that is expected."""
    parts = [part for key in tensors if (part := _PART.fullmatch(key)) and part[2].endswith(("A.weight", "ding_A"))]
    return [part[1] for part in parts if part[1] in modules and part[0] not in expected]


def _say_left_out(key: str, module: str, left_out: list[str], config: LoraConfig, weights: Path) -> str:
    field, value = _field_that_leaves_out(config, module.removeprefix(PREFIX))
    if field in ("layers_to_transform", "layers_pattern"):
        names = ", ".join(name.removeprefix(PREFIX) for name in left_out[:3]) + ", ..." * (len(left_out) > 3)
    else:
        names = " and ".join(sorted({name.rpartition(".")[2] for name in left_out}))
    leaves = "does not match" if field == "target_modules" else "leaves out"
    correct = "name them in target_modules" if field == "target_modules" else f"correct {field}"
    shown = "null" if value is None else reprlib.repr(value if isinstance(value, str | int) else list(value))
    return (
        f"{weights.parent / CONFIG}: {field} {shown} {leaves} {names}, for which {weights.name} has tensors"
        f" ({key.removeprefix(PREFIX)}, ...). Take the configuration that was saved with these weights, or {correct}"
    )


def _field_that_leaves_out(config: LoraConfig, module: str) -> tuple[str, Any]:
    """Returns (the field that leaves the module out, its value)."""
    if is_trained_whole(config, module):
        return "modules_to_save", config.trained_whole
    if config.exclude_modules and matches(config.exclude_modules, module):
        return "exclude_modules", config.exclude_modules
    targets = config.target_modules
    is_layered = config.layers_to_transform is not None and targets
    if is_layered and (is_all_linear(config) or matches(targets or (), module)):
        if config.layer_lists and layer_number(config.layer_lists, module) is None:
            return "layers_pattern", config.layer_lists
        return "layers_to_transform", config.layers_to_transform
    return "target_modules", targets
