"""What a piece of work must do at least, and how fast this machine could: python -m benchmarks.roofline.

FLOPs are those of the matrix products that the algorithm cannot do without, bytes those of weights and of each layer's
input that must cross the memory once a pass. The time that the machine needs at least is that of the larger of the two.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from transformers import AutoConfig

from benchmarks.common.work import Work

_SIZE = 2048
_COPIED = 256 * 2**20
_REPEATS = 7


def main(argv: Sequence[str]) -> int:
    """Prints the machine's rates as JSON; 0 is success."""
    print(json.dumps(rates()))
    return 0


def rates() -> dict[str, Any]:
    """{"float32", "bfloat16": FLOP/s of a square product of 2,048, the better of XLA's and PyTorch's, "copy": bytes/s}.

    A copied byte counts twice: it is read and written.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    found: dict[str, Any] = {}
    for name in ("float32", "bfloat16"):
        x = jnp.ones((_SIZE, _SIZE), name)
        product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
        y = torch.ones(_SIZE, _SIZE, dtype=getattr(torch, name))
        found[f"{name} by XLA"] = 2 * _SIZE**3 / _best(lambda p=product, x=x: p(x).block_until_ready())
        found[f"{name} by PyTorch"] = 2 * _SIZE**3 / _best(lambda y=y: y @ y)
        found[name] = max(found[f"{name} by XLA"], found[f"{name} by PyTorch"])
    source = torch.ones(_COPIED // 4)
    target = torch.empty_like(source)
    found["copy"] = 2 * _COPIED / _best(lambda: target.copy_(source))
    return found


class Shape(NamedTuple):
    """A transformer's sizes; `queries`, `keys` and `inner` are widths (the last the MLP's), `words` the head's rows."""

    layers: int
    width: int
    queries: int
    keys: int
    inner: int
    gated: bool
    words: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """{module: (in, out)} of a layer."""
        attention = {"q": (self.width, self.queries), "k": (self.width, self.keys), "v": (self.width, self.keys)}
        mlp = {"up": (self.width, self.inner), "down": (self.inner, self.width)}
        gate = {"gate": (self.width, self.inner)} if self.gated else {}
        return attention | {"o": (self.queries, self.width)} | gate | mlp

    @property
    def weights(self) -> int:
        """Numbers in the matrices of all layers."""
        return self.layers * sum(a * b for a, b in self.linears.values())


def shape_of(work: Work) -> Shape:
    """The sizes that config.json of the work's base has."""
    config = AutoConfig.from_pretrained(work.base)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = width * getattr(config, "num_key_value_heads", heads)
    words = 0 if work.is_encoder else config.vocab_size
    return Shape(
        config.num_hidden_layers, config.hidden_size, width * heads, keys, config.intermediate_size,
        not work.is_encoder, words,
    )  # fmt: skip


def step(work: Work) -> dict[str, float]:
    """{"flops", "full_flops", "bytes"} of a LoRA step: 4 FLOPs a frozen weight and token, 6 for `full_flops`.

    Attention is two products forward and four back, half of each where it is causal. Each pass reads all weights, and
    the backward one what the forward one wrote: each linear layer's input.
    """
    shape, tokens = shape_of(work), work.rows * work.length
    seen = work.length / (1 if work.is_encoder else 2)
    attention = 3 * 2 * 2 * tokens * seen * shape.queries * shape.layers
    head = shape.width * shape.words
    dense = shape.weights + head
    adapted = sum(a + b for name, (a, b) in shape.linears.items() if _is_adapted(work, name))
    lora = 6 * work.rank * adapted * shape.layers * tokens
    number = 2 if work.dtype == "bfloat16" else 4
    stored = {"nf4": 0.53}.get(work.quantize or "", number)
    inputs = tokens * shape.layers * sum(a for a, _ in shape.linears.values())
    return {
        "flops": 4 * tokens * dense + attention + lora,
        "full_flops": 6 * tokens * dense + attention,
        "bytes": 2 * (stored * shape.weights + number * head) + 2 * number * inputs,
    }


def decoded(work: Work, prompt: int, new: int) -> dict[str, float]:
    """{"flops", "bytes"} of completing `rows` prompts: a new token reads all weights, and keys and values so far."""
    shape, number = shape_of(work), 2 if work.dtype == "bfloat16" else 4
    dense, length = shape.weights + shape.width * shape.words, prompt + new / 2
    cache = 2 * number * work.rows * length * shape.keys * shape.layers
    tokens = work.rows * (prompt + new)
    attention = 4 * work.rows * shape.queries * shape.layers * (prompt**2 / 2 + new * length)
    flops = 2 * tokens * shape.weights + 2 * work.rows * (new + 1) * shape.width * shape.words + attention
    return {"flops": flops, "bytes": (new + 1) * number * dense + new * cache}


def _is_adapted(work: Work, name: str) -> bool:
    of_an_encoder = {"q": "query", "k": "key", "v": "value"}.get(name, "dense")
    return (of_an_encoder if work.is_encoder else f"{name}_proj") in work.modules


def share(must: dict[str, float], rates: dict[str, Any], dtype: str, seconds: float, flops: str = "flops") -> float:
    """Of the measured seconds, the share that the machine needs at least."""
    return max(must[flops] / rates[dtype], must["bytes"] / rates["copy"]) / seconds


def _best(call: Callable[[], Any]) -> float:
    call()
    found = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return min(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
