"""What of the hub is in this machine's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError


def is_cached(name: str, kind: Literal["model", "dataset"], configuration: str | None = None) -> bool:
    """Returns whether the hub repository `name` can be opened from only the local cache.

    A model needs config.json, and model.safetensors or its index. Data sets must have been prepared by `datasets`
    before.

    Args:
      name: `owner/name`, of a data set also `owner/name:split`; the split does not count.
      configuration: `data.config` of a data set, None for any.
    """
    if kind == "model":
        weights = ("model.safetensors", "model.safetensors.index.json")
        return _has_file(name, "config.json") and any(_has_file(name, file) for file in weights)
    import datasets  # takes a second, and only hub sets need it

    *owner, repository = name.partition(":")[0].split("/")
    snake_case = datasets.naming.camelcase_to_snakecase(repository)
    folder = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / "___".join([*owner, snake_case])
    patterns = ["*"] if configuration is None else [configuration, f"{configuration}-*"]
    return any(any(folder.glob(f"{pattern}/*/*/dataset_info.json")) for pattern in patterns)


def _has_file(repository: str, file: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(repository, file), str)
    except HFValidationError:  # not the name of a repository; `fetch` raises the error
        return False
