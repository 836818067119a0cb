"""Folders of safetensors files: where they are, what they hold, how they are written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jlora.errors import JloraError
from jlora.gguf_file import GgufTensor, gguf_tensors, is_gguf

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
WEIGHT_PATTERNS = (SINGLE_FILE, INDEX_FILE, "model-*.safetensors")
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}

_READABLE = ("F64", "F32", "F16", "BF16")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file that has not been read yet."""

    file: Path
    key: str
    shape: tuple[int, ...]
    handle: Any

    def read(self) -> np.ndarray:
        """The tensor in the file's own dtype."""
        return self.handle.get_tensor(self.key)

    def require_float(self) -> None:
        """Raises JloraError where the tensor is not a plain floating point one (quantized weights)."""
        found = self.handle.get_slice(self.key).get_dtype()
        if found not in _READABLE:
            raise JloraError(f"{self.file}: {self.key}: expected dtype {', '.join(_READABLE)}; found {found}")


class Planned(NamedTuple):
    """A tensor to be written: its shape, and a function that gives its float32 values."""

    shape: tuple[int, ...]
    value: Callable[[], np.ndarray]


def fetch(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder or GGUF file `name`, or the hub's model `name` after files that match `patterns` were downloaded.

    Raises:
      JloraError: there is no such folder, and no such model on the hub or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() or (folder.is_file() and is_gguf(folder)):
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.exists():
        raise JloraError(f"{name}: expected the folder of a model (config.json, {SINGLE_FILE}); found no such folder")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (OSError, HFValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise JloraError(
            f"{name}: expected a folder or a model on the Hugging Face hub; found no such folder, "
            f"and the hub says: {reason}"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      JloraError: the file is missing, is no JSON, or holds something else than an object.
    """
    if not file.is_file():
        raise JloraError(f"{file}: expected a JSON file; found none")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise JloraError(f"{file}: expected JSON; found: {error}") from error
    if not isinstance(value, dict):
        raise JloraError(f"{file}: expected a JSON object; found {type(value).__name__}")
    return value


def open_tensors(folder: Path) -> Mapping[str, StoredTensor | GgufTensor]:
    """{key: tensor} of a GGUF file, of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Raises:
      JloraError: no such files (pickles are named and never opened), a file that is not whole, a shard or a
        key that the index names and that is not there.
    """
    if is_gguf(folder):
        return gguf_tensors(folder)
    if (folder / SINGLE_FILE).is_file():
        return _open_file(folder / SINGLE_FILE)
    if not (folder / INDEX_FILE).is_file():
        raise JloraError(_no_weights(folder))
    where = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(where, dict):
        raise JloraError(f"{folder / INDEX_FILE}: weight_map: expected an object of key: file name; found {where!r}")
    shards = {file: _open_file(folder / file) for file in sorted(set(where.values()))}
    for key, file in where.items():
        if key not in shards[file]:
            raise JloraError(f"{folder / file}: {key}: expected by {INDEX_FILE}; found no such key in the file")
    return {key: shards[file][key] for key, file in where.items()}


def _open_file(file: Path) -> dict[str, StoredTensor]:
    if not file.is_file():
        raise JloraError(f"{file}: expected by {INDEX_FILE}; found no such file; download or copy the folder again")
    try:
        handle = safe_open(file, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise JloraError(
            f"{file}: expected a whole safetensors file{_whole_size(file)}; "
            f"found {file.stat().st_size} bytes ({error}); download or copy it again"
        ) from error
    return {
        key: StoredTensor(file, key, tuple(handle.get_slice(key).get_shape()), handle)
        for key in handle.keys()  # noqa: SIM118 (no dict: it has no iterator)
    }


def _whole_size(file: Path) -> str:
    """ " of N bytes" where the header can still be read."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > 100_000_000:
            return ""
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return ""
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    return f" of {8 + length + max(ends, default=0)} bytes"


def _no_weights(folder: Path) -> str:
    expected = f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}"
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if not pickles:
        return f"{expected}; found neither"
    return (
        f"{expected}; found {', '.join(pickles)}, which may run code and is never opened here; where you "
        "trust it, convert it with PyTorch: AutoModel.from_pretrained(folder).save_pretrained(folder)"
    )


def write_model(folder: Path, tensors: Mapping[str, Planned], config: Any, dtype: str, max_shard_bytes: int) -> None:
    """Writes config.json and the weights, rounded once to `dtype`; replaces weights that are there.

    All is written beside its place first. The file that makes a folder a model comes into place last, so
    that a crash leaves the folder without weights rather than with half of them.

    Raises:
      JloraError: a dtype that is not in DTYPES; a finite value that `dtype` cannot hold.
    """
    if dtype not in DTYPES:
        raise JloraError(f"dtype: expected one of {', '.join(DTYPES)}; found {dtype!r}")
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_shards(partial, tensors, DTYPES[dtype], max_shard_bytes)
        config.save_pretrained(partial)
        for stale in (file for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern)):
            stale.unlink()
        for file in sorted(partial.iterdir(), key=lambda file: file.name in (SINGLE_FILE, INDEX_FILE)):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(partial)


def _write_shards(folder: Path, tensors: Mapping[str, Planned], dtype: np.dtype, max_shard_bytes: int) -> None:
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: int(np.prod(tensor.shape)) * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, keys in split.filename_to_tensors.items():
        save_file(
            {key: _rounded(key, tensors[key], dtype) for key in keys},
            folder / file,
            metadata={"format": "pt"},
        )
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _rounded(key: str, tensor: Planned, dtype: np.dtype) -> np.ndarray:
    value = tensor.value()
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(value.astype(dtype, copy=False))
    if dtype == DTYPES["float16"] and bool((np.isinf(rounded) & np.isfinite(value)).any()):
        raise JloraError(
            f"{key}: expected values that float16 can hold (at most 65504); found {np.abs(value).max()}; "
            "choose bfloat16 or float32"
        )
    return rounded
