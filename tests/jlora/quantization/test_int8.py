"""int8 with a scale a row is what bitsandbytes stores for LLM.int8."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jlora.quantization import int8


def _matrix() -> np.ndarray:
    return (0.02 * np.random.default_rng(0).standard_normal((48, 80))).astype(np.float32)


def test_codes_and_scales_are_those_of_bitsandbytes():
    torch = pytest.importorskip("torch", reason="the oracle is bitsandbytes")
    functional = pytest.importorskip("bitsandbytes", reason="the oracle is bitsandbytes").functional
    stored = int8.encode(jnp.asarray(_matrix()))
    codes, scales, _ = functional.int8_vectorwise_quant(torch.from_numpy(_matrix()))
    assert (np.asarray(stored.codes) == codes.numpy()).all()
    assert (np.asarray(stored.scales) == scales.numpy()).all()
    expected = functional.int8_vectorwise_dequant(codes, scales).numpy()
    assert np.abs(np.asarray(int8.decode(stored)) - expected).max() < 1e-8


def test_no_number_is_off_by_more_than_half_a_step():
    stored = int8.encode(jnp.asarray(_matrix()))
    errors = np.abs(np.asarray(int8.decode(stored)) - _matrix())
    assert (errors <= 0.501 * np.asarray(stored.scales)[:, None] / 127).all()


def test_a_row_of_zeros_stays_one():
    matrix = jnp.asarray(_matrix()).at[3].set(0.0)
    assert (int8.decode(int8.encode(matrix))[3] == 0).all()
