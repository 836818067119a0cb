"""The initializations with a name, and what is true of each."""

from __future__ import annotations

import dataclasses
import re
from typing import Any


@dataclasses.dataclass(frozen=True)
class Initialization:
    """One value of `LoraConfig.init_lora_weights` that is a text.

    Attributes:
      name: PEFT's, as messages show it.
      pattern: a regular expression for the texts that mean it; empty: the name alone.
      function: the public function that makes such an adapter.
      needs_data: whether it looks at gradients or inputs of the weights, for which the function takes data.
      changes_base: whether the adapter fits a base that the function returns with it.
      written: whether PEFT's file keeps the name. PEFT would run another one again when it opens the file.
      in_files: what the name means in PEFT's file: the base is "unchanged"; its change is "recomputed" from the
        weights; or it is "unknown", so that the file is refused.
    """

    name: str
    pattern: str = ""
    function: str = "init"
    needs_data: bool = False
    changes_base: bool = False
    written: bool = False
    in_files: str = "unchanged"

    def means(self, value: Any) -> bool:
        """Tells whether `init_lora_weights` with this value is this initialization."""
        return isinstance(value, str) and re.fullmatch(self.pattern or re.escape(self.name), value) is not None


INITIALIZATIONS = (
    Initialization("gaussian", written=True),
    Initialization("orthogonal"),
    Initialization("pissa", function="init_residual", changes_base=True, in_files="recomputed"),
    Initialization(
        "pissa_niter_N", "pissa_niter_[0-9]+", function="init_residual", changes_base=True, in_files="unknown"
    ),
    Initialization("olora", function="init_residual", changes_base=True, in_files="recomputed"),
    Initialization("loftq", function="init_loftq", changes_base=True, in_files="unknown"),
    Initialization("eva", function="init_eva", needs_data=True),
    Initialization("lora_ga", function="init_lora_ga", needs_data=True, changes_base=True, in_files="unknown"),
)
"""In the order in which messages list them."""


def find_initialization(value: Any) -> Initialization | None:
    """Returns the entry of INITIALIZATIONS that the value of `init_lora_weights` means.

    "pissa_niter_4" means "pissa_niter_N". The result is None for True, False, a function and other texts.
    """
    return next((one for one in INITIALIZATIONS if one.means(value)), None)


def is_residual(value: Any) -> bool:
    """Tells whether this value of `init_lora_weights` is one of `init_residual`: pissa, pissa_niter_N or olora.

    With these the adapter starts with a part of the base's weights, which is subtracted from the base.
    """
    found = find_initialization(value)
    return found is not None and found.function == "init_residual"
