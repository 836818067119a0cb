"""Writes merged/ of a language model: merges into the weights as stored, not as rounded or quantized for training."""

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
from jlora.pretrained.source import PretrainedSource
from train.artifacts.merge_for_export import write_merged
from train.devices import placement
from train.lm.open_texts import LanguageRun

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""The largest relative difference of float32 losses that is allowed between merged/ and the model in memory."""


def write_merged_model(run: LanguageRun) -> None:
    """Merges base and adapter of a run and writes merged/ in the run folder, in `config.export.dtype`.

    The adapter is merged into the weights as stored: if the base in memory is rounded or quantized, they are read again
    in float32. If they cannot be read, or if LoftQ made the adapter, the weights that were used in training are taken.

    Args:
      run: read are its `config`, `adapted`, `adapter`, `folder` (its adapter/ must be there), `mesh` and
        `opened.tokenizer`.
    """
    # The accelerator still holds the base used in training, and may have no room for another one.
    with placement.on_cpu():
        whole, adapter = _load_unrounded(run)
        write_merged(run.folder / "merged", whole, adapter, run.opened.tokenizer, run.config.export.dtype)


def _load_unrounded(run: LanguageRun) -> tuple[Adapted, dict[str, Any]]:
    """Returns the model and adapter to merge.

    An adapter that LoftQ started belongs to the quantized weights, because it corrects their quantization errors.
    """
    config, adapted, adapter = run.config, run.adapted, run.adapter
    if config.lora.init_lora_weights == "loftq":
        logger.info("merged/: the quantized weights plus the adapter, which LoftQ started from what they lack")
        return _on_dequantized(adapted), adapter
    if config.quantize is None and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(adapted.base)):
        return adapted, adapter
    try:
        mesh = run.mesh if jax.process_count() > 1 else None  # one process has no room for what several share
        source = PretrainedSource(config.model)  # opened again: the files may have changed since the training began
        base = load_grown(adapted.model, source, mesh=mesh)
    except JloraError as error:
        logger.warning("merged/: the weights as they were used in training, since they cannot be read again: %s", error)
        return _on_dequantized(adapted), adapter
    logger.info("merged/: %s read again in float32, the adapter is merged into these weights", config.model)
    # The adapter is read again for this base, because DoRA's norms depend on the weights.
    example = example_batch(adapted.model.config)
    adapter, _ = jlora.load_adapter(run.folder / "adapter", base, adapted.model.apply, example)
    return dataclasses.replace(adapted, base=base, initial=None), adapter


def _on_dequantized(adapted: Adapted) -> Adapted:
    return dataclasses.replace(adapted, base=jlora.dequantize(adapted.base, jnp.float32))


def require_same_loss(run: LanguageRun, in_memory: float, merged: float) -> None:
    """Raises JloraError if the losses differ although all is float32; with rounded or quantized bases they may.

    All is float32 if the config's `quantize` is null and its `export.dtype` and `train.dtype` are float32.

    Args:
      run: its `config` and `folder` are read.
      in_memory: the validation loss of base and adapter in memory.
      merged: that of the model in merged/. NaN is refused; a difference up to 1e-4 of `in_memory` is not.
    """
    config = run.config
    exact = config.quantize is None and config.export.dtype == config.train.dtype == "float32"
    if exact and not abs(in_memory - merged) <= TOLERANCE * in_memory:
        raise JloraError(
            f"{run.folder / 'merged'}: read back, its validation loss is {merged}; expected {in_memory}, as in memory;"
            " the files must not be used"
        )
