"""One seeded permutation for samples, splits and epochs."""

import numpy as np


def permutation(count: int, *seed: int) -> np.ndarray:
    """int64 (count,): 0 .. count-1 in an order that depends on the non-negative integers `seed` alone.

    Made from the raw words of a bit generator, the one stream that NumPy promises never to change.
    """
    words = np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(words, kind="stable")
