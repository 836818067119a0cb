"""Recognizes by its first bytes a file that is not what its name says, such as a pointer of Git LFS."""

from __future__ import annotations

import re
from pathlib import Path

_POINTER = b"version https://git-lfs"
"""How the file begins that git writes instead of a large one if Git LFS is not installed."""
_FETCH = "Run `git lfs install` and `git lfs pull` in its folder, or download it with `hf download`"
_KINDS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(re.escape(_POINTER)), "a pointer of Git LFS", _FETCH),
    (re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE), "a web page", "Download the file itself"),
    (
        re.compile(rb"PK\x03\x04"),
        "a ZIP archive, as torch.save and Excel write",
        "Save weights as safetensors with PyTorch, if you trust them, and a sheet as CSV",
    ),
    (
        re.compile(rb"\x80[\x02-\x05]"),
        "a pickle, which may run code and is never opened here",
        "If you trust it, save the weights as safetensors with PyTorch",
    ),
    (re.compile(rb"\x89HDF\r\n"), "an HDF5 file, as Keras writes", "Save the weights as safetensors"),
    (re.compile(rb"GGUF"), "a GGUF file", "Give it a name that ends in .gguf"),
    (re.compile(rb"PAR1"), "a Parquet file", "Give it a name that ends in .parquet"),
    (re.compile(rb"\x1f\x8b"), "a file that is packed with gzip", "Unpack it first"),
)
"""(how a file begins, what it is, what to do)."""
_LONGEST_START = 64
"""Bytes that are enough for all of them."""


def file_kind(start: bytes) -> str:
    """Returns what a file is that begins with `start`, and what to do: "a web page. Download the file itself".

    Returns "" if the first bytes say nothing. 64 bytes are enough.
    """
    return next((f"{kind}. {advice}" for pattern, kind, advice in _KINDS if pattern.match(start)), "")


def kind_of_file(file: Path) -> str:
    """Returns `file_kind` of an existing file's first bytes."""
    with file.open("rb") as stream:
        return file_kind(stream.read(_LONGEST_START))


def is_lfs_pointer(start: bytes) -> bool:
    """Returns whether a file that begins with `start` is a pointer of Git LFS: text, but not the file's own."""
    return start.startswith(_POINTER)
