"""Chooses the lengths that a run's batches are padded to: each one saves padding, but needs programs compiled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jlora.tree.leaf_paths import leaves_by_path
from train.config.run_config import RunConfig, steps_of
from train.data.bucketing import bucket_lengths
from train.run import manifest

MOST = 16
"""The most lengths, even if further ones would save time."""

COMPILE_SECONDS = {"cpu": 7.0, "gpu": 30.0, "tpu": 30.0}
"""Seconds that one more length costs, by platform: its programs to train and to evaluate. The CPU's figure was measured
on two cores (MiniLM, LoRA on all linears, dropout: 6 + 1 seconds); the others are guesses."""

FLOPS = {"cpu": 1.2e11, "gpu": 1e14, "tpu": 1e14}
"""FLOP/s of a training step by platform. The CPU's figure was measured on two cores, in float32 (MiniLM, 32 x 64
tokens: 1.1e11, SmolLM2, 4 x 256: 1.3e11); the others are guesses."""

BFLOAT16_ON_A_CPU = 1.4
"""How many times as fast a CPU with bfloat16 units trains in that dtype, from the same measurements."""

EVALUATION = 0.5
"""The work per token in evaluation, as a share of that in training."""


def choose_lengths(config: RunConfig, rows: Mapping[str, np.ndarray], base: Any) -> tuple[int, ...]:
    """Chooses the padded lengths of a run's batches, ascending; at most `train.bucket_count` of them.

    They are the `bucket_lengths` of the rows of all splits, with `data.max_length` as limit. If the count is null, at
    most 16 are chosen, and each further length saves more seconds of padding over the whole run than its programs take
    to compile (`program_tokens`). Both are estimated, not measured, so that all processes choose the same.

    Args:
      rows: {split: int (n,), the rows' lengths in tokens}; `train` is one of the splits.
      base: the model's base, arrays or ShapeDtypeStructs; its size determines how long a token takes.
    """
    every, limit, count = np.concatenate(list(rows.values())), config.data.max_length, config.train.bucket_count
    if count is not None:
        return bucket_lengths(every, count, limit=limit)
    per_epoch, steps = steps_of(config, len(rows["train"]))
    evaluations = EVALUATION * (1 + steps // (config.train.eval_every or per_epoch))
    passes = {name: steps / per_epoch if name == "train" else evaluations for name in rows}
    weights = np.concatenate([np.full(len(lengths), passes[name]) for name, lengths in rows.items()])
    return bucket_lengths(every, MOST, limit=limit, weights=weights, price=program_tokens(config, base))


def lengths_of_run(
    config: RunConfig,
    rows: Mapping[str, np.ndarray],
    base: Any,
    *,
    resume: bool = False,
    width: int | None = None,
) -> tuple[int, ...]:
    """Returns the recorded lengths of a resumed run, or chooses new ones with `choose_lengths`.

    A resumed run keeps its lengths even if its epochs or the platform have changed.

    Args:
      rows: {split: int (n,), the rows' lengths in tokens}; `train` is one of the splits.
      base: the model's base, arrays or ShapeDtypeStructs.
      resume: whether to use the lengths in the manifest of `output_dir`; if it has none, or its longest is too short
        for the rows, new ones are chosen.
      width: the length that all rows are padded to, the only one of the result; None means that a few are chosen.

    Raises:
      JloraError: the manifest of the run to resume is damaged.
    """
    if width is not None:
        return (width,)
    recorded = manifest.batch_lengths(Path(config.output_dir)) if resume else ()
    longest = bucket_lengths(np.concatenate(list(rows.values())), 1, limit=config.data.max_length)
    if recorded and longest and recorded[-1] >= longest[-1]:
        return recorded
    return choose_lengths(config, rows, base)


def program_tokens(config: RunConfig, base: Any) -> float:
    """Returns how many tokens could be trained on in the time that compiling for one more length takes.

    That is COMPILE_SECONDS * FLOPS / (4 * weights) of JAX's default backend: 7 * 1.2e11 / (4 * weights) on a CPU; 6
    instead of 4 with `method: full`, and 1.4 times as many on a CPU in bfloat16. Other backends count as gpu.

    Args:
      base: a tree of arrays or ShapeDtypeStructs; its weights are the elements of leaves with two axes or more,
        embeddings apart, at least 1.
    """
    leaves = {path: leaf for path, leaf in leaves_by_path(base).items() if not path.endswith("embedding")}
    weights = sum(int(np.prod(leaf.shape)) for leaf in leaves.values() if len(leaf.shape) > 1)
    # FLOPs per weight and token: 2 forward, 2 for the activations' gradients, 2 more for those of trained weights.
    flops = (6 if config.method == "full" else 4) * max(1, weights)
    platform = jax.default_backend()
    known = platform if platform in FLOPS else "gpu"  # cuda, rocm and any other fast backend
    faster = BFLOAT16_ON_A_CPU if known == "cpu" and config.train.dtype == "bfloat16" else 1.0
    return COMPILE_SECONDS[known] * FLOPS[known] * faster / flops
