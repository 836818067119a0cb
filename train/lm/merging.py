"""merged/ of a language model: on the weights as they were read, not as they were rounded or quantized."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp

import jlora
from jlora.errors import JloraError
from jlora.lora.adapted_model import Adapted
from jlora.pretrained.grown_tables import load_grown
from jlora.pretrained.load import example_batch
from train.artifacts.adapter_and_merged import write_merged
from train.devices import placement
from train.lm.opening import LanguageRun

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""The largest relative difference of the loss, merged read back against in memory, that float32 may show."""


def merge(run: LanguageRun) -> None:
    """Writes merged/."""
    # The accelerator holds the base in training and may have no room for another one.
    with placement.on_cpu():
        whole, adapter = _unrounded(run)
        write_merged(run.folder / "merged", whole, adapter, run.opened.tokenizer, run.config.export.dtype)


def _unrounded(run: LanguageRun) -> tuple[Adapted, dict[str, Any]]:
    """The model and adapter to merge.

    LoftQ's adapter belongs to the quantized weights: it makes up for what quantization took.
    """
    config, adapted, adapter = run.config, run.adapted, run.adapter
    if config.lora.init_lora_weights == "loftq":
        logger.info("merged/: the quantized weights plus the adapter, which LoftQ started from what they lack")
        return _on_dequantized(adapted), adapter
    if config.quantize is None and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(adapted.base)):
        return adapted, adapter
    try:
        mesh = run.mesh if jax.process_count() > 1 else None  # no process holds what several do
        base = load_grown(adapted.model, config.model, mesh=mesh)
    except JloraError as error:
        logger.warning("merged/: the weights as they were used in training, since they cannot be read again: %s", error)
        return _on_dequantized(adapted), adapter
    logger.info("merged/: %s read again in float32, the adapter is merged into these weights", config.model)
    # Read for this base, DoRA's norms are those of its weights.
    example = example_batch(adapted.model.config)
    adapter, _ = jlora.load_adapter(run.folder / "adapter", base, adapted.model.apply, example)
    return dataclasses.replace(adapted, base=base, initial=None), adapter


def _on_dequantized(adapted: Adapted) -> Adapted:
    return dataclasses.replace(adapted, base=jlora.dequantize(adapted.base, jnp.float32))


def require_same_loss(run: LanguageRun, in_memory: float, merged: float) -> None:
    """In float32 the merged model must be the one in memory; with a rounded or quantized base it is near it."""
    config = run.config
    exact = config.quantize is None and config.export.dtype == config.train.dtype == "float32"
    if exact and not abs(in_memory - merged) <= TOLERANCE * in_memory:
        raise JloraError(
            f"{run.folder / 'merged'}: read back, its validation loss is {merged}; expected {in_memory}, as in memory;"
            " the files must not be used"
        )
