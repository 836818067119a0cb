"""Finds the names in a config that are on the hub; all others are local files and folders."""

from __future__ import annotations

from jlora.errors import FileError
from jlora.pretrained.locate import local_path
from train.config.run_config import RunConfig


def needs_hub(config: RunConfig) -> list[str]:
    """Returns the hub names of the model and the data, each once, the model first; empty if everything is local.

    Raises:
      FileError: a name can only be a path or a `package:` name, but does not exist; the message names the key.
    """
    return list(dict.fromkeys([*model_hub_names(config), *data_hub_names(config)]))


def model_hub_names(config: RunConfig) -> list[str]:
    """Returns the model's name in a list, or an empty list if it is local. Raises as `needs_hub` does."""
    return [config.model] if _is_on_hub("model", config.model) else []


def data_hub_names(config: RunConfig) -> list[str]:
    """Returns the hub data sets of all splits, each once and without `:split`. Raises as `needs_hub` does."""
    names = []
    for split in ("train", "validation", "test"):
        given = getattr(config.data, split, None) or []
        for name in [given] if isinstance(given, str) else given:
            if _is_on_hub(f"data.{split}", name):
                names.append(name.partition(":")[0])
    return list(dict.fromkeys(names))


def _is_on_hub(key: str, name: str) -> bool:
    try:
        return local_path(name) is None
    except FileError as error:
        raise FileError(f"{key}: {error}") from None
