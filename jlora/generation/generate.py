"""Generates token ids from prompts with a causal language model and a cache of keys and values.

`generate` completes a batch in one compiled program, `stream` yields one completion token by token. Both compile once
for each shape. `Generator` is the same for a program that holds its model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jlora.generation.generator import Generator
from jlora.generation.sampling import Sampling
from jlora.lora.entries import Adapter

if TYPE_CHECKING:
    from jaxtyping import Array, Int, PRNGKeyArray, PyTree


def generate(
    model: Any,
    base: PyTree,
    adapter: Adapter | None,
    input_ids: Int[Array | np.ndarray, "batch tokens"],
    attention_mask: Int[Array | np.ndarray, "batch tokens"],
    *,
    max_new_tokens: int,
    pad_id: int,
    key: PRNGKeyArray | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
) -> Int[Array, "batch max_new_tokens"]:
    """Generates completions, int32 (B, max_new_tokens): tokens up to and including a stop id, then `pad_id`.

    The loop stops when all rows have ended. It is compiled once for each B, T, `max_new_tokens` and way of sampling.

    Args:
      model, base: as `load_base` gives them. adapter: {path: entry}, or None for the base alone.
      input_ids, attention_mask: int32 (B, T), shorter prompts padded on the left (attention_mask 0).
      pad_id: the id that fills a row after its end.
      key: JAX random key for sampling; None always takes the likeliest token (greedy).
      temperature: above 0; logits are divided by it.
      top_k: draw from this many of the largest logits; 0 means all.
      top_p: of those, draw from the likeliest tokens whose probabilities add up to this; 1 means all.
      stop_ids: tokens that end a row.

    Raises:
      ContextLengthError: there are more tokens than the model has positions for.
      JloraError: `max_new_tokens` is below 1, or temperature, top_k or top_p is out of its range.
    """
    return Generator(model, base, adapter).generate(
        input_ids,
        attention_mask,
        max_new_tokens=max_new_tokens,
        pad_id=pad_id,
        key=key,
        sampling=Sampling(temperature, top_k, top_p),
        stop_ids=stop_ids,
    )


def stream(
    model: Any,
    base: PyTree,
    adapter: Adapter | None,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    key: PRNGKeyArray | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
) -> Iterator[int]:
    """Yields the tokens of one completion as they are generated, without the stop id that ends it.

    Without a key they are the same tokens as from `generate`. The lengths of prompt and cache are each padded to a
    power of two (at least 64), and the step is compiled once for each such length.

    Args:
      model, base: as `load_base` gives them. adapter: {path: entry}, or None for the base alone.
      ids: the prompt, at least one token.
      max_new_tokens: the most tokens that are yielded.
      key: JAX random key for sampling; None always takes the likeliest token.
      temperature, top_k, top_p: how a token is drawn with a key, as for `generate`.
      stop_ids: tokens that end the completion.

    Raises:
      ContextLengthError: prompt and max_new_tokens are more tokens than the model has positions for.
      JloraError: the prompt is empty, or an argument is out of its range. Errors are raised before the first token.
    """
    return Generator(model, base, adapter).stream(
        ids,
        max_new_tokens=max_new_tokens,
        key=key,
        sampling=Sampling(temperature, top_k, top_p),
        stop_ids=stop_ids,
    )
