"""Reads the config that is stored with a model, and makes transformers' config of it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jlora.errors import FileError, JloraError, UnsupportedModelError, nearest
from jlora.files.bounded_json import read_json
from jlora.files.run_folder import say_what_is_inside
from jlora.gguf.model import gguf_config, is_gguf
from jlora.models.registry import family, require_supported
from jlora.pretrained.config_checks import require_plain, require_token_ids
from jlora.pretrained.folder import GENERATION_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read_stored_config(place: Path) -> tuple[Path, dict[str, Any]]:
    """Returns (the file, its content as {key: value}) of the config in a model folder or GGUF file.

    The stop tokens of generation_config.json, which generation uses, replace those of config.json.

    Raises:
      FileError: there is no config.json, a file is not JSON, or the stop tokens are not ids.
      JloraError: as for `gguf_config`.
    """
    if is_gguf(place):
        return place, gguf_config(place).to_dict()
    file, generation = place / "config.json", place / GENERATION_FILE
    if not file.is_file():
        inside = say_what_is_inside(place, name="merged", file="config.json")
        raise FileError(f"{place}: expected the folder of a model, found no config.json{inside}")
    stored, stops = read_json(file), read_json(generation).get("eos_token_id") if generation.is_file() else None
    require_token_ids(generation, "eos_token_id", stops)
    return file, stored if stops is None else stored | {"eos_token_id": stops}


def make_config(file: Path, stored: dict[str, Any], overrides: dict[str, Any]) -> PreTrainedConfig:
    """Makes the config of `stored` with the keys in `overrides` replaced; never runs code from a repository.

    `file` is where `stored` was read, for messages.

    Raises:
      FileError: a value that the config class does not accept.
      UnsupportedModelError: an unsupported `model_type`.
      JloraError: an override that the config class does not have, or labels that contradict `num_labels`.
    """
    from transformers import CONFIG_MAPPING  # takes half a second, and seconds if PyTorch is installed

    if "model_type" not in stored:
        raise UnsupportedModelError(f"{file}: model_type: found no such key: this is not a model's config.json")
    family(stored["model_type"], str(file))
    config_class = CONFIG_MAPPING[stored["model_type"]]
    known = config_class()
    require_plain(file, stored, config_class)
    for key in overrides:
        if not hasattr(known, key):
            raise JloraError(f"{key}: expected a key of {config_class.__name__}{nearest(key, known.to_dict())}")
    try:
        config = config_class(**_merge_overrides(stored, overrides))
    except Exception as error:  # transformers' classes raise various exceptions for wrong values
        raise FileError(f"{file}: {error}") from error
    require_supported(config, str(file))
    return config


def _merge_overrides(stored: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Applies `overrides` to `stored`, and drops label names that were stored for another number of labels."""
    kept = {key: value for key, value in stored.items() if key not in ("dtype", "torch_dtype")}
    merged = deepcopy(kept) | overrides  # transformers' classes change values in place
    names, count = overrides.get("id2label"), overrides.get("num_labels")
    if names is not None and count is not None and len(names) != count:
        raise JloraError(f"id2label: expected num_labels = {count} names; found {len(names)}")
    if names is not None:
        merged["num_labels"] = len(names)
        merged["label2id"] = overrides.get("label2id") or {label: int(index) for index, label in names.items()}
    elif count is not None and len(stored.get("id2label") or ()) != count:
        merged.pop("id2label", None)
        merged.pop("label2id", None)
    return merged
