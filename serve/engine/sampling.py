"""Draws a token for each row, each with its own temperature, top_p and seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jlora.generation.sampling import apply_temperature, nucleus
from serve.engine.requests import Token

TOP = 20
"""How many of the likeliest tokens can be reported with each token, as in OpenAI's API."""


class Choice(NamedTuple):
    """How the tokens of some rows are drawn, arrays (rows,).

    Attributes:
      temperature: float32; 0 takes the likeliest token.
      top_p: float32, in (0, 1].
      seed: uint32.
      drawn: int32, how many tokens of the answer were drawn before this one.
      wants_top: bool, whether the likeliest tokens are reported.
    """

    temperature: Any
    top_p: Any
    seed: Any
    drawn: Any
    wants_top: Any


class Drawn(NamedTuple):
    """One token for each row.

    Attributes:
      token: int32 (rows,). logprob: float32 (rows,), its log probability in the model, before temperature and top_p.
      top_ids, top_logprobs: (rows, TOP), the likeliest first; zeros if no row wants them.
      is_finite: bool (rows,), false if the logits are NaN, as those of a slot without an adapter are.
    """

    token: jax.Array
    logprob: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array
    is_finite: jax.Array


def draw_rows(logits: jax.Array, choice: Choice) -> Drawn:
    """Draws a token for each row of logits, float32 (rows, vocab); the same seed and number draw the same token."""
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    greedy = logits.argmax(-1).astype(jnp.int32)
    token = lax.cond(
        (choice.temperature > 0).any(),
        lambda: jnp.where(choice.temperature > 0, _draw(logits, choice), greedy),
        lambda: greedy,
    )
    nothing = jnp.zeros((len(logits), TOP), jnp.float32), jnp.zeros((len(logits), TOP), jnp.int32)
    top, top_ids = lax.cond(choice.wants_top.any(), lambda: tuple(lax.top_k(logprobs, TOP)), lambda: nothing)
    own = jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]
    return Drawn(token, own, top_ids, top, jnp.isfinite(logits.max(-1)))


def _draw(logits: jax.Array, choice: Choice) -> jax.Array:
    heat = jnp.where(choice.temperature > 0, choice.temperature, 1)[:, None]
    scaled = nucleus(apply_temperature(logits, heat), choice.top_p[:, None])

    def draw(seed: jax.Array, drawn: jax.Array, row: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), drawn), row)

    return jax.vmap(draw)(choice.seed, choice.drawn, scaled).astype(jnp.int32)


def token_of(drawn: Drawn, row: int, count: int) -> Token:
    """Returns the token of one row, with the `count` likeliest ones."""
    pairs = zip(drawn.top_ids[row, :count], drawn.top_logprobs[row, :count], strict=True)
    top = tuple((int(token), float(logprob)) for token, logprob in pairs)
    return Token(int(drawn.token[row]), float(drawn.logprob[row]), top)
