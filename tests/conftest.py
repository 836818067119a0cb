"""The whole suite runs where JAX refuses to spread ranks and to mix dtypes by itself: users may run there.

Most of its time is XLA's, so all processes of a run share compiled programs, which are optimized little. Hypothesis
draws the same examples each time, so that a run can be repeated.
"""

import os
import shutil
import tempfile

import hypothesis
import jax
import pytest

# Set in the first process of a run, which the others inherit from.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
_SHARED = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="jlora-xla-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_SHARED))

jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="module")
def _programs_are_let_go():
    """A file's programs are of no use to the next one, and all of them together take gigabytes."""
    yield
    jax.clear_caches()


def pytest_unconfigure():
    """Deletes the programs where this process has made their folder."""
    if _SHARED is not None:
        shutil.rmtree(_SHARED, ignore_errors=True)
