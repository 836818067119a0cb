"""The characters of a finished sweep, in memory: one base, and each one's adapter, config and rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.common.perplexity import count_tokens
from benchmarks.common.sweep_configs import read_sweep_configs
from jlora.generation.open_model import LanguageModel, load_language_model
from jlora.peft.folder import load_adapter
from jlora.pretrained.load import example_batch
from train.lm.config import LMConfig
from train.lm.open_texts import Texts, open_texts

BASE = "base"
"""The name of the base without an adapter."""


@dataclasses.dataclass(frozen=True)
class Characters:
    """The base and the characters.

    Attributes:
      language: the base, its tokenizer and what ends a text.
      configs, texts, adapters: {name: the character's}, in the order of the sweep.
    """

    language: LanguageModel
    configs: dict[str, LMConfig]
    texts: dict[str, Texts]
    adapters: dict[str, dict[str, Any]]

    def adapter(self, name: str) -> dict[str, Any] | None:
        """Returns a character's adapter; None for the base."""
        return None if name == BASE else self.adapters[name]

    def held_out_tokens(self, name: str) -> int:
        """Returns how many tokens of the held-out text the perplexity is a mean over: those of the replies."""
        return count_tokens(self.texts[name])


def load_characters(folder: Path) -> Characters:
    """Loads the base and what the folder of a finished sweep over a list of points holds.

    Raises:
      JloraError: a file is missing or damaged, or the rows of the characters are no longer there.
    """
    configs = read_sweep_configs(folder)
    language = load_language_model(next(iter(configs.values())).model)
    adapted = language.adapted
    adapters = {
        name: load_adapter(
            folder / name / "adapter", adapted.base, adapted.model.apply, example_batch(adapted.model.config)
        )[0]
        for name in configs
    }
    texts = {name: open_texts(config, None, resume=True) for name, config in configs.items()}
    return Characters(language, configs, texts, adapters)
