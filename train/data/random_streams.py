"""One seeded permutation for samples, splits and epochs."""

import numpy as np


def permutation(count: int, *seed: int) -> np.ndarray:
    """Returns 0 .. count-1, int64 (count,), in an order that depends only on the non-negative integers `seed`.

    It uses the raw words of a bit generator, the only stream that NumPy promises never to change.
    """
    words = np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(words, kind="stable")
