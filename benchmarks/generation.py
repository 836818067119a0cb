"""Greedy completion against transformers' `generate`: python -m benchmarks.generation --rows N [--dtype bfloat16].

SmolLM2 alone, without an adapter on either side. Both caches of transformers are tried, and the faster one is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks import roofline
from benchmarks.common.alternate import alternate, serve
from benchmarks.common.work import Work
from benchmarks.steps import make_inputs

CACHES = ("dynamic", "static")
SIDES = ("jlora", *CACHES)


def main(argv: Sequence[str]) -> int:
    """Runs the command and prints its result as JSON; 0 is success."""
    flags = _parser().parse_args(argv)
    work = Work("smollm2", flags.rows, flags.prompt, dtype=flags.dtype)
    if flags.side:
        start = _start_jlora if flags.side == "jlora" else partial(_start_transformers, cache=flags.side)
        serve(lambda: start(work, new=flags.new))
        return 0
    print(json.dumps(run(work, flags.new, flags.rounds, flags.seconds)))
    return 0


def run(work: Work, new: int, rounds: int, seconds: float) -> dict[str, Any]:
    """{"new", "must", "caches": seconds of a call with each, "cache": the faster one, "sides", the work's sizes}."""
    make_inputs(work)
    tried = alternate({cache: _command(work, new, cache) for cache in CACHES}, 1, 0)
    caches = {cache: found["seconds"][0] for cache, found in tried.items() if "failed" not in found}
    best = min(caches, key=lambda cache: caches[cache])
    found = alternate({side: _command(work, new, side) for side in ("jlora", best)}, rounds, seconds)
    return {
        "rows": work.rows,
        "dtype": work.dtype,
        "prompt": work.length,
        "new": new,
        "must": roofline.decoded(work, work.length, new),
        "caches": caches,
        "cache": best,
        "sides": {"jlora": found["jlora"], "transformers": found[best]},
    }


def prompts(work: Work) -> np.ndarray:
    """Prompts as random token ids, int32 (rows, length)."""
    return np.random.default_rng(0).integers(1000, 30000, (work.rows, work.length), np.int32)


def _start_jlora(work: Work, new: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    import jlora

    jax.config.update("jax_enable_compilation_cache", False)
    dtype = jnp.dtype(work.dtype)
    model, base = jlora.load_base(str(work.base), dtype=dtype, param_dtype=dtype)
    ids = prompts(work)

    def call() -> list[int]:
        found = jlora.generate(model, base, None, ids, np.ones_like(ids), max_new_tokens=new, pad_id=0)
        return np.asarray(found)[0, :8].tolist()

    call()  # compiles
    return call, {}


def _start_transformers(work: Work, new: int, cache: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(work.base, dtype=getattr(torch, work.dtype)).eval()
    model.generation_config.eos_token_id = None
    ids = torch.from_numpy(prompts(work).astype(np.int64))
    options = {"cache_implementation": "static"} if cache == "static" else {}

    def call() -> list[int]:
        with torch.no_grad():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=0, **options
            )
        return found[0, work.length : work.length + 8].tolist()

    return call, {}


def _command(work: Work, new: int, side: str) -> list[str]:
    sizes = ["--rows", str(work.rows), "--prompt", str(work.length), "--new", str(new), "--dtype", work.dtype]
    return ["-m", "benchmarks.generation", "--side", side, *sizes]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--rows", metavar="N", type=int, default=1, help="(default 1)")
    parser.add_argument("--prompt", metavar="N", type=int, default=512, help="tokens of a prompt (default 512)")
    parser.add_argument("--new", metavar="N", type=int, default=128, help="new tokens (default 128)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default float32)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="rounds after the first (default 5)")
    parser.add_argument("--seconds", metavar="N", type=float, default=120, help="for the rounds (default 120)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # for the sides' own processes
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
