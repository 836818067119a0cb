"""Which names of a config are on the hub; all others are files and folders here."""

from __future__ import annotations

from jlora.errors import JloraError
from jlora.pretrained.locate import local_path
from train.config.run_config import RunConfig


def needs_hub(config: RunConfig) -> list[str]:
    """The hub names of the model and the data, each once, the model first; empty where all is local.

    Raises:
      JloraError: a name that can only be a path or `package:` name, and nothing is there; with its key.
    """
    return list(dict.fromkeys([*model_hub_names(config), *data_hub_names(config)]))


def model_hub_names(config: RunConfig) -> list[str]:
    """The model's name in a list, or an empty list where it is a folder. Raises as `needs_hub` does."""
    return [config.model] if _is_on_hub("model", config.model) else []


def data_hub_names(config: RunConfig) -> list[str]:
    """The hub data sets of all splits, each once and without `:split`. Raises as `needs_hub` does."""
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
    except JloraError as error:
        raise JloraError(f"{key}: {error}") from None
