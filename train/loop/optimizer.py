"""AdamW with clipping, warmup and decay, and the choice of leaves for weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jlora import labels
from train.config.sections import TrainSection

Schedule = Callable[[jax.Array], jax.Array]


def schedule(train: TrainSection, learning_rate: float | jax.Array, steps: int) -> Schedule:
    """Makes step -> learning rate: linear warmup from 0, then linear or cosine decay to 0, or constant.

    With w steps of warmup, step s (from 0) has learning_rate * s / w while s < w, and then, with left = (steps - s) /
    (steps - w), within 0 and 1: times left (linear), times (1 - cos(pi * left)) / 2 (cosine), or unchanged (constant).

    Args:
      train: has `schedule`, and `warmup_steps` or else `warmup_ratio` of the steps, rounded up.
      learning_rate: the peak; it may be traced.
      steps: optimizer steps in all.
    """
    warmup = math.ceil(train.warmup_ratio * steps) if train.warmup_steps is None else train.warmup_steps
    shapes: dict[str, Callable[[jax.Array], jax.Array]] = {
        "constant": jnp.ones_like,
        "linear": lambda left: left,
        "cosine": lambda left: 0.5 * (1 - jnp.cos(jnp.float32(math.pi) * left)),
    }

    def rate(step: jax.Array) -> jax.Array:
        count = jnp.asarray(step, jnp.float32)
        rising = jnp.minimum(count / max(1, warmup), 1.0)
        left = jnp.clip((steps - count) / max(1, steps - warmup), 0.0, 1.0)
        return learning_rate * jnp.where(count < warmup, rising, shapes[train.schedule](left))

    return rate


def optimizer(
    train: TrainSection, rate: Schedule, ratio: float | jax.Array | None = None
) -> optax.GradientTransformation:
    """Makes AdamW, after clipping by the norm over all trained leaves; its state has only the trained leaves.

    Args:
      train: `adam_beta1`, `adam_beta2`, `adam_epsilon`, `weight_decay` of the leaves in `decay_mask`, and
        `max_grad_norm`; None or 0 does not clip.
      rate: a result of `schedule`.
      ratio: by what the rate of the leaves in `loraplus_mask` is multiplied; it may be traced. None means
        `train.loraplus_lr_ratio`, or 1.
    """
    adamw = optax.adamw(
        rate,
        b1=train.adam_beta1,
        b2=train.adam_beta2,
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        mask=decay_mask,
    )
    parts = [optax.clip_by_global_norm(train.max_grad_norm)] if train.max_grad_norm else []
    ratio = train.loraplus_lr_ratio if ratio is None else ratio
    faster = [] if ratio is None else [optax.masked(optax.scale(ratio), loraplus_mask)]
    return optax.chain(*parts, adamw, *faster) if parts or faster else adamw


def loraplus_mask(trainable: dict[str, Any]) -> dict[str, Any]:
    """Returns a tree of the structure of `trainable` that is True for leaves with LoRA+'s higher rate.

    These are the B of linear layers and convolutions (Hayou et al. 2024, arXiv:2402.12354), which start at zero. An
    embedding's B starts at random and has the rate of all else.

    Args:
      trainable: {path: entry}, the first result of `jlora.split`.
    """
    mask = {}
    for path, entry in labels(trainable).items():
        is_lookup = getattr(entry, "kind", None) == "lookup"
        mask[path] = jax.tree.map(lambda label, off=is_lookup: label == "b" and not off, entry)
    return mask


_MATRICES = ("/kernel", "/weight", "/embedding")


def decay_mask(trainable: dict[str, Any]) -> dict[str, Any]:
    """Returns a tree of the structure of `trainable` that is True for leaves with weight decay.

    These are A, B, trained rows, and whole leaves whose path ends in `/kernel`, `/weight` (GPT-2's matrices) or
    `/embedding`. Biases and norms are not decayed, and neither are DoRA's magnitudes, which are norms of weights.

    Args:
      trainable: {path: entry}, the first result of `jlora.split`.
    """
    mask = {}
    for path, entry in labels(trainable).items():
        decayed = ("a", "b", "rows", "head") if path.endswith(_MATRICES) else ("a", "b", "rows")
        mask[path] = jax.tree.map(lambda label, decayed=decayed: label in decayed, entry)
    return mask
