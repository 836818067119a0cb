"""Hides PyTorch from packages that would import it: nothing here needs it, and its import takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_hidden() -> Iterator[None]:
    """Makes PyTorch look as if it were not installed inside the block, unless the process has imported it before."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's documented way: imports fail, find_spec finds nothing
    try:
        yield
    finally:
        del sys.modules["torch"]


def keep_torch_from_transformers() -> None:
    """Makes transformers believe, for the rest of the process, that PyTorch is not installed.

    Only for processes that run nothing but a command: transformers decides this once per process. It then leaves out
    its models, and loading a config does not import PyTorch.
    """
    with torch_hidden():
        from transformers.utils import is_torch_available

        is_torch_available()
