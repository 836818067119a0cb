"""Reads GGUF files: their metadata, and tensors that are memory-mapped and dequantized a few rows at a time.

The `gguf` package dequantizes. Its reader of metadata is not used: for a vocabulary it takes seconds, and some hundred
bytes for each token.
"""

from __future__ import annotations

import math
import mmap
import reprlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from jlora.errors import FileError
from jlora.files.file_kind import kind_of_file
from jlora.files.finite import require_finite
from jlora.files.limits import LARGEST_GGUF_METADATA, MOST_GGUF_AXES, MOST_GGUF_FIELDS, MOST_NUMBERS

_VERSIONS = (2, 3)
_NO_START = "no GGUF at its start; give a file that llama.cpp's convert_hf_to_gguf.py wrote"
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""{GGUF's number of a value type: the format letter of `struct`}."""
_AT_ONCE = 2**22
"""How many numbers are dequantized at a time."""


@dataclass(frozen=True)
class StoredBlocks:
    """A tensor in a GGUF file that has not been read yet.

    Attributes:
      file: the file.
      name: llama.cpp's, such as `blk.0.attn_q.weight`.
      shape: in numpy's order, (out, in) of a linear layer; the file has it reversed.
      type: ggml's number of its type: 0 is float32, 1 float16, 8 Q8_0.
      start: the offset of its first byte in the file.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    type: int
    start: int

    def read(self, dtype: Any) -> np.ndarray:
        """Dequantizes the tensor to `dtype`, some rows at a time; the stored blocks are never all in memory.

        Raises:
          FileError: a number that is not finite, or that `dtype` cannot hold.
        """
        stored = np.memmap(self.file, np.uint8, "r", self.start, self._rows_and_bytes())
        out = np.empty((stored.shape[0], self.shape[-1]), dtype)
        step = max(1, _AT_ONCE // self.shape[-1])
        for row in range(0, len(out), step):
            part = out[row : row + step]
            with np.errstate(over="ignore"):
                part[...] = gguf.dequantize(np.asarray(stored[row : row + step]), self._kind())
            require_finite(part, f"{self.file}: {self.name}")
        return out.reshape(self.shape)

    def require_readable(self) -> None:
        """Raises FileError if `gguf` cannot dequantize the tensor's type, or the file ends before the tensor does."""
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[self._kind()][1]), np.uint8), self._kind())
        except (NotImplementedError, ValueError):
            known = self.type in list(gguf.GGMLQuantizationType)
            raise FileError(
                f"{self.file}: {self.name}: expected a type that gguf dequantizes;"
                f" found {self._kind().name if known else f'type {self.type}'}"
            ) from None
        numbers, _ = gguf.GGML_QUANT_SIZES[self._kind()]
        if self.shape[-1] % numbers:
            raise FileError(
                f"{self.file}: {self.name}: expected rows of a multiple of {numbers} numbers, a block of"
                f" {self._kind().name}; found {self.shape[-1]}"
            )
        size = self.file.stat().st_size
        if self.end > size:
            raise FileError(
                f"{self.file}: {self.name}: expected a whole GGUF file, of {self.end} bytes at least; found {size};"
                " download or copy it again"
            )

    @property
    def end(self) -> int:
        """The offset of the first byte after the tensor; `start` if its type is unknown."""
        known = self.type in list(gguf.GGMLQuantizationType)
        return self.start + (math.prod(self._rows_and_bytes()) if known else 0)

    def _kind(self) -> gguf.GGMLQuantizationType:
        return gguf.GGMLQuantizationType(self.type)

    def _rows_and_bytes(self) -> tuple[int, int]:
        """Returns (rows, bytes of a row)."""
        numbers, width = gguf.GGML_QUANT_SIZES[self._kind()]
        return math.prod(self.shape[:-1]), self.shape[-1] // numbers * width


class Gguf(NamedTuple):
    """The content of a GGUF file.

    Attributes:
      file: the file, for messages.
      fields: {key: value} of the metadata: numbers, bools, texts and lists of one of these.
      tensors: {name: tensor}.
    """

    file: Path
    fields: dict[str, Any]
    tensors: dict[str, StoredBlocks]


def read_gguf(file: Path) -> Gguf:
    """Reads a file's metadata and the places of its tensors, but no tensor.

    Raises:
      FileError: the file is missing, is not GGUF, has a version other than 2 and 3, ends within the metadata, is one of
        several parts, has a key or a tensor twice or two tensors in the same bytes, or has more metadata than any
        model.
    """
    file = Path(file)
    if not file.is_file():
        raise FileError(f"{file}: expected a GGUF file; found no such file")
    if file.stat().st_size == 0:
        raise FileError(f"{file}: expected a whole GGUF file; found an empty one; download or copy it again")
    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(file, _Cursor(data))
    except (ValueError, struct.error) as error:
        if str(error) == _NO_START and (kind := kind_of_file(file)):
            raise FileError(f"{file}: expected a whole GGUF file; found {kind}") from None
        raise FileError(f"{file}: expected a whole GGUF file; found: {error}") from None


def _parse(file: Path, cursor: _Cursor) -> Gguf:
    if cursor.bytes(4) != b"GGUF":
        raise ValueError(_NO_START)
    (version,) = cursor.numbers("I", 1)
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, where {_VERSIONS[0]} and {_VERSIONS[1]} are known")
    tensors, fields = cursor.numbers("Q", 2)
    if max(tensors, fields) > MOST_GGUF_FIELDS:
        raise ValueError(f"{fields} fields and {tensors} tensors, where {MOST_GGUF_FIELDS} are the most")
    metadata = _said_once((cursor.text(), cursor.value()) for _ in range(fields))
    parts = metadata.get("split.count", 1)
    if parts != 1:
        raise ValueError(f"one of {reprlib.repr(parts)} parts; join them with llama-gguf-split --merge")
    infos = _said_once((info.name, info) for info in (cursor.info() for _ in range(tensors)))
    alignment = metadata.get("general.alignment", 32)
    if not (type(alignment) is int and 1 <= alignment <= mmap.PAGESIZE):
        raise ValueError(f"general.alignment {reprlib.repr(alignment)}, where 1 to {mmap.PAGESIZE} are known")
    begin = -(-cursor.place // alignment) * alignment
    stored = {i.name: StoredBlocks(file, i.name, i.shape, i.type, begin + i.offset) for i in infos.values()}
    for first, second in pairwise(sorted(stored.values(), key=lambda tensor: tensor.start)):
        if first.end > second.start:
            raise ValueError(f"{first.name} and {second.name} in the same bytes")
    return Gguf(file, metadata, stored)


def _said_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses duplicate names (some readers take the first value, others the last) and unprintable ones."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found or not name.isprintable():
            raise ValueError(f"the name {reprlib.repr(name)}, twice or with what cannot be printed")
        found[name] = value
    return found


class _Info(NamedTuple):
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class _Cursor:
    """Reads one value after another from a memory-mapped file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def bytes(self, count: int) -> bytes:
        start, end = self.place, self.place + count
        if end > len(self.data):
            raise ValueError(f"its end after {len(self.data)} bytes; download or copy it again")
        if end > LARGEST_GGUF_METADATA:
            raise ValueError(f"metadata of more than {LARGEST_GGUF_METADATA} bytes")
        self.place = end
        return self.data[start:end]

    def numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{letter}", self.bytes(count * struct.calcsize(f"<{letter}")))

    def text(self) -> str:
        return self.bytes(self.numbers("Q", 1)[0]).decode("utf-8")

    def value(self) -> Any:
        (kind,) = self.numbers("I", 1)
        if kind == _ARRAY:
            return self.values(self.numbers("I", 1)[0], self.numbers("Q", 1)[0])
        return self.values(kind, 1)[0]

    def values(self, kind: int, count: int) -> list[Any]:
        if kind in _NUMBERS:
            return list(self.numbers(_NUMBERS[kind], count))
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        raise ValueError("an array of arrays" if kind == _ARRAY else f"a value of type {kind}")

    def info(self) -> _Info:
        name = self.text()
        (axes,) = self.numbers("I", 1)
        if not 1 <= axes <= MOST_GGUF_AXES:
            raise ValueError(f"{name} of {axes} axes, where 1 to {MOST_GGUF_AXES} are known")
        shape = self.numbers("Q", axes)
        if not 1 <= math.prod(shape) <= MOST_NUMBERS:
            raise ValueError(f"{name} of the shape {shape}")
        return _Info(name, shape[::-1], self.numbers("I", 1)[0], self.numbers("Q", 1)[0])
