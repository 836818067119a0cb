"""The smallest configs of both trainers, and how their values are checked."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from train.classify.config import Config
from train.config.run_config import AnyConfig, RunConfig

_SMALLEST = {"model": "m", "output_dir": "o", "data": {"train": "t"}}


def config(schema: type[AnyConfig] = Config, **sections: Any) -> AnyConfig:
    """A config with no more than there must be, and these keys and sections."""
    return schema.model_validate({**_SMALLEST, **sections})


def assert_checked(schema: type[RunConfig], section: str, key: str, good: Any, bad: Any) -> None:
    """The key takes the one value as it is, and refuses the other by its name."""
    smallest = _SMALLEST.get(section, {})
    assert getattr(getattr(config(schema, **{section: {**smallest, key: good}}), section), key) == good
    with pytest.raises(ValidationError, match=f"{section}.{key}"):
        config(schema, **{section: {**smallest, key: bad}})
