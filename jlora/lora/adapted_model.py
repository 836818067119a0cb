"""A model with what is trained on it."""

from __future__ import annotations

import dataclasses
from typing import Any

from jlora.lora.config import LoraConfig


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model together with everything that is trained on it.

    Attributes:
      model: the linen module.
      base: its frozen tree.
      adapter: {path: LowRank | Full | Rows}: everything that is trained, for all methods.
      lora: the adapter's settings; None with methods other than lora.
      initial: the adapter's start, if `base` is a residual base (PiSSA, OLoRA); else None.
    """

    model: Any
    base: Any
    adapter: dict[str, Any]
    lora: LoraConfig | None
    initial: dict[str, Any] | None = None
