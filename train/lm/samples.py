"""Writes samples.jsonl: completions of validation prompts by the base and by the tuned model."""

from __future__ import annotations

import itertools
import json
import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jlora.generation.detokenize import decode_stream
from jlora.generation.generate import generate
from jlora.generation.generator import context_length
from jlora.generation.open_model import end_ids
from jlora.lora.adapted_model import Adapted
from jlora.pretrained.tokenizer import pad_id
from jlora.sharding.to_host import to_host
from train.devices.processes import is_first
from train.lm.config import SamplesSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_ROWS = 32
"""How many prompts are completed in one batch."""


def write_samples(
    file: Path,
    prompts: Sequence[np.ndarray],
    adapted: Adapted,
    adapter: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    section: SamplesSection,
    key: jax.Array,
) -> str:
    """Completes the prompts with the base and with the tuned model, both with the same random draws.

    Args:
      file: to write, one line {"prompt", "base", "tuned"} per prompt: JSON of the prompt's text and of the completions,
        without prompt and end token.
      prompts: token ids, int32 (tokens,). Those that leave no room for an answer in `section.max_length` are left out
        with a warning.
      adapted: the model and its base.
      adapter: the trained adapter.
      section: `max_length` counts prompt and completion; it is limited by the model's context. `temperature` 0 takes
        the likeliest tokens.
      key: for sampling.

    Returns:
      The first `section.show` samples as text for the screen; "" if there are none.
    """
    most = min(section.max_length, context_length(adapted.model) or section.max_length)
    fitting = [prompt for prompt in prompts if len(prompt) < most]
    if left_out := len(prompts) - len(fitting):
        logger.warning("samples: %d prompts left out, as they fill samples.max_length=%d", left_out, most)
    section = section.model_copy(update={"max_length": most})
    columns = [
        _completions(adapted, entries, fitting, tokenizer, section, key) for entries in (adapted.initial, adapter)
    ]
    texts = [tokenizer.decode(prompt) for prompt in fitting]
    samples = [
        {"prompt": prompt, "base": base, "tuned": tuned} for prompt, base, tuned in zip(texts, *columns, strict=True)
    ]
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    if is_first():
        file.write_text("".join(lines), encoding="utf-8")
    return "\n\n".join(map(_format_sample, samples[: section.show]))


def _completions(
    adapted: Adapted,
    adapter: dict[str, Any] | None,
    prompts: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    section: SamplesSection,
    key: jax.Array,
) -> list[str]:
    """Returns the completion of each prompt; all batches have one shape."""
    if not prompts:
        return []
    longest, shortest = max(map(len, prompts)), min(map(len, prompts))
    ends, texts = end_ids(adapted.model.config, tokenizer), []
    rows, limit = min(_ROWS, len(prompts)), context_length(adapted.model) or section.max_length + longest
    count = min(section.max_length - shortest, limit - longest)
    for start in range(0, len(prompts), rows):
        batch = prompts[start : start + rows]
        ids, mask = _pad_left([*batch, *[batch[-1]] * (rows - len(batch))], longest)
        found = generate(
            adapted.model,
            adapted.base,
            adapter,
            ids,
            mask,
            max_new_tokens=count,
            pad_id=pad_id(tokenizer),
            key=jax.random.fold_in(key, start) if section.temperature else None,
            temperature=section.temperature or 1.0,
            top_p=section.top_p,
            stop_ids=ends,
        )
        for prompt, row in zip(batch, to_host(found), strict=False):
            answer = row[: section.max_length - len(prompt)].tolist()
            answer = list(itertools.takewhile(lambda token: token not in ends, answer))
            texts.append("".join(decode_stream(tokenizer, answer, prompt.tolist())))
    return texts


def _pad_left(prompts: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads prompts on the left; returns (ids, mask), int32 (rows, width)."""
    ids, mask = np.zeros((2, len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _format_sample(sample: dict[str, str]) -> str:
    return "\n".join(
        textwrap.fill(f"{name:>6}: {' '.join(text.split())}", 100, subsequent_indent=" " * 8)
        for name, text in sample.items()
    )
