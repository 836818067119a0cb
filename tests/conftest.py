"""The whole suite runs where JAX refuses to spread ranks and to mix dtypes by itself: users may run there."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
