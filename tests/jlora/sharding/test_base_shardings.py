"""On 8 devices, however laid out, a step is what it is on one, and each holds and sends no more than it must."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import jlora
from jlora.models.registry import abstract_base, build, example_batch
from jlora.sharding.mesh import AXES
from jlora.tree.leaf_paths import leaves_by_path
from tests.support.models.decoder_cases import tiny_decoder
from tests.support.programs.sharded import LENGTH, MESHES, RANK, REMATERIALIZED, ROWS, WIDEST
from tests.support.training import tiny

MESH = AbstractMesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
QUERY, DOWN = (f"params/model/layers/{name}/kernel" for name in ("self_attn/q_proj", "mlp/down_proj"))


@pytest.fixture(scope="module")
def report():
    """What `sharded.py` prints."""
    flags = f"{tiny.EIGHT_DEVICES} --xla_backend_optimization_level=0"
    script = tiny.ROOT / "tests" / "support" / "programs" / "sharded.py"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.ROOT)}
    command = [sys.executable, str(script)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.parametrize("mesh", [*MESHES, *REMATERIALIZED])
def test_loss_and_gradients_are_those_of_one_device(report, mesh):
    assert report[mesh]["loss"] < 1e-5
    assert report[mesh]["gradients"] < 1e-5


@pytest.mark.parametrize("mesh", [*MESHES, *REMATERIALIZED])
def test_no_weights_of_all_layers_are_copied(report, mesh):
    """XLA would copy the stacks in the layout in which it likes to gather a layer, and hold the base twice."""
    assert report[mesh]["copied"] == []


@pytest.mark.parametrize("mesh", [*MESHES, *REMATERIALIZED])
def test_a_device_holds_its_shards_and_no_more(report, mesh):
    assert report[mesh]["held"] == pytest.approx(report[mesh]["shards"], abs=1000)  # the key


def test_the_more_parts_the_less_a_device_holds(report):
    held = {name: report[name]["held"] for name in ("one", *MESHES)}
    assert held["data"] == pytest.approx(held["one"], rel=0.01)
    assert max(held["fsdp"], held["mixed"]) < 0.35 * held["one"]
    assert held["tensor"] < 0.5 * held["one"]


def _shapes(report, mesh, kind):
    """(whether it is in a loop, the shape) of the results of each collective of this kind."""
    return [(loop, shape) for found, loop, shape in report[mesh]["collectives"] if found == kind]


def _is_of_the_adapter(shape):
    return math.prod(shape) <= RANK * WIDEST and LENGTH not in shape


def test_data_alone_moves_gradients_of_the_adapter_and_nothing_else(report):
    assert {kind for kind, _, _ in report["data"]["collectives"]} == {"all-reduce"}
    assert all(_is_of_the_adapter(shape) for _, shape in _shapes(report, "data", "all-reduce"))


def test_fsdp_gathers_one_layer_at_a_time_and_no_activations(report):
    assert {kind for kind, _, _ in report["fsdp"]["collectives"]} == {"all-reduce", "all-gather"}
    assert all(_is_of_the_adapter(shape) for _, shape in _shapes(report, "fsdp", "all-reduce"))
    in_loop = [shape for loop, shape in _shapes(report, "fsdp", "all-gather") if loop]
    assert len(in_loop) > 14  # forward and backward, the codes and the scales of seven weights
    assert all(len(shape) < 3 or shape[0] == 1 for shape in in_loop)  # one of the 3 layers
    assert all(LENGTH not in shape for shape in in_loop)


def test_a_rematerialized_layer_gathers_each_weight_twice(report):
    """For its product and for the derivative."""
    gathers = [shape for loop, shape in _shapes(report, "lora, fsdp", "all-gather") if loop]
    assert len(gathers) == 2 * 7


@pytest.mark.parametrize("mesh", [name for name in REMATERIALIZED if "dora" in name])
def test_doras_norms_gather_no_weights_of_all_layers(report, mesh):
    outside = [shape for loop, shape in _shapes(report, mesh, "all-gather") if not loop]
    assert not any(len(shape) > 2 for shape in outside)
    if "tensor" in mesh:
        assert _shapes(report, mesh, "all-gather") == []


def test_tensor_moves_activations_and_no_weight(report):
    assert {kind for kind, _, _ in report["tensor"]["collectives"]} == {"all-reduce"}
    for _, shape in _shapes(report, "tensor", "all-reduce"):
        assert LENGTH in shape or ROWS // 2 * LENGTH in shape or _is_of_the_adapter(shape)


def test_a_mixed_mesh_gathers_no_activations_and_adds_them_over_tensor_alone(report):
    assert not any(LENGTH in shape for _, shape in _shapes(report, "mixed", "all-gather"))
    activations = [shape for _, shape in _shapes(report, "mixed", "all-reduce") if LENGTH in shape]
    assert {shape[0] for shape in activations} == {ROWS // 4}


def test_weights_read_onto_a_mesh_are_those_read_without_and_lie_as_they_should(report):
    assert report["loaded"] == {"None": True, "nf4": True, "largest part": 1 / 8}


def test_where_weights_and_adapters_lie():
    model = build(tiny_decoder("llama", hidden_size=128, intermediate_size=256))
    base, example = abstract_base(model), example_batch(model.config)
    shardings = leaves_by_path(jlora.base_shardings(base, MESH))
    assert shardings[QUERY].spec == PartitionSpec(None, "fsdp", "tensor")
    assert shardings[DOWN].spec == PartitionSpec(None, "tensor", "fsdp")
    assert shardings["params/model/embed_tokens/embedding"].spec == PartitionSpec("tensor", "fsdp")
    assert shardings["params/model/norm/scale"].spec == PartitionSpec(None)
    adapter = jax.eval_shape(
        lambda base: jlora.init(
            jax.random.key(0), jlora.LoraConfig(target_modules="all-linear"), base, model.apply, example
        ),
        base,
    )
    lies = jlora.adapter_shardings(adapter, MESH, "inherit")[DOWN]
    assert (lies.a.spec, lies.b.spec) == (PartitionSpec(None, None, "tensor"), PartitionSpec(None, None, "fsdp"))
    assert lies.scale.spec == PartitionSpec(None, None)
    whole = jax.tree.leaves(jlora.adapter_shardings(adapter, MESH))
    assert all(set(sharding.spec) <= {None} for sharding in whole)


def test_codes_are_split_along_the_outputs_and_in_whole_blocks():
    model = build(tiny_decoder("llama", hidden_size=128, intermediate_size=192))
    base = jax.eval_shape(
        lambda base: jlora.quantize(base, "nf4", model.apply, example_batch(model.config)), abstract_base(model)
    )
    shardings = leaves_by_path(jlora.base_shardings(base, MESH))
    query, down = shardings[QUERY].stored, shardings[DOWN].stored
    assert query.codes.spec == query.scales.spec == PartitionSpec(None, ("tensor", "fsdp"), None)
    assert down.codes.spec == down.scales.spec == PartitionSpec(None, "fsdp", None)  # 3 blocks of inputs
    assert query.steps.spec == PartitionSpec(None, None)
