"""Reads a safetensors file: checks the header against the file, and reads tensors later.

The file consists of 8 bytes with the length of the header; the header, {key: {"dtype", "shape",
"data_offsets": [start, end]}} as JSON; and the tensors, one after another.
"""

from __future__ import annotations

import math
import mmap
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jlora.errors import FileError
from jlora.files.bounded_json import parse_json
from jlora.files.file_kind import kind_of_file
from jlora.files.finite import require_finite
from jlora.files.limits import LARGEST_JSON, MOST_AXES, MOST_NUMBERS
from jlora.files.path_checks import require_own

READABLE = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""{dtype in a file: numpy's dtype} of the tensors that can be read."""
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "I8": 8, "U8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""{dtype in a file: bits of a number}."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file that has not been read yet.

    Attributes:
      file, key: where it is.
      shape: of the tensor.
      dtype: as the header has it, such as "BF16".
      start: the offset of its first byte in the file.
      bytes: its size.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    bytes: int

    def read(self, dtype: Any, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns the tensor, or its part at `index`, in numpy's `dtype`.

        In the file's own dtype it is mapped, and takes no memory until it is copied.

        Raises:
          FileError: a number that is not finite, or that `dtype` cannot hold.
        """
        with np.errstate(over="ignore"):
            value = self.as_numpy()[index].astype(dtype, copy=False)
        require_finite(value, f"{self.file}: {self.key}")
        return value

    def as_numpy(self) -> np.ndarray:
        """Maps the tensor into memory in the file's dtype; the file is read when the numbers are used."""
        if 0 in self.shape:
            return np.zeros(self.shape, READABLE[self.dtype])
        before = self.start % mmap.ALLOCATIONGRANULARITY  # np.memmap does the same, and takes ten times as long
        with self.file.open("rb") as stream:
            options = {"access": mmap.ACCESS_READ, "offset": self.start - before}
            mapped = mmap.mmap(stream.fileno(), before + self.bytes, **options)
        return np.frombuffer(mapped, READABLE[self.dtype], math.prod(self.shape), before).reshape(self.shape)

    def require_float(self) -> None:
        """Raises FileError if the tensor is not plain floating point (quantized weights), or is empty (ZeRO-3)."""
        if self.dtype not in READABLE:
            raise FileError(
                f"{self.file}: {self.key}: expected dtype {', '.join(READABLE)}; found {self.dtype}. If the weights are"
                " quantized, give the 16-bit model that they were made from; else save them again in one of these"
            )
        if 0 in self.shape:
            raise FileError(
                f"{self.file}: {self.key}: expected weights, found an empty tensor of shape {self.shape}. DeepSpeed"
                " ZeRO-3 writes these if weights are saved without being gathered. Save again with"
                " stage3_gather_16bit_weights_on_model_save, or run zero_to_fp32.py on the checkpoint"
            )


def open_safetensors(file: Path) -> dict[str, StoredTensor]:
    """Opens a file and returns {key: tensor}; reads only the header.

    The file's metadata (`__metadata__`) is left out. Tensors of dtypes that cannot be read, such as "I64", are listed
    too: `StoredTensor.require_float` refuses these.

    Raises:
      FileError: there is no such file; a link out of the file's folder; a header that is incomplete or too large, has a
        duplicate key, or whose tensors do not fill the file without gaps; an entry without exactly dtype, shape and
        data_offsets.
    """
    if not file.is_file():
        found = "a folder; name a file in it" if file.is_dir() else "no such file; check the path, or copy it there"
        raise FileError(f"{file}: expected a safetensors file; found {found}")
    require_own(file)
    entries, begin = _header(file)
    tensors = {key: _tensor(file, key, entry, begin) for key, entry in entries.items()}
    end = begin
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.bytes)):
        if tensor.start != end:
            raise FileError(
                f"{file}: {tensor.key}: data_offsets: expected a start at {end - begin}, where the tensor before it"
                f" ends; found {tensor.start - begin}"
            )
        end += tensor.bytes
    if end != file.stat().st_size:
        raise _not_whole(file, f" of {end} bytes")
    return tensors


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Returns (the header without the file's metadata, the byte where the tensors begin)."""
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > file.stat().st_size - 8:
            raise _not_whole(file, "")
        if length > LARGEST_JSON:
            raise FileError(f"{file}: expected a header of at most {LARGEST_JSON} bytes; found one of {length}")
        entries = parse_json(stream.read(length), file)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(f"{file}: __metadata__: expected an object of texts; found {reprlib.repr(metadata)}")
    return entries, 8 + length


def _not_whole(file: Path, size: str) -> FileError:
    found = f"{file.stat().st_size} bytes; download or copy it again"
    if not size:  # there is no header
        found = kind_of_file(file) or found
    return FileError(f"{file}: expected a whole safetensors file{size}; found {found}")


def _tensor(file: Path, key: str, entry: Any, begin: int) -> StoredTensor:
    """Checks the header's entry of a tensor and returns the tensor."""

    def refusal(field: str, expected: str, found: Any) -> FileError:
        return FileError(f"{file}: {key}{field}: expected {expected}; found {reprlib.repr(found)}")

    if not key.isprintable():  # control characters could otherwise reach a terminal
        raise FileError(f"{file}: expected keys that can be printed; found {reprlib.repr(key)}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refusal("", "dtype, shape and data_offsets", entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise refusal(": dtype", f"one of {', '.join(_BITS)}", dtype)
    if not _are_sizes(shape) or len(shape) > MOST_AXES or math.prod(n or 1 for n in shape) > MOST_NUMBERS:
        raise refusal(": shape", f"the sizes of at most {MOST_AXES} axes, {MOST_NUMBERS} numbers in all", shape)
    size, rest = divmod(math.prod(shape) * _BITS[dtype], 8)
    if rest or not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise refusal(": data_offsets", f"a start and an end, {size} bytes apart as dtype and shape say", offsets)
    return StoredTensor(file, key, tuple(shape), dtype, begin + offsets[0], size)


def _are_sizes(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and n >= 0 for n in found)
