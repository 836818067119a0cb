"""Functions of every make that the laws are held on: plain JAX, Flax linen and NNX, Equinox, Haiku, Keras.

FUNCTIONS is {name: what builds the Case, once}: nothing is built before a test asks for it. Weights are called as
their framework calls them.
"""

from __future__ import annotations

from tests.support.functions import flax_modules as functions_flax  # noqa: F401  # enters its functions into the table
from tests.support.functions import linear_maps as functions_linear  # noqa: F401
from tests.support.functions import other_modules as functions_others  # noqa: F401
from tests.support.functions import plain as functions_plain  # noqa: F401
from tests.support.functions.cases import FUNCTIONS, Case, is_weight, normal

__all__ = ["FUNCTIONS", "Case", "is_weight", "normal"]
