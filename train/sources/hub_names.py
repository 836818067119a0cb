"""Finds the names in a config that are on the hub; all others are local files and folders."""

from __future__ import annotations

from jlora.errors import FileError
from jlora.pretrained.locate import local_path
from train.config.run_config import RunConfig


def needs_hub(config: RunConfig) -> list[str]:
    """Returns the hub names of the model and the data, each once, the model first; [] if everything is local.

    An existing file or folder is local; other names such as `owner/name` are the hub's.

    Raises:
      FileError: a name can only be a path (`./x`, `/x`, `x.csv`) or a `package:` name, but does not exist; the message
        begins with the key, `model: ` or `data.train: `.
    """
    return list(dict.fromkeys([*model_hub_names(config), *data_hub_names(config)]))


def model_hub_names(config: RunConfig) -> list[str]:
    """Returns [config.model], or [] if it is local: an existing file or folder.

    Raises:
      FileError: the name can only be a path (`./x`, `/x`) or a `package:` name, but does not exist; it begins `model:
        `.
    """
    return [config.model] if _is_on_hub("model", config.model) else []


def data_hub_names(config: RunConfig) -> list[str]:
    """Returns the hub data sets of train, validation and test, each once and without `:split`.

    Existing files and folders are left out; a split may be None, a name or a list of names.

    Raises:
      FileError: a name can only be a path (`./x`, `x.csv`) or a `package:` name, but does not exist; the message begins
        with the key, such as `data.train: `.
    """
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
