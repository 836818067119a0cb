"""A stack of two layers and a head, without a model class: what PEFT's files are tried on where PEFT is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from tests.support.adapters.lora_cases import normal, randomized

BASE = {
    "encoder": {"layers": {"query": {"kernel": normal(1, 2, 4, 4)}}},
    "head": {"kernel": normal(2, 4, 3), "bias": normal(3, 3)},
}
X = normal(4, 2, 4)
SMALL = jlora.LoraConfig(r=2, target_modules=["query"], modules_to_save=["head"])


def apply(base: Any, x: jax.Array) -> jax.Array:
    """The function: logits (2, 3) of x (2, 4)."""
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, base["encoder"]["layers"]["query"]["kernel"])
    return x @ base["head"]["kernel"] + base["head"]["bias"][None]


def save(folder: Path) -> Path:
    """Writes a random adapter into the folder, and gives the folder back."""
    jlora.save_adapter(folder, randomized(abstract_adapter(SMALL, BASE, apply, X)), SMALL)
    return folder


def load(folder: Path, base: Any = BASE, **options: Any) -> tuple:
    """(adapter, config) of the folder."""
    return jlora.load_adapter(folder, base, apply, X, **options)
