import subprocess
import sys

import pytest

from tests.support.training import tiny

_PROGRAM = """
from train.devices.compilation import use_compilation_cache
use_compilation_cache()
import jax, jax.numpy as jnp
jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
"""


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_the_smallest_program_is_kept_where_the_environment_says(variable, tmp_path):
    inherited = {
        k: v for k, v in tiny.environment().items() if k not in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    }
    environment = inherited | {"HOME": str(tmp_path / "home"), variable: str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, cwd=tiny.ROOT, check=True, timeout=120)
    inner = "jlora/xla" if variable == "XDG_CACHE_HOME" else ""
    assert any((tmp_path / "cache" / inner).glob("*-cache"))
    assert not (tmp_path / "home").exists()
