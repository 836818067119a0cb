"""PEFT's keys and layouts: which part of an entry is which tensor, and the way back."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.lora.entries import Rows
from jlora.peft.tensor_keys import from_peft, is_conv1d, names_of_adapted, to_peft
from tests.support.adapters.lora_cases import low_rank, normal
from tests.support.models.encoder_cases import difference

PREFIX = "base_model.model."


def test_kernels_of_several_dims_are_flat_in_the_file():
    for spec, shape, sizes in (("ra,rbc->abc", (4, 2, 3), (4, 6)), ("rab,rc->abc", (2, 3, 5), (6, 5))):
        entry = low_rank(spec, shape)
        a, b = to_peft({"dense/kernel": entry}).values()
        assert (a.shape, b.shape) == ((2, sizes[0]), (sizes[1], 2))
        dense = (1.5 * b @ a).T.reshape(shape)
        assert (
            difference(
                jlora.merge({"dense": {"kernel": jnp.zeros(shape)}}, {"dense/kernel": entry})["dense"]["kernel"], dense
            )
            < 1e-6
        )
        back = from_peft(to_peft({"dense/kernel": entry}), {"dense/kernel": entry}, "file")["dense/kernel"]
        assert (back.a == entry.a).all()
        assert (back.b == entry.b).all()


def test_stacks_that_are_no_layers_have_no_form_in_pefts_files(tmp_path):
    adapter = {"experts/kernel": low_rank("arb,arc->abc", (3, 4, 4))}
    with pytest.raises(jlora.JloraError, match=r"^experts/kernel: expected one module a layer.*no form"):
        jlora.save_adapter(tmp_path / "new", adapter, jlora.LoraConfig())
    assert not (tmp_path / "new").exists()


def test_whole_leaves_of_any_name_are_saved_under_their_path():
    value = normal(1, 3, 4)
    assert list(to_peft({"params/scorer/m": jlora.Full(value)})) == ["base_model.model.scorer.m"]


def _dora(entry, shape):
    return dataclasses.replace(entry, magnitude=normal(5, *shape), squared_norm=jnp.ones(shape))


ADAPTER = {
    "params/bert/encoder/layer/query/kernel": dataclasses.replace(
        _dora(low_rank("arb,arc->abc", (3, 4, 5)), (3, 5)), ranks=(2, 0, 1)
    ),
    "params/bert/encoder/layer/query/bias": jlora.Full(normal(1, 2, 5), (0, 1)),
    "params/bert/encoder/layer/norm/scale": jlora.Full(normal(2, 1, 5), (2,)),
    "params/bert/encoder/layer/value/kernel": jlora.Full(normal(3, 3, 4, 5)),
    "params/patches/kernel": _dora(low_rank("rcab,rd->abcd", (3, 2, 4, 5), kind="conv"), (5,)),
    "params/patches/bias": jlora.Full(normal(4, 5)),
    "params/stem/kernel": jlora.Full(normal(5, 3, 2, 4, 5)),
    "params/words/embedding": low_rank("ra,rb->ab", (7, 4), kind="lookup"),
    "params/positions/embedding": Rows(normal(6, 2, 4), (5, 1)),
    "params/scorer/m": jlora.Full(normal(7, 3, 4)),
}
SHAPES = {
    "bert.encoder.layer.0.query.lora_A.weight": (2, 4),
    "bert.encoder.layer.0.query.lora_B.weight": (5, 2),
    "bert.encoder.layer.0.query.lora_magnitude_vector": (5,),
    "bert.encoder.layer.2.query.lora_A.weight": (1, 4),
    "bert.encoder.layer.2.query.lora_B.weight": (5, 1),
    "bert.encoder.layer.2.query.lora_magnitude_vector": (5,),
    "bert.encoder.layer.0.query.base_layer.bias": (5,),
    "bert.encoder.layer.1.query.bias": (5,),
    "bert.encoder.layer.2.norm.weight": (5,),
    "bert.encoder.layer.0.value.weight": (5, 4),
    "bert.encoder.layer.1.value.weight": (5, 4),
    "bert.encoder.layer.2.value.weight": (5, 4),
    "patches.lora_A.weight": (2, 4, 3, 2),
    "patches.lora_B.weight": (5, 2, 1, 1),
    "patches.lora_magnitude_vector": (1, 5, 1, 1),
    "patches.base_layer.bias": (5,),
    "stem.weight": (5, 4, 3, 2),
    "words.lora_embedding_A": (2, 7),
    "words.lora_embedding_B": (4, 2),
    "positions.token_adapter.trainable_tokens_delta": (2, 4),
    "scorer.m": (3, 4),
}


def test_every_entry_has_pefts_keys_and_shapes():
    found = {key.removeprefix(PREFIX): tensor.shape for key, tensor in to_peft(ADAPTER).items()}
    assert found == SHAPES
    assert names_of_adapted(ADAPTER) == ["bert.encoder.layer.0.query", "bert.encoder.layer.2.query", "patches", "words"]


def test_kernels_trained_whole_lie_as_in_a_checkpoint():
    tensors = to_peft(ADAPTER)
    value = ADAPTER["params/bert/encoder/layer/value/kernel"].value
    assert (tensors[f"{PREFIX}bert.encoder.layer.1.value.weight"] == value[1].T).all()
    stem = ADAPTER["params/stem/kernel"].value
    assert tensors[f"{PREFIX}stem.weight"][4, 3, 2, 1] == stem[2, 1, 3, 4]


def test_the_way_back_loses_nothing():
    """Of abstract templates too. A layer without an adapter, of which no file tells, keeps the template's magnitude."""
    abstract = {
        path: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), entry) for path, entry in ADAPTER.items()
    }
    for path, entry in ADAPTER.items():
        if isinstance(entry, jlora.LowRank):
            abstract[path] = dataclasses.replace(abstract[path], scale=entry.scale)
    tensors = to_peft(ADAPTER)
    for template in (ADAPTER, abstract):
        back = from_peft(tensors, template, "file")
        assert all((to_peft(back)[key] == tensor).all() for key, tensor in tensors.items())
    assert (from_peft(tensors, ADAPTER, "file")["params/patches/kernel"].a == ADAPTER["params/patches/kernel"].a).all()
    whole = from_peft(tensors, ADAPTER, "file")["params/bert/encoder/layer/query/kernel"]
    assert (whole.magnitude == ADAPTER["params/bert/encoder/layer/query/kernel"].magnitude).all()


def test_values_keep_the_templates_dtype():
    template = {"head/kernel": jlora.Full(jnp.zeros((4, 3), jnp.bfloat16))}
    back = from_peft({f"{PREFIX}head.weight": np.ones((3, 4), np.float32)}, template, "file")
    assert back["head/kernel"].value.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("path", "spec", "kind", "expected"),
    [
        ("h/0/c_attn/weight", "ra,rb->ab", "linear", True),
        ("h/0/c_attn/kernel", "ra,rb->ab", "linear", False),
        ("h/0/linear/weight", "rb,ra->ab", "linear", False),
        ("h/c_attn/weight", "arb,arc->abc", "linear", True),
        ("wte/weight", "ra,rb->ab", "lookup", False),
    ],
)
def test_gpt2s_conv1d_is_known_by_its_layout(path, spec, kind, expected):
    shape = (3, 4, 4)[-len(spec.split("->")[1]) :]
    assert is_conv1d(path, low_rank(spec, shape, kind=kind)) == expected
