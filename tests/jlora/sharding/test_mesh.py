"""A mesh uses each device once or is refused, and arrays are split over it where they divide."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jlora import JloraError, make_mesh
from jlora.sharding.mesh import AXES, BATCH, current_mesh, fitting, on_devices

MESH = AbstractMesh((2, 3, 4), AXES, axis_types=(AxisType.Auto,) * 3)


def test_one_device_is_a_mesh():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert (mesh.axis_names, mesh.axis_sizes) == (AXES, (1, 1, 1))
    assert make_mesh(1, -1, devices=jax.devices()[:1]) == mesh


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 0}, "mesh.fsdp: expected a positive number, or -1 .* found 0"),
        ({"tensor": -2}, "mesh.tensor: expected a positive number"),
        ({"fsdp": -1}, "mesh: expected -1 for one axis at most; found {'data': -1, 'fsdp': -1, 'tensor': 1}"),
        ({"fsdp": 2}, "the number of devices, 1; found {'data': -1, 'fsdp': 2, 'tensor': 1}"),
        ({"data": 1, "fsdp": 2, "tensor": 2}, "the number of devices, 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(JloraError, match=message):
        make_mesh(**sizes, devices=jax.devices()[:1])


@pytest.mark.parametrize(
    ("names", "shape", "spec"),
    [
        ((None, "fsdp", "tensor"), (5, 6, 8), (None, "fsdp", "tensor")),
        (("fsdp", "tensor"), (7, 8), (None, "tensor")),
        ((("tensor", "fsdp"), None), (24, 5), (("tensor", "fsdp"), None)),
        ((("tensor", "fsdp"), None), (8, 5), (None, None)),
        ((), (), ()),
    ],
)
def test_an_axis_that_does_not_divide_is_left_whole(names, shape, spec):
    assert fitting(MESH, names, shape) == NamedSharding(MESH, PartitionSpec(*spec))


def test_an_array_is_made_of_its_parts():
    array = np.arange(6.0).reshape(2, 3)
    found = on_devices((2, 3), NamedSharding(make_mesh(devices=jax.devices()[:1]), BATCH), lambda index: array[index])
    assert (found == array).all()
    assert found.sharding.spec == BATCH


def test_the_current_mesh_is_one_of_these_axes_that_is_set():
    ours = make_mesh(devices=jax.devices()[:1])
    assert current_mesh() is None
    with jax.set_mesh(ours):
        assert current_mesh() == ours.abstract_mesh
    with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])):
        assert current_mesh() is None
