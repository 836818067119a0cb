"""The perplexity of each character's held-out text under the base and under every adapter."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.characters.loaded import BASE, Characters
from jlora.pretrained.tokenizer import pad_id
from train.lm.data.batches import make_batch
from train.lm.objective import loss_and_hits, split_metrics
from train.loop.evaluation import make_eval_step, run_through
from train.run.lengths import choose_lengths


def measure_perplexities(characters: Characters) -> dict[str, dict[str, float]]:
    """Returns {name of the text: {"base" or name of the adapter: perplexity}}."""
    eval_step = make_eval_step(loss_and_hits(characters.language.adapted.model))
    readers = (BASE, *characters.adapters)
    return {
        text: {
            reader: _perplexity(characters, text, partial(eval_step, characters.adapter(reader))) for reader in readers
        }
        for text in characters.adapters
    }


def _perplexity(characters: Characters, text: str, step: Any) -> float:
    config, texts, base = characters.configs[text], characters.texts[text], characters.language.adapted.base
    rows, pad = texts.rows["validation"], pad_id(texts.tokenizer)
    lengths = (texts.width,) if texts.width else choose_lengths(config, {"train": rows.lengths}, base)

    def make(planned: Any, size: int, places: Any) -> Any:
        return make_batch(rows, planned, size, pad, places)

    found = run_through(partial(step, base), rows.lengths, lengths, config.train.eval_batch_size, make)
    return split_metrics([sums for _, sums in found], characters.held_out_tokens(text))["perplexity"]
