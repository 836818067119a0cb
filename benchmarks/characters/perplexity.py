"""The perplexity of each character's held-out text under the base and under every adapter."""

from __future__ import annotations

from functools import partial

from benchmarks.characters.loaded import BASE, Characters
from benchmarks.common.perplexity import measure_perplexity
from train.lm.objective import loss_and_hits
from train.loop.evaluation import make_eval_step


def measure_perplexities(characters: Characters) -> dict[str, dict[str, float]]:
    """Returns {name of the text: {"base" or name of the adapter: perplexity}}."""
    base = characters.language.adapted.base
    eval_step = make_eval_step(loss_and_hits(characters.language.adapted.model))

    def measure(text: str, reader: str) -> float:
        step = partial(eval_step, characters.adapter(reader), base)
        return measure_perplexity(characters.configs[text], characters.texts[text], base, step)

    readers = (BASE, *characters.adapters)
    return {text: {reader: measure(text, reader) for reader in readers} for text in characters.adapters}
