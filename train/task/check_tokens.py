"""Checks, before weights are read, whether a model accepts the training rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jlora.errors import JloraError
from jlora.pretrained.load import abstract_base, example_batch
from train.data.bucketing import bucket_lengths


def require_tokens_fit(model: Any, ids: Mapping[str, np.ndarray], longest: int, remedy: str = "") -> None:
    """Raises JloraError if the model does not accept the tokens of a split, or rows of `longest` tokens.

    Args:
      model: the linen module, without weights.
      ids: {split: the ids of its tokens, int (total,), at least one}.
      longest: the length in tokens with which the model is called once, abstractly.
      remedy: what to do about ids that are too large, for the message.
    """
    words = model.config.vocab_size
    for name, tokens in ids.items():
        if tokens.max() >= words:
            raise JloraError(
                f"{name}: expected token ids below the model's vocab_size {words}, found {tokens.max()};"
                " the tokenizer is another model's, or tokens were added to it and the model was not resized for them"
                f"{remedy}"
            )
    specs = example_batch(model.config).items()
    batch = {name: jax.ShapeDtypeStruct((1, longest), spec.dtype) for name, spec in specs}
    jax.eval_shape(model.apply, abstract_base(model), batch)


def longest_batch(lengths: Iterable[np.ndarray], limit: int) -> int:
    """Returns the length that the longest of these rows is padded to: a multiple of 8, but at most `limit`.

        longest_batch([np.array([3, 9])], 100) -> 16

    Args:
      lengths: for each split, the lengths of its rows, int (n,), n at least 1.
    """
    return bucket_lengths(np.array([rows.max() for rows in lengths]), 1, limit=limit)[-1]
