"""XLA's persistent compilation cache, so that a second run starts at once."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs under `$XDG_CACHE_HOME/jlora/xla` unless JAX_COMPILATION_CACHE_DIR names a place.

    To be called before the first array is made.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jlora" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
