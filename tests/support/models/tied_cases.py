"""Tiny models of every family whose head may be the embedding: tied, with random weights, in PyTorch and here."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from tests.support.models import decoder_cases as cases

FAMILIES = (
    "llama", "gpt2", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt_neo", "gpt_neox",
    "opt", "bloom", "falcon",
)  # fmt: skip
_ONE_LAYER = {"num_hidden_layers": 1}
_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 1},
    "bloom": {"n_layer": 1},
    "gpt_neo": {},
    "gemma3_text": _ONE_LAYER | {"sliding_window": 4},
    "phi3": _ONE_LAYER | {"eos_token_id": 2},
}


@functools.cache
def oracle(name: str) -> tuple[Any, Path]:
    """(PyTorch's model, the folder that it wrote)."""
    config = cases.tiny_decoder(name, tie_word_embeddings=True, **_SIZES.get(name, _ONE_LAYER))
    model, folder = cases.torch_decoder(config), Path(tempfile.mkdtemp())
    model.save_pretrained(folder)
    return model, folder
