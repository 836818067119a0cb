"""The perplexity of a config's validation rows under a model, as the trainer computes it."""

from __future__ import annotations

from typing import Any

from jlora.pretrained.tokenizer import pad_id
from train.lm.config import LMConfig
from train.lm.data.batches import make_batch
from train.lm.objective import split_metrics
from train.lm.open_texts import Texts
from train.loop.evaluation import run_through
from train.run.padded_lengths import choose_lengths


def count_tokens(texts: Texts) -> int:
    """Returns how many tokens of the validation rows the perplexity is a mean over: those that would be learnt."""
    return int(texts.rows["validation"].learn.sum())


def measure_perplexity(config: LMConfig, texts: Texts, base: Any, step: Any) -> float:
    """Returns the perplexity of the validation rows.

    Args:
      texts: of the config.
      base: the model's weights, by which the lengths of batches are chosen.
      step: step(batch), the sums of `train.lm.objective.loss_and_hits`, compiled.
    """
    rows, pad = texts.rows["validation"], pad_id(texts.tokenizer)
    lengths = (texts.width,) if texts.width else choose_lengths(config, {"train": rows.lengths}, base)

    def make(planned: Any, size: int, places: Any) -> Any:
        return make_batch(rows, planned, size, pad, places)

    found = run_through(step, rows.lengths, lengths, config.train.eval_batch_size, make)
    return split_metrics([sums for _, sums in found], count_tokens(texts))["perplexity"]
