"""Compiles a run's programs with suitable options, and caches them on disk so that the next start is fast."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jlora.files.drop_oldest import drop_oldest

_MOST_BYTES = 2**30
_MOST_FILES = 20_000


def use_compilation_cache() -> None:
    """Caches compiled programs in `$XDG_CACHE_HOME/jlora/xla`, or in JAX_COMPILATION_CACHE_DIR if it is set.

    Without XDG_CACHE_HOME that is `~/.cache/jlora/xla`, whose programs that were used longest ago are deleted if there
    is more than 1 GiB or if there are more than 20,000. Programs are cached however fast they compile. Call it before
    the first array is made.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jlora" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # JAX's own limit, jax_compilation_cache_max_size, reads all files for each program: 2 s where there are 20,000.
        drop_oldest(cache, _MOST_BYTES, _MOST_FILES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def jit(fn: Callable, **options: Any) -> Any:
    """Applies `jax.jit`, with options for CPUs, to a complete program of a run (not to a part).

    It takes jit's options except `compiler_options`, and returns what `jax.jit` does.

    By default XLA on a CPU computes all bfloat16 operations except products in float32. It then converts the stacks of
    all layers, weights and kept values, whenever one layer is read or written: at 4 x 256 tokens of SmolLM2 a step took
    4.2 s and 3.4 GB with this conversion, and 2.7 s and 2.3 GB without. So it is switched off here. Only products with
    a bfloat16 result need it, and `jlora.ops.products` has none.
    """
    on_cpu = {"xla_disable_hlo_passes": "float-normalization-bf16"} if jax.default_backend() == "cpu" else None
    return jax.jit(fn, compiler_options=on_cpu, **options)
