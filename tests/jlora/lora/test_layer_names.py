"""The names of the layers in a leaf or an entry."""

import jax.numpy as jnp
import pytest

import jlora
from jlora.lora.layer_names import layer_names, leaf_layer_names

STACKED, SINGLE = "params/model/layers/q_proj/kernel", "params/model/head/kernel"
NAMES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]


def entry(stack, ranks):
    spec = "ra,rb->ab" if not stack else "arb,arc->abc" if len(stack) == 1 else "abrc,abrd->abcd"
    a, b, scale = (jnp.ones((*stack, 2, *rest)) for rest in ((3,), (4,), ()))
    return jlora.LowRank(a, b, scale, spec, ranks)


@pytest.mark.parametrize(
    ("path", "stack", "ranks", "names"),
    [
        (STACKED, (2,), (2, 1), NAMES),
        (STACKED, (1,), (2,), NAMES[:1]),
        (STACKED, (2, 5), (2, 1), NAMES),  # several matrices in each layer's module
        (STACKED, (), (2,), ["model.layers.q_proj"]),
        (SINGLE, (), (2,), ["model.head"]),
        (SINGLE, (5,), (2,), ["model.head"]),  # a batch of matrices in one module
    ],
)
def test_an_entry_has_a_name_for_each_layer(path, stack, ranks, names):
    assert layer_names(path, entry(stack, ranks)) == names


def test_a_leaf_is_a_stack_if_its_name_and_its_use_say_so():
    assert leaf_layer_names(STACKED, (2, 3, 4), (0,)) == NAMES
    assert leaf_layer_names(STACKED, (2, 3, 4), ()) == leaf_layer_names(STACKED, (2, 3, 4), (1,))
    assert leaf_layer_names(STACKED, (2, 3, 4), ()) == ["model.layers.q_proj"]
    assert leaf_layer_names(SINGLE, (2, 3, 4), (0,)) == ["model.head"]
    assert leaf_layer_names(SINGLE, (), ()) == ["model.head"]
