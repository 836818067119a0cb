"""Functions of every make that the laws are held on: plain JAX, Flax linen and NNX, Equinox, Haiku, Keras.

FUNCTIONS is {name: what builds the Case, once}: nothing is built before a test asks for it. Weights are called as
their framework calls them.
"""

from __future__ import annotations

from tests.support.functions import (
    flax_modules,  # noqa: F401  # enters its functions into the table
    linear_maps,  # noqa: F401
    other_modules,  # noqa: F401
    plain,  # noqa: F401
)
from tests.support.functions.cases import FUNCTIONS, Case, is_weight, normal

__all__ = ["FUNCTIONS", "Case", "is_weight", "normal"]
