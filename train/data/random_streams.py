"""The random draws of a run: each use has a stream of its own, so that no two of them share random numbers."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax

VERSION = 2
"""Raised when a stream's numbers change: a run cannot be resumed across that change. 1: streams that collided."""


class Stream(IntEnum):
    """What a random draw is for. The numbers are part of a run's results: add new ones, never reuse or change them."""

    EPOCH_ROWS = 1
    """The order of the rows in an epoch."""
    EPOCH_BATCHES = 2
    """The order of the full batches of an epoch."""
    VALIDATION_SPLIT = 3
    """Which training rows become validation data."""
    TEST_SPLIT = 4
    """Which training rows become test data."""
    TRAIN_SAMPLE = 5
    """Which training rows `data.max_rows` keeps."""
    VALIDATION_SAMPLE = 6
    TEST_SAMPLE = 7
    SAMPLE_TIES = 8
    """Which classes get the last rows of a balanced sample."""
    NEW_HEAD = 9
    """The weights of a new head."""
    ADAPTER = 10
    """The initial adapter."""
    DROPOUT = 11
    """The dropout of all training steps."""
    COMPLETIONS = 12
    """The tokens of samples.jsonl."""
    BENCHMARK_ROWS = 13
    """The rows that a benchmark takes from a data set."""
    SWEEP_POINTS = 14
    """Which points of its grid a random sweep takes."""


SPLIT_STREAMS = {"validation": Stream.VALIDATION_SPLIT, "test": Stream.TEST_SPLIT}
SAMPLE_STREAMS = {
    "train": Stream.TRAIN_SAMPLE,
    "validation": Stream.VALIDATION_SAMPLE,
    "test": Stream.TEST_SAMPLE,
}


def permutation(count: int, stream: Stream, seed: int, *part: int) -> np.ndarray:
    """Returns 0 .. count-1, int64 (count,), in an order that depends only on the other arguments.

    `part` numbers the draws of one stream, such as the epochs. The words come from a bit generator, which NumPy
    promises never to change. Stream and part are the seed sequence's spawn key: as further entropy, (1,) and (1, 0)
    would give the same words, because NumPy pads the entropy with zeros.
    """
    return np.argsort(random_words(count, stream, seed, *part), kind="stable")


def random_words(count: int, stream: Stream, seed: int, *part: int) -> np.ndarray:
    """Returns uint64 (count,) that depend only on the other arguments, as `permutation` describes."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream, *part))).random_raw(count)


def stream_key(seed: int, stream: Stream) -> jax.Array:
    """Returns the JAX key of a stream: `jax.random.fold_in(jax.random.key(seed), stream)`."""
    import jax  # not for --help

    return jax.random.fold_in(jax.random.key(seed), stream)
