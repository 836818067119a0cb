"""Splash attention, interpreted, is attention by blocks; what it cannot do is said; a TPU's program calls it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.errors import JloraError
from jlora.models.attention.attention import attention
from jlora.models.attention.blockwise import Options, blockwise_attention
from jlora.models.attention.splash import splash_attention, splash_obstacle
from jlora.models.attention.visibility import Visibility

LENGTH = 200  # no multiple of the kernel's blocks
TEXTS = np.repeat([0, 1, 2], [90, 60, 50])[None]
PADDED = np.where(np.arange(LENGTH) < 180, 0, -1)[None]
ZEROS = np.zeros_like(PADDED)
GAP = np.where((np.arange(LENGTH) < 20) | (np.arange(LENGTH) > 120), 0, -1)[None]
CASES = {
    "causal": ({"causal": True}, {}),
    "window": ({"causal": True, "window": 30}, {}),
    "padding": ({"query_segments": ZEROS, "key_segments": PADDED}, {}),
    "a row without tokens": ({"query_segments": ZEROS, "key_segments": ZEROS - 1}, {}),
    "padding in front": ({"query_segments": ZEROS, "key_segments": PADDED[:, ::-1], "causal": True}, {}),
    "a window of padding": ({"query_segments": ZEROS, "key_segments": GAP, "causal": True, "window": 30}, {}),
    "texts": ({"query_segments": TEXTS, "key_segments": TEXTS, "causal": True, "packed": True}, {}),
    "soft cap": ({"causal": True}, {"softcap": 3.0}),
}


def _inputs(dtype, heads=4):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(1, LENGTH, heads, 16), (1, LENGTH, 2, 16), (1, LENGTH, 2, 16), (1, LENGTH, heads, 16)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("name", CASES)
def test_values_and_slopes_are_those_of_blocks(name, dtype, tolerance):
    conditions, more = CASES[name]
    visibility = Visibility(**{k: jnp.int32(v) if isinstance(v, np.ndarray) else v for k, v in conditions.items()})
    options, (query, key, value, slope) = Options(0.25, **more), _inputs(dtype)

    def splash(*arrays):
        return splash_attention(options, *arrays, visibility, interpret=True)

    def blocks(*arrays):
        return blockwise_attention(options, *arrays, None, visibility, None)

    results = []
    for fn in (splash, blocks):
        found, back = jax.vjp(jax.jit(fn), query, key, value)
        results.append((found, *back(slope)))
    for found, expected in zip(*results, strict=True):
        found, expected = np.float32(found), np.float32(expected)
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0)


def test_a_tpu_runs_the_kernel_and_other_platforms_run_blocks():
    visibility = Visibility(causal=True)
    step = jax.jit(jax.grad(lambda x: attention(x, x, x, visibility).sum()))
    traced = step.trace(jax.ShapeDtypeStruct((1, 1024, 2, 16), jnp.bfloat16))
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cpu")}
    assert "tpu_custom_call" in texts["tpu"]
    assert "tpu_custom_call" not in texts["cpu"]
    for text in texts.values():
        assert "1024x1024" not in text


@pytest.mark.parametrize(
    ("options", "visibility", "facts", "reason"),
    [
        (Options(1.0), Visibility(), {"biased": True, "dropped": False}, "ALiBi"),
        (Options(1.0), Visibility(), {"biased": False, "dropped": True}, "dropout"),
        (Options(1.0), Visibility(start=jnp.int32(0)), {"biased": False, "dropped": False}, "cache"),
        (Options(1.0, 2.0), Visibility(causal=True, window=2), {"biased": False, "dropped": False}, None),
    ],
)
def test_what_it_cannot_do_is_said(options, visibility, facts, reason):
    query = jnp.zeros((1, 8, 2, 4))
    found = splash_obstacle(options, query, query, visibility, **facts)
    assert found == reason if reason is None else reason in found


def test_asked_for_what_it_cannot_do_it_says_why():
    query = jnp.zeros((1, 8, 2, 4))
    with pytest.raises(JloraError, match=r"train\.attention: .* found splash: it has no dropout"):
        attention(query, query, query, Visibility(kernel="splash"), dropout_key=jax.random.key(0), dropout_rate=0.1)
