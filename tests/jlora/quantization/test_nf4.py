"""NF4 is what bitsandbytes computes: codes, scales, and what they stand for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.quantization import nf4


@pytest.fixture(scope="module")
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="the oracle is bitsandbytes").functional


def _numbers(size: int, seed: int = 0) -> np.ndarray:
    return (0.02 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def _nearest(numbers: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.abs(numbers[..., None].astype(np.float64) - table).argmin(-1)


@pytest.mark.parametrize("size", [96 * 128, 50 * 37, 65 * 63])  # full blocks, a shorter last one, half a byte
def test_the_codes_are_those_of_bitsandbytes(bitsandbytes, size):
    import torch

    numbers = _numbers(size)
    stored = nf4.encode(jnp.asarray(numbers))
    theirs, state = bitsandbytes.quantize_4bit(
        torch.from_numpy(numbers), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    assert (np.asarray(stored.codes) == theirs.numpy().ravel()).all()
    assert np.allclose(stored.mean, state.offset.numpy(), rtol=1e-6)
    assert np.allclose(stored.steps, state.state2.absmax.numpy(), rtol=1e-4, atol=1e-8)
    # Where a scale lies within 1e-4 of the middle of two entries, bitsandbytes' CPU code may take either.
    assert (np.asarray(stored.scales) == state.absmax.numpy()).mean() > 0.98
    found, expected = nf4.decode(stored, size), bitsandbytes.dequantize_4bit(theirs, state).numpy().ravel()
    assert np.abs(np.asarray(found) - expected).max() < 0.02 * np.abs(numbers).max()
    same = np.repeat(np.asarray(stored.scales) == state.absmax.numpy(), 64)[:size]
    assert np.abs(np.asarray(found) - expected)[same].max() < 1e-6 * np.abs(numbers).max()


def test_the_tables_are_those_of_bitsandbytes(bitsandbytes):
    assert (nf4.dynamic_map() == bitsandbytes.create_dynamic_map().numpy()).all()
    assert (bitsandbytes.get_4bit_type("nf4", device="cpu").numpy() == nf4._QUANTILES).all()


def test_every_code_is_that_of_the_nearest_entry():
    numbers = _numbers(300 * 64, seed=1)
    stored = nf4.encode(jnp.asarray(numbers))
    blocks = numbers.reshape(-1, 64)
    largest = np.abs(blocks).max(-1)
    codes = np.stack([np.asarray(stored.codes) >> 4, np.asarray(stored.codes) & 15], -1).reshape(-1, 64)
    assert (codes == _nearest(blocks / largest[:, None], nf4._QUANTILES)).mean() > 0.9999
    rests = largest - np.asarray(stored.mean)
    steps = np.repeat(np.asarray(stored.steps), 256)[: len(rests)]
    assert (np.asarray(stored.scales) == _nearest(rests / steps, nf4.dynamic_map())).mean() > 0.99


def test_zeros_stay_zeros():
    numbers = jnp.zeros(256).at[:64].set(jnp.asarray(_numbers(64)))
    assert (nf4.decode(nf4.encode(numbers), 256)[64:] == 0).all()
    assert (nf4.decode(nf4.encode(jnp.zeros(64)), 64) == 0).all()


def test_a_stack_is_decoded_as_its_rows_are():
    rows = jnp.asarray(_numbers(3 * 640)).reshape(3, 640)
    stored = jax.vmap(nf4.encode)(rows)
    one_by_one = [nf4.decode(nf4.encode(row), 640) for row in rows]
    assert jnp.abs(nf4.decode(stored, 640) - jnp.stack(one_by_one)).max() < 1e-8


def test_it_takes_half_a_byte_a_number_and_little_more():
    stored = jax.eval_shape(nf4.encode, jax.ShapeDtypeStruct((2**20,), jnp.float32))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in stored)
    assert size / 2**20 == pytest.approx(0.5 + 1 / 64 + 4 / 64 / 256, abs=1e-5)
