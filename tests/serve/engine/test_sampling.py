"""Each row is drawn by its own temperature, top_p and seed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jlora.generation.sampling import filter_logits
from serve.engine.sampling import TOP, Choice, draw_rows, token_of

LOGITS = jax.random.normal(jax.random.key(0), (3, 50)) * 3


def _choice(rows, **fields):
    plain = {
        "temperature": np.zeros(rows, np.float32),
        "top_p": np.ones(rows, np.float32),
        "seed": np.arange(rows, dtype=np.uint32),
        "drawn": np.zeros(rows, np.int32),
        "wants_top": np.zeros(rows, bool),
    }
    return Choice(**plain | {name: np.asarray(value, plain[name].dtype) for name, value in fields.items()})


def test_temperature_zero_takes_the_likeliest():
    drawn = draw_rows(LOGITS, _choice(3, temperature=[0, 1, 0], wants_top=[1, 0, 0]))
    assert drawn.token[0] == LOGITS[0].argmax()
    assert drawn.token[2] == LOGITS[2].argmax()
    logprobs = jax.nn.log_softmax(LOGITS)
    np.testing.assert_allclose(drawn.logprob, jnp.take_along_axis(logprobs, drawn.token[:, None], 1)[:, 0], rtol=1e-6)
    token = token_of(jax.device_get(drawn), 0, 5)
    assert [index for index, _ in token.top] == jnp.argsort(-LOGITS[0])[:5].tolist()
    assert drawn.top_ids.shape == (3, TOP)


def test_a_row_does_not_depend_on_the_others():
    fields = {"temperature": [0.7, 1.3, 1.0], "top_p": [0.5, 1.0, 0.9], "seed": [4, 5, 6], "drawn": [0, 3, 9]}
    together = draw_rows(LOGITS, _choice(3, **fields)).token
    for row in range(3):
        alone = draw_rows(
            LOGITS[row : row + 1], _choice(1, **{name: value[row : row + 1] for name, value in fields.items()})
        )
        assert alone.token[0] == together[row]


def test_frequencies_are_those_of_the_filtered_probabilities():
    count, row = 20_000, LOGITS[:1]
    fields = {"temperature": [0.8] * count, "top_p": [0.7] * count, "seed": range(count), "drawn": [2] * count}
    found = np.bincount(draw_rows(jnp.repeat(row, count, 0), _choice(count, **fields)).token, minlength=50) / count
    expected = jax.nn.softmax(filter_logits(row[0] / 0.8, top_p=0.7))
    np.testing.assert_allclose(found, expected, atol=0.015)
    assert (found[expected == 0] == 0).all()


def test_logits_that_are_not_finite_are_noticed():
    drawn = draw_rows(LOGITS.at[1, 7].set(jnp.nan), _choice(3))
    assert drawn.is_finite.tolist() == [True, False, True]
