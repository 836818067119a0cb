"""--mesh, and devices that are not there."""

import jax
import pytest

from jlora.errors import JloraError
from train.planning.virtual_mesh import force_devices, mesh_sizes


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("data=16,fsdp=8,tensor=4", (16, 8, 4)),
        ("tensor=2, data=3", (3, 1, 2)),
        ("fsdp=1024", (1, 1024, 1)),
    ],
)
def test_sizes(text, sizes):
    assert mesh_sizes(text) == dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dta=2", "expected data, fsdp, tensor, each once; found 'dta'.*nearest: data"),
        ("data=2,data=4", "each once; found 'data'"),
        ("", "found ''"),
        ("data", "data: expected a number of chips such as data=8, found 'data'"),
        ("data=2,fsdp=-1", "fsdp: expected a number of chips such as fsdp=8, found 'fsdp=-1'"),
        ("data=0", "found 'data=0'"),
        ("data=99999999999", "at most 16,384 chips, found 99,999,999,999"),
    ],
)
def test_what_is_no_mesh_is_refused(text, message):
    with pytest.raises(JloraError, match=f"^--mesh: .*{message}"):
        mesh_sizes(text)


def test_devices_are_set_before_jax_starts():
    """That they then are there, test_lm_plan says, in a process of its own."""
    platforms, before = jax.config.jax_platforms, jax.devices()
    with pytest.raises(JloraError, match="--mesh: 64 devices: expected a process in which JAX has not started yet"):
        force_devices(64)
    assert (jax.config.jax_platforms, jax.devices()) == (platforms, before)
