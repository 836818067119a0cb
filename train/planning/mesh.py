"""The mesh of `--dry-run --mesh`: its sizes, and devices for it that are not there."""

from __future__ import annotations

import re

import jax

from jlora.errors import JloraError
from jlora.mesh import AXES
from jlora.paths import nearest


def mesh_sizes(text: str) -> dict[str, int]:
    """{axis: size} of `data=16,fsdp=8,tensor=8`; axes that are left out have the size 1.

    Raises:
      JloraError: an axis of another name or given twice, a size that is no positive number.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES or name in sizes:
            raise JloraError(f"--mesh: expected {', '.join(AXES)}, each once; found {name!r}{nearest(name, AXES)}")
        if not re.fullmatch("[1-9][0-9]*", size):
            raise JloraError(f"--mesh: {name}: expected a number of chips such as {name}=8, found {part!r}")
        sizes[name] = int(size)
    return {name: sizes.get(name, 1) for name in AXES}


def force_devices(count: int) -> None:
    """Makes this process see `count` devices, all of them its CPU; to be called before JAX makes its first array.

    Raises:
      JloraError: JAX has started.
    """
    try:
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError as error:
        raise JloraError(f"--mesh: {count} devices: expected a process in which JAX has not started yet") from error
