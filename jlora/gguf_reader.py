"""The container of GGUF files: metadata, and tensors that are mapped and dequantized some rows at a time.

The `gguf` package dequantizes. Its own reader of metadata takes seconds and some hundred bytes for each token of a
vocabulary, and is not used.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from jlora.errors import JloraError

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""{type of a value: struct's letter for it}."""
_AT_ONCE = 2**22
"""How many numbers are dequantized at a time."""


@dataclass(frozen=True)
class StoredBlocks:
    """A tensor in a GGUF file that has not been read yet: ggml's number of its type, and the byte where it starts."""

    file: Path
    name: str
    shape: tuple[int, ...]
    type: int
    start: int

    def read(self, dtype: Any) -> np.ndarray:
        """The tensor in `dtype`; what it is dequantized from stays in the file."""
        stored = np.memmap(self.file, np.uint8, "r", self.start, self._stored_shape())
        out = np.empty((stored.shape[0], self.shape[-1]), dtype)
        step = max(1, _AT_ONCE // self.shape[-1])
        for row in range(0, len(out), step):
            out[row : row + step] = gguf.dequantize(np.asarray(stored[row : row + step]), self._kind())
        return out.reshape(self.shape)

    def require_readable(self) -> None:
        """Raises JloraError where the tensor's type is one that `gguf` does not dequantize, or the file ends in it."""
        try:
            gguf.dequantize(np.zeros(self._stored_shape()[1:], np.uint8), self._kind())
        except (NotImplementedError, ValueError):
            known = self.type in list(gguf.GGMLQuantizationType)
            raise JloraError(
                f"{self.file}: {self.name}: expected a type that gguf dequantizes;"
                f" found {self._kind().name if known else f'type {self.type}'}"
            ) from None
        end, size = self.start + math.prod(self._stored_shape()), self.file.stat().st_size
        if end > size:
            raise JloraError(
                f"{self.file}: {self.name}: expected a whole GGUF file, of {end} bytes at least; found {size};"
                " download or copy it again"
            )

    def _kind(self) -> gguf.GGMLQuantizationType:
        return gguf.GGMLQuantizationType(self.type)

    def _stored_shape(self) -> tuple[int, int]:
        """(rows, bytes of a row)."""
        numbers, width = gguf.GGML_QUANT_SIZES[self._kind()]
        return math.prod(self.shape[:-1]), self.shape[-1] // numbers * width


class Gguf(NamedTuple):
    """{key: value} of a file's metadata, and {name: tensor}."""

    file: Path
    fields: dict[str, Any]
    tensors: dict[str, StoredBlocks]


def read_gguf(file: Path) -> Gguf:
    """What a GGUF file holds; no tensor is read.

    Raises:
      JloraError: no such file, no GGUF file, a version that is not known, a file that ends in the metadata, one part
        of several.
    """
    if not Path(file).is_file():
        raise JloraError(f"{file}: expected a GGUF file; found no such file")
    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parsed(Path(file), _Cursor(data))
    except (ValueError, struct.error, OverflowError, MemoryError) as error:
        raise JloraError(f"{file}: expected a whole GGUF file; found: {error}") from None


def _parsed(file: Path, cursor: _Cursor) -> Gguf:
    if cursor.bytes(4) != b"GGUF":
        raise ValueError("no GGUF at its start")
    (version,) = cursor.numbers("I", 1)
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, where {_VERSIONS[0]} and {_VERSIONS[1]} are known")
    tensors, fields = cursor.numbers("Q", 2)
    metadata = {cursor.text(): cursor.value() for _ in range(fields)}
    parts = metadata.get("split.count", 1)
    if parts > 1:
        raise ValueError(f"one of {parts} parts; join them with llama-gguf-split --merge")
    infos = [cursor.info() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    begin = -(-cursor.place // alignment) * alignment
    return Gguf(file, metadata, {i.name: StoredBlocks(file, i.name, i.shape, i.type, begin + i.offset) for i in infos})


class _Info(NamedTuple):
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class _Cursor:
    """Reads one value behind the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def bytes(self, count: int) -> bytes:
        found = self.data[self.place : self.place + count]
        if len(found) < count:
            raise ValueError(f"its end after {len(self.data)} bytes")
        self.place += count
        return found

    def numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        kind = f"<{count}{letter}"
        return struct.unpack(kind, self.bytes(struct.calcsize(kind)))

    def text(self) -> str:
        return self.bytes(self.numbers("Q", 1)[0]).decode("utf-8")

    def value(self) -> Any:
        return self.values(self.numbers("I", 1)[0], 1)[0]

    def values(self, kind: int, count: int) -> list[Any]:
        if kind in _NUMBERS:
            return list(self.numbers(_NUMBERS[kind], count))
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        if kind == _ARRAY:
            return [self.values(self.numbers("I", 1)[0], self.numbers("Q", 1)[0]) for _ in range(count)]
        raise ValueError(f"a value of type {kind}")

    def info(self) -> _Info:
        name = self.text()
        (axes,) = self.numbers("I", 1)
        shape = self.numbers("Q", axes)
        return _Info(name, shape[::-1], self.numbers("I", 1)[0], self.numbers("Q", 1)[0])
