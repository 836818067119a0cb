"""One leaf from the tensors of its file: their numbers, turned and stacked, and none of them read in vain.

How leaves lie on eight devices, and that each reads its own part, is in test_base.py.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jlora
from jlora.files.safetensors_reader import open_safetensors
from jlora.pretrained import place_leaf
from jlora.pretrained.place_leaf import load_leaf
from jlora.quantization.encode import quantize_leaf
from tests.support.adapters.lora_cases import normal

UP, GPT2, ONE = (f"params/{rest}" for rest in ("layers/up_proj/kernel", "h/c_attn/weight", "layers_1/up_proj/kernel"))
DENSE = {"params/lm_head/kernel": (64, 48), "params/embed_tokens/embedding": (64, 48), "params/norm/scale": (48,)}
LEAVES = {UP: (64, 48), GPT2: (48, 64), ONE: (64, 48), "params/layer/output/dense/bias": (48,)} | DENSE
"""{path of a leaf: the shape of a tensor in its file}."""
STACKED = {UP, GPT2, "params/layer/output/dense/bias"}


@dataclasses.dataclass
class _Noted:
    """A tensor in memory that notes the parts that are read of it."""

    value: np.ndarray
    parts: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def shape(self):
        return self.value.shape

    def read(self, dtype, index=()):
        self.parts.append(self.value[index])
        return self.parts[-1].astype(dtype)


def _values(path):
    """What the file has for a leaf: three layers of a stack, or one tensor."""
    return [np.asarray(normal(seed, *LEAVES[path])) for seed in range(3 if path in STACKED else 1)]


def _expected(path, values, dtype, store=lambda layer: layer):
    layers = [store(jnp.asarray(value.T if path.endswith("/kernel") else value).astype(dtype)) for value in values]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *layers) if path in STACKED else layers[0]


def _assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("path", LEAVES)
def test_a_leaf_is_its_files_tensor_or_the_stack_of_them(path, dtype, tmp_path):
    values = _values(path)
    save_file({str(layer): value for layer, value in enumerate(values)}, tmp_path / "model.safetensors")
    stored = open_safetensors(tmp_path / "model.safetensors")
    tensors = [stored[str(layer)] for layer in range(len(values))]
    _assert_same(load_leaf(path, tensors, dtype, None, None), _expected(path, values, dtype))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("path", [UP, GPT2, ONE])
def test_a_quantized_leaf_is_each_layer_quantized(path, kind):
    values = _values(path)
    found = load_leaf(path, [_Noted(value) for value in values], jnp.bfloat16, kind, None)
    _assert_same(found, _expected(path, values, jnp.bfloat16, lambda layer: quantize_leaf(layer, kind)))


@pytest.mark.parametrize("path", DENSE)
def test_heads_embeddings_and_norms_stay_dense(path):
    values = _values(path)
    found = load_leaf(path, [_Noted(value) for value in values], jnp.float32, "nf4", None)
    _assert_same(found, _expected(path, values, jnp.float32))


@pytest.mark.parametrize("kind", [None, "int8"])
@pytest.mark.parametrize("path", LEAVES)
def test_on_a_mesh_it_is_the_same_leaf_and_each_tensor_is_read_once(path, kind):
    tensors = [_Noted(value) for value in _values(path)]
    found = load_leaf(path, tensors, jnp.float32, kind, jlora.make_mesh(devices=jax.devices()[:1]))
    assert [[part.shape for part in tensor.parts] for tensor in tensors] == [[LEAVES[path]]] * len(tensors)
    _assert_same(found, load_leaf(path, tensors, jnp.float32, kind, None))


def _slices(size, count):
    return [slice(start, start + size // count) for start in range(0, size, size // count)]


@pytest.mark.parametrize("path", [UP, GPT2])
def test_a_part_of_a_leaf_is_read_as_that_part_of_its_tensor(path, monkeypatch):
    """The parts of eight devices, a grid of 4 x 2, are asked for in turn."""

    def on_eight(shape, sharding, part):
        rows, columns = (_slices(size, count) for size, count in zip(shape, (4, 2), strict=True))
        return jnp.block([[part((row, column)) for column in columns] for row in rows])

    monkeypatch.setattr(place_leaf, "on_devices", on_eight)
    tensors = [_Noted(value) for value in _values(path)]
    found = load_leaf(path, tensors, jnp.float32, None, jlora.make_mesh(devices=jax.devices()[:1]))
    _assert_same(found, _expected(path, _values(path), jnp.float32))
    assert [[part.size for part in tensor.parts] for tensor in tensors] == [[64 * 48 // 8] * 8] * 3
