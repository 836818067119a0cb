"""Packages that import PyTorch wherever it is installed are imported without it: nothing here needs its seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_hidden() -> Iterator[None]:
    """In the block PyTorch is not found, as where it is not installed; unless the process has imported it before."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way: an import fails, a search finds nothing
    try:
        yield
    finally:
        del sys.modules["torch"]


def keep_torch_from_transformers() -> None:
    """From now on transformers takes PyTorch for not installed; for a process that is a command and nothing else.

    transformers decides that once in a process. It then leaves out its models, and a config does not import PyTorch.
    """
    with torch_hidden():
        from transformers.utils import is_torch_available

        is_torch_available()
