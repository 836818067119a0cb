import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.run.checksum import _sum, checksums


def _of(array):
    return checksums({"x": array})["x"]


def _by_hand(array):
    """The same in Python's whole numbers, for words of 32 bits."""
    found = []
    for seed in (0x9E3779B1, 0x85EBCA6B):
        total = 0
        for position, word in enumerate(np.asarray(array).reshape(-1).view(np.uint32).tolist()):
            x = word ^ (position * seed % 2**32)
            x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
            x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
            total += x ^ x >> 16
        found.append(f"{total % 2**32:08x}")
    return "".join(found)


def test_it_is_what_it_says():
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype("f")
    assert _of(array) == _of(jnp.asarray(array)) == _by_hand(array)


@given(place=st.integers(0, 23), bit=st.integers(0, 31))
def test_any_flipped_bit_is_seen(place, bit):
    words = np.arange(24, dtype=np.uint32).reshape(4, 6)
    flipped = words.copy()
    flipped.reshape(-1)[place] ^= np.uint32(1 << bit)
    assert _of(flipped) != _of(words)


def test_signs_and_places_are_seen():
    array = np.random.default_rng(0).normal(size=(8, 8)).astype("f")
    others = [-array, array.T, array[::-1], np.roll(array, 1), np.where(array > 0, array, -array)]
    assert len({_of(other) for other in [array, *others]}) == 6


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8, np.uint8, np.int32, bool]
)
def test_every_type_has_one(dtype):
    array = np.arange(6).astype(dtype)
    assert len(_of(array)) == 16
    assert _of(array) != _of(array[::-1].copy())


def test_scalars_and_nothing_have_one():
    assert _of(np.float32(1)) != _of(np.float32(2))
    assert _of(np.zeros((0, 3), np.float32)) == "0" * 16


def test_shards_do_not_change_it():
    array = np.random.default_rng(0).normal(size=(8, 4)).astype("f")
    mesh = jax.make_mesh((1, 1), ("a", "b"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b"))
    assert _of(jax.device_put(array, sharding)) == _of(array)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "bfloat16", "float16", "float32", "int32"])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 4, 5), (2, 2**15 + 1), (3, 2**15)])
def test_numpy_on_the_host_and_a_program_on_a_device_agree(shape, dtype):
    array = np.random.default_rng(0).normal(scale=50, size=shape).astype(dtype)
    parts = jax.device_get(_sum(jnp.asarray(array))).tolist()
    assert _of(array) == _of(jnp.asarray(array)) == "".join(f"{part:08x}" for part in parts)


def test_words_of_64_bits_are_two_of_32():
    array = np.random.default_rng(0).normal(size=(5, 3))
    assert _of(array) == _of(array.view(np.uint32)) == _by_hand(array)


def test_the_order_of_memory_does_not_count():
    array = np.random.default_rng(0).normal(size=(6, 4)).astype("f")
    assert _of(np.asfortranarray(array)) == _of(array) != _of(array.T)
