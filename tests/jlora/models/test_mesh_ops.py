"""Which layers of a model take what others give, and that a mesh changes where things are and not what they are."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jlora.models.blocks.layers import Dense
from jlora.models.registry import FAMILIES, abstract_base, build
from jlora.sharding.mesh import AXES
from jlora.sharding.rules import kernel_names
from jlora.tree.leaf_paths import leaves_by_path
from jlora.tree.module_names import is_stacked
from tests.support.adapters.lora_cases import normal
from tests.support.models.decoder_cases import tiny_decoder
from tests.support.models.encoder_cases import tiny_config

MESH = AbstractMesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_two_linear_layers_of_each_layer_take_what_others_give_and_give_hidden_states(model_type):
    tiny = tiny_config if FAMILIES[model_type].task == "SEQ_CLS" else tiny_decoder
    leaves = leaves_by_path(abstract_base(build(tiny(model_type))))
    kernels = {path: leaf.shape for path, leaf in leaves.items() if path.endswith(("kernel", "weight"))}
    layers = {path: shape for path, shape in kernels.items() if is_stacked(path)}
    last = {path for path in layers if kernel_names(path.rpartition("/")[0]) == ("tensor", "fsdp")}
    stacks = {re.search(r"/(layers?|h)(_._of_.)?/", path)[0] for path in layers}
    assert len(last) == 2 * len(stacks)
    assert {layers[path][-1] for path in last} == {32}
    assert {shape[-2] for path, shape in layers.items() if path not in last} == {32}


def test_without_a_mesh_a_dense_layer_is_flaxs():
    x = normal(0, 3, 5, 16)
    ours, flaxs = Dense(8, jnp.bfloat16, nn.initializers.normal()), nn.Dense(8, dtype=jnp.bfloat16)
    variables = ours.init(jax.random.key(0), x)
    assert jax.tree.structure(variables) == jax.tree.structure(flaxs.init(jax.random.key(0), x))
    assert (ours.apply(variables, x) == flaxs.apply(variables, x)).all()


def _constraints(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "sharding_constraint":
            yield equation.invars[0].aval.shape, equation.params["sharding"].spec
        for inner in core.jaxprs_in_params(equation.params):
            yield from _constraints(inner)


def test_a_weight_is_gathered_over_fsdp_and_stays_split_over_tensor():
    layer = Dense(16, jnp.float32, nn.initializers.normal())
    variables, x = {"params": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}, jnp.ones((4, 6, 8))
    with jax.sharding.use_abstract_mesh(MESH):
        found = list(_constraints(jax.make_jaxpr(layer.apply)(variables, x).jaxpr))
    assert found == [
        ((8, 16), PartitionSpec(None, "tensor")),
        ((4, 6, 16), PartitionSpec(("data", "fsdp"), None, "tensor")),
    ]
