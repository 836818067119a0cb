"""Rotary positions: lengths are kept, only distances count, and the scalings are those of transformers."""

from __future__ import annotations

import decoder_cases as cases
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_cases import difference
from lora_cases import normal

import jlora
from jlora.models.rope import rotary_frequencies, rotate, rotation


def _config(**parameters):
    return cases.tiny_decoder("llama", rope_parameters={"rope_theta": 1e4, **parameters})


def test_lengths_are_kept_and_only_distances_count():
    frequencies = rotary_frequencies(_config(rope_type="default"), 8)
    query, key = normal(1, 1, 1, 2, 8), normal(2, 1, 1, 2, 8)

    def at(x, position):
        return rotate(x, *rotation(jnp.array([[position]]), frequencies, x.dtype))

    assert difference(jnp.linalg.norm(at(query, 7), axis=-1), jnp.linalg.norm(query, axis=-1)) < 1e-6
    assert (at(query, 0) == query).all()
    near, far = (jnp.sum(at(query, 5 + shift) * at(key, 2 + shift), -1) for shift in (0, 40))
    assert difference(far, near) < 1e-5


@pytest.mark.parametrize("parameters", [{"rope_type": "linear", "factor": 4.0}, cases.LLAMA3])
def test_scalings_are_those_of_transformers(parameters):
    functions = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    pytest.importorskip("torch")
    config = _config(**parameters)
    expected, factor = functions[parameters["rope_type"]](config, "cpu")
    assert factor == 1.0
    assert difference(rotary_frequencies(config, config.head_dim), expected.numpy()) < 1e-6


def test_an_unknown_scaling_is_named():
    config = _config(rope_type="default")
    config.rope_parameters = {"rope_type": "linaer", "rope_theta": 1e4}
    with pytest.raises(jlora.JloraError, match=r"rope_parameters\.rope_type: .* found 'linaer'; nearest: linear"):
        rotary_frequencies(config, 8)
    assert rotary_frequencies(_config(rope_type="default"), 8).dtype == np.float32
