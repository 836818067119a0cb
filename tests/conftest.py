"""The whole suite runs where JAX refuses to spread ranks and to mix dtypes by itself: users may run there.

Hypothesis draws the same examples each time, so that a run can be repeated.
"""

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")
