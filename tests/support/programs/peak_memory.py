"""Run by test_weights.py in a process of its own: what loading and saving take, in resident bytes that no file backs.

    python tests/support/programs/peak_memory.py FOLDER

prints [{"base": bytes of the leaves, "load": peak while they are loaded, "save": peak while they are saved}, ...], one
for each of WAYS, peaks less what there was before. FOLDER holds a model's folder for each dtype. Each goes its way once
before, so that what is compiled is there. MALLOC_MMAP_THRESHOLD_ has to be set to a small number: free memory is then
given back, and what was there before says nothing else.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jlora.pretrained.load import load_base, save_base

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
WAYS = [("float32", None), ("bfloat16", None), ("bfloat16", "nf4")]


def anonymous_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def peak_of(call: Callable[[], Any]) -> tuple[int, Any]:
    """(the most that `call` took at a time, what it returned)."""
    before, done, seen = anonymous_bytes(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    result = call()
    jax.block_until_ready(jax.live_arrays())
    done.set()
    thread.join()
    return max(*seen, anonymous_bytes()) - before, result


def measure(folder: Path, quantize: Any) -> dict[str, int]:
    dtype = folder.name

    def load() -> Any:
        return load_base(str(folder), param_dtype=DTYPES[dtype], quantize=quantize)

    def save(model: Any, base: Any) -> None:
        save_base(folder / "again", model, base, dtype=dtype)

    save(*load())
    load_peak, (model, base) = peak_of(load)
    save_peak, _ = peak_of(lambda: save(model, base))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    return {"base": size, "load": load_peak, "save": save_peak}


if __name__ == "__main__":
    print(json.dumps([measure(Path(sys.argv[1]) / dtype, quantize) for dtype, quantize in WAYS]))
