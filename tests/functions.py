"""Functions of every make that the laws are held on: plain JAX, Flax linen and NNX, Equinox, Haiku, Keras.

FUNCTIONS is {name: what builds the Case, once}: nothing is built before a test asks for it. Weights are called as
their framework calls them.
"""

from __future__ import annotations

import functions_flax  # noqa: F401  # enters its functions into the table
import functions_linear  # noqa: F401
import functions_others  # noqa: F401
import functions_plain  # noqa: F401
from function_cases import FUNCTIONS, Case, is_weight, normal

__all__ = ["FUNCTIONS", "Case", "is_weight", "normal"]
