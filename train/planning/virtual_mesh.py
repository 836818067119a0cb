"""Parses the sizes of `--dry-run --mesh`, and makes virtual devices for this mesh."""

from __future__ import annotations

import math
import re

import jax

from jlora.errors import JloraError, nearest
from jlora.sharding.mesh import AXES

_MOST_CHIPS = 2**14
"""The limit: JAX's CPU client takes minutes to make more devices."""


def mesh_sizes(text: str) -> dict[str, int]:
    """Parses `data=16,fsdp=8,tensor=8` to {axis: size}; axes that are left out have the size 1.

    The result has data, fsdp and tensor, in this order; blanks around names and sizes are ignored.

    Raises:
      JloraError: an axis is unknown or given twice, a size is not a positive number, or there are more than 16,384
        chips.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES or name in sizes:
            raise JloraError(f"--mesh: expected {', '.join(AXES)}, each once; found {name!r}{nearest(name, AXES)}")
        if not re.fullmatch("[1-9][0-9]*", size):
            raise JloraError(f"--mesh: {name}: expected a number of chips such as {name}=8, found {part!r}")
        sizes[name] = int(size)
    if math.prod(sizes.values()) > _MOST_CHIPS:
        raise JloraError(f"--mesh: expected at most {_MOST_CHIPS:,} chips, found {math.prod(sizes.values()):,}")
    return {name: sizes.get(name, 1) for name in AXES}


def force_devices(count: int) -> None:
    """Makes JAX use the CPU as `count` devices; call it before JAX makes its first array.

    Raises:
      JloraError: JAX has already been initialized.
    """
    try:
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError as error:
        raise JloraError(f"--mesh: {count} devices: expected a process in which JAX has not started yet") from error
