"""A model with what is trained on it."""

from __future__ import annotations

import dataclasses
from typing import Any

from jlora.lora.config import LoraConfig


@dataclasses.dataclass(frozen=True)
class Adapted:
    """The model with what is trained on it.

    Attributes:
      model: linen module. base: its frozen tree.
      adapter: {path: LowRank | Full | Rows}: everything that is trained, with every method.
      lora: the adapter's settings; None with other methods.
      initial: where `base` gave up what the adapter started with (PiSSA, OLoRA), that start; else None.
    """

    model: Any
    base: Any
    adapter: dict[str, Any]
    lora: LoraConfig | None
    initial: dict[str, Any] | None = None
