"""Rotary positions: lengths are kept, only distances count, and the scalings are those of transformers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.models.blocks.rotary import longest_row, rotary_frequencies, rotary_scale, rotate, rotation
from tests.support.adapters.lora_cases import normal
from tests.support.models import decoder_cases as cases
from tests.support.models.encoder_cases import difference

LONG = {"original_max_position_embeddings": 16}


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


@pytest.mark.parametrize(
    ("parameters", "length"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 64),
        (cases.LLAMA3, 64),
        (cases.YARN, 64),
        (cases.YARN | {"mscale": 0.7, "mscale_all_dim": 0.9, "beta_fast": 4, "beta_slow": 2, "truncate": False}, 64),
        (cases.YARN | {"attention_factor": 1.5}, 64),
        ({"rope_type": "dynamic", "factor": 4.0}, 50),
        ({"rope_type": "dynamic", "factor": 4.0}, 200),
        (cases.LONGROPE | LONG, 16),
        (cases.LONGROPE | LONG, 17),
        (cases.LONGROPE | LONG | {"factor": 3.0}, 17),
    ],
)
def test_scalings_are_those_of_transformers(parameters, length):
    functions = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    pytest.importorskip("torch")
    config = _config(**parameters)
    expected, factor = functions[parameters["rope_type"]](config, "cpu", seq_len=length)
    width = 2 * len(expected)
    assert difference(rotary_frequencies(config, width, length).ravel(), expected.numpy()) < 1e-6
    assert rotary_scale(config) == pytest.approx(factor, rel=1e-6)
    by_row = rotary_frequencies(config, width, jnp.array([1, length]))
    assert difference(by_row.reshape(-1, width // 2)[-1], expected.numpy()) < 1e-6
    cos, sin = rotation(jnp.array([[3]]), rotary_frequencies(config, width, length), jnp.float32, rotary_scale(config))
    assert difference((cos**2 + sin**2).ravel(), np.full(width // 2, factor**2)) < 1e-6


def test_each_type_of_layer_has_its_own_positions():
    config = cases.tiny_decoder("gemma3_text", rope_parameters=cases.GEMMA3_POSITIONS)
    full, sliding = (rotary_frequencies(config, 8, 1, name) for name in ("full_attention", "sliding_attention"))
    assert difference(full, 1e6 ** -(np.arange(4) / 4) / 8) < 1e-6
    assert difference(sliding, 1e4 ** -(np.arange(4) / 4)) < 1e-6


@pytest.mark.parametrize(
    ("parameters", "longest"),
    [
        ({"rope_type": "default"}, 64),
        (cases.LLAMA3, 64),
        (cases.LONGROPE | LONG, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        (cases.YARN, 64),
        (cases.YARN | {"factor": 8.0}, 128),
    ],
)
def test_the_longest_row_is_where_a_scaling_ends(parameters, longest):
    assert longest_row(_config(**parameters)) == longest


def test_an_unknown_scaling_is_named():
    config = _config(rope_type="default")
    config.rope_parameters = {"rope_type": "linaer", "rope_theta": 1e4}
    with pytest.raises(jlora.JloraError, match=r"rope_parameters\.rope_type: .* found 'linaer'; nearest: linear"):
        rotary_frequencies(config, 8)
    assert rotary_frequencies(_config(rope_type="default"), 8).dtype == np.float32
