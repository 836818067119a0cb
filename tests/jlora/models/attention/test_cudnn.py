"""cuDNN's kernel is in the program of a GPU where it can compute the call, with the rows and texts as they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.errors import JloraError
from jlora.models.attention import cudnn
from jlora.models.attention.attention import attention
from jlora.models.attention.blockwise import Options
from jlora.models.attention.cudnn import _prefixes, _texts, cudnn_obstacle
from jlora.models.attention.visibility import Visibility, causal_visibility, mask_visibility

NOTHING = {"biased": False, "dropped": False}


@pytest.fixture
def hopper(monkeypatch):
    """As on an H100 with cuDNN 9.10; the programs are lowered, and not run."""
    monkeypatch.setattr(cudnn.cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn.cudnn, "check_compute_capability", lambda capability: True)


def _lowered(visibility, platform, dtype=jnp.bfloat16, length=256, **options):
    step = jax.jit(jax.grad(lambda q, k: attention(q, k, k, visibility, **options).astype(jnp.float32).sum(), (0, 1)))
    shapes = [jax.ShapeDtypeStruct((2, length, heads, 64), dtype) for heads in (4, 2)]
    return step.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


CASES = {
    "causal": Visibility(causal=True),
    "window": Visibility(causal=True, window=32),
    "padding": mask_visibility(jnp.ones((2, 256), jnp.int32), "auto"),
    "texts": causal_visibility(
        {"attention_mask": jnp.ones((2, 256), jnp.int32), "segment_ids": jnp.zeros((2, 256), jnp.int32)},
        *(None, None, None, "auto"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_gpu_calls_cudnn_forth_and_back(name, hopper):
    text = _lowered(CASES[name], "cuda")
    assert "__cudnn$fmhaSoftmax" in text
    assert "__cudnn$fmhaSoftmaxBackward" in text
    assert "__cudnn" not in _lowered(CASES[name], "cpu")


@pytest.mark.parametrize(("tensor", "reason"), [(2, None), (4, "4 heads otherwise than the 2 of the keys"), (8, None)])
def test_a_mesh_splits_both_kinds_of_heads_or_neither(tensor, reason, hopper):
    kinds = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.sharding.AbstractMesh((1, 1, tensor), ("data", "fsdp", "tensor"), axis_types=kinds)
    query, key = (jax.ShapeDtypeStruct((1, 8, heads, 64), jnp.bfloat16) for heads in (4, 2))
    with jax.sharding.use_abstract_mesh(mesh):
        found = cudnn_obstacle(Options(1.0), query, key, Visibility(causal=True), **NOTHING)
    assert found == reason if reason is None else reason in found


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"dtype": jnp.float32}])
def test_what_it_cannot_do_goes_by_blocks(options, hopper):
    assert "__cudnn" not in _lowered(Visibility(causal=True), "cuda", **options)


@pytest.mark.parametrize(
    ("query", "options", "visibility", "facts", "reason"),
    [
        (((1, 8, 2, 64), jnp.float32), Options(1.0), Visibility(), NOTHING, "bfloat16 or float16, found float32"),
        (((1, 8, 2, 63), jnp.bfloat16), Options(1.0), Visibility(), NOTHING, "multiple of 8; found 63"),
        (((1, 8, 2, 64), jnp.bfloat16), Options(1.0, 2.0), Visibility(), NOTHING, "soft cap"),
        (((1, 8, 2, 64), jnp.bfloat16), Options(1.0), Visibility(), NOTHING | {"biased": True}, "ALiBi"),
        (((1, 8, 2, 64), jnp.bfloat16), Options(1.0), Visibility(), NOTHING | {"dropped": True}, "dropout"),
        (((1, 8, 2, 64), jnp.bfloat16), Options(1.0), Visibility(start=jnp.int32(0)), NOTHING, "cache"),
    ],
)
def test_what_it_cannot_do_is_said(query, options, visibility, facts, reason, hopper):
    array = jax.ShapeDtypeStruct(*query)
    assert reason in cudnn_obstacle(options, array, array, visibility, **facts)


def test_without_cudnn_it_is_said_that_there_is_none(monkeypatch):
    def none() -> int:
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(cudnn.cudnn, "check_cudnn_version", none)
    query = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    with pytest.raises(JloraError, match=r"train\.attention: .* found cudnn: it was not found"):
        attention(query, query, query, Visibility(kernel="cudnn"))


@pytest.mark.parametrize(
    ("numbers", "lengths", "fits"),
    [([[0, 0, -1]], [2], True), ([[0, 0, 0]], [3], True), ([[-1, 0, 0]], [2], False), ([[-1, -1, -1]], [0], False)],
)
def test_padding_at_the_end_is_told_by_lengths(numbers, lengths, fits):
    found, is_prefix = _prefixes(jnp.array(numbers))
    np.testing.assert_array_equal(found, lengths)
    assert is_prefix == fits


def test_texts_are_told_by_lengths_and_starts(monkeypatch):
    monkeypatch.setattr(cudnn, "_SHORTEST_TEXT", 2)
    queries = jnp.array([[1, 1, 2, 2, 2, 0], [4, 4, 4, 4, 4, 4]])
    keys = jnp.array([[1, 1, 2, 2, 2, -1], [4, 4, 4, 4, 4, 4]])
    lengths, starts, fits = _texts(queries, keys)
    np.testing.assert_array_equal(lengths, [[2, 3, -1], [6, -1, -1]])
    np.testing.assert_array_equal(starts, [[0, 2, -1, -1], [0, -1, -1, -1]])
    assert fits


@pytest.mark.parametrize(
    "numbers", [[[1, 2, 3, 4, 5, 6]], [[1, 1, 2, 2, 1, 1]], [[-1, 1, 1, 1, 1, 1]]], ids=["many", "again", "left"]
)
def test_texts_that_lengths_do_not_tell_go_by_blocks(numbers, monkeypatch):
    monkeypatch.setattr(cudnn, "_SHORTEST_TEXT", 2)
    assert not _texts(jnp.array(numbers), jnp.array(numbers))[2]
