"""On 8 devices under the axis types that `jax.make_mesh` makes: adapted is merged, and split as the base's result."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jlora.sharding.explicit_axes import explicit_mesh, split_like
from tests.support.programs import explicit
from tests.support.training import tiny


@pytest.fixture(scope="module")
def report():
    """What `explicit.py` prints."""
    script = tiny.ROOT / "tests" / "support" / "programs" / "explicit.py"
    flags = f"{tiny.EIGHT_DEVICES} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", explicit.FUNCTIONS)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapted_is_merged_and_split_as_the_base(report, name, kind):
    found = report[name][kind]
    assert isinstance(found, list), found
    value, gradients, same = found
    assert value < 1e-5
    assert gradients < 1e-4
    assert same


def test_without_explicit_axes_nothing_is_split_by_type():
    x = jnp.ones((2, 3))
    assert explicit_mesh(x) is None
    assert split_like(x, x) is x
    assert jax.make_jaxpr(lambda x: split_like(x, x))(x).eqns == []
