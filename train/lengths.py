"""The lengths that a run's batches are padded to: each one more saves padding, and costs programs to compile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jlora.paths import leaves_by_path
from train import manifest
from train.batches import bucket_lengths
from train.run_config import RunConfig, steps_of

MOST = 16
"""Lengths at most, whatever they save."""

COMPILE_SECONDS = {"cpu": 8.0, "gpu": 30.0, "tpu": 30.0}
"""What one more length costs by platform: its programs to train, to evaluate and to check merged/. The CPU's figure was
measured on two cores (MiniLM, LoRA on all linears, dropout: 6 + 1 + 1 seconds); the others are guesses."""

FLOPS = {"cpu": 1.2e11, "gpu": 1e14, "tpu": 1e14}
"""FLOP/s of a training step by platform. The CPU's figure was measured on two cores, in float32 (MiniLM, 32 x 64
tokens: 1.1e11, SmolLM2, 4 x 256: 1.3e11); the others are guesses."""

BFLOAT16_ON_A_CPU = 1.4
"""How much faster a CPU with bfloat16 units trains in that dtype, of the same measurements."""

EVALUATION = 0.5
"""The work of a token in evaluation, as a share of that in training."""


def choose_lengths(config: RunConfig, rows: Mapping[str, np.ndarray], base: Any) -> tuple[int, ...]:
    """The padded lengths of a run's batches, ascending: `train.bucket_count` of them at most.

    Where that is null, each further length saves more seconds of padding over the whole run than its programs take to
    compile. Both are estimated from the figures above, and not measured, so that all processes choose the same.

    Args:
      rows: {split: int (n,), the rows' lengths in tokens}; `train` is among them.
      base: the model's base, arrays or ShapeDtypeStructs: its size says how long a token takes.
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
    config: RunConfig, rows: Mapping[str, np.ndarray], base: Any, *, resume: bool = False
) -> tuple[int, ...]:
    """As `choose_lengths`; a run that is resumed keeps its own, also where its epochs or the platform are others now.

    Raises:
      JloraError: the manifest of the run to resume is damaged.
    """
    recorded = manifest.batch_lengths(Path(config.output_dir)) if resume else ()
    longest = bucket_lengths(np.concatenate(list(rows.values())), 1, limit=config.data.max_length)
    if recorded and longest and recorded[-1] >= longest[-1]:
        return recorded
    return choose_lengths(config, rows, base)


def program_tokens(config: RunConfig, base: Any) -> float:
    """The tokens that could be trained on in the time that one more length costs."""
    leaves = {path: leaf for path, leaf in leaves_by_path(base).items() if not path.endswith("embedding")}
    weights = sum(int(np.prod(leaf.shape)) for leaf in leaves.values() if len(leaf.shape) > 1)
    # Forward and towards the activations 2 FLOPs a weight and token each; towards the weights 2 more.
    flops = (6 if config.method == "full" else 4) * max(1, weights)
    platform = jax.default_backend()
    known = platform if platform in FLOPS else "gpu"  # cuda, rocm and whatever else computes fast
    faster = BFLOAT16_ON_A_CPU if known == "cpu" and config.train.dtype == "bfloat16" else 1.0
    return COMPILE_SECONDS[known] * FLOPS[known] * faster / flops
