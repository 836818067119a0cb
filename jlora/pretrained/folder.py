"""Finds, reads and atomically writes folders of safetensors files."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jlora.errors import FileError, HubError, JloraError
from jlora.files.atomic_folder import whole_folder
from jlora.files.bounded_json import read_json
from jlora.files.nearest_file import nearest_file
from jlora.files.path_checks import as_path, looks_like_path
from jlora.files.run_folder import say_what_run_has
from jlora.files.safetensors_reader import READABLE, StoredTensor, open_safetensors
from jlora.gguf.model import GgufTensor, gguf_tensors, is_gguf
from jlora.pretrained.absent_weights import say_what_is_instead, say_what_the_file_is
from jlora.pretrained.locate import model_folder

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
GENERATION_FILE = "generation_config.json"
WEIGHT_PATTERNS = (SINGLE_FILE, INDEX_FILE, "model-*.safetensors")
DTYPES = {"float32": READABLE["F32"], "bfloat16": READABLE["BF16"], "float16": READABLE["F16"]}

_FILE_NAME = re.compile(r"\w[\w.-]{0,254}", re.ASCII)
_CONFIG = "config.json"
_EXPECTED = f"expected the folder of a model ({_CONFIG}, {SINGLE_FILE})"


class Planned(NamedTuple):
    """A tensor to write: its shape, and value(), which returns its values in a floating point dtype."""

    shape: tuple[int, ...]
    value: Callable[[], np.ndarray]


def fetch(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Returns the folder or GGUF file `name`, or downloads the files of the hub's model that match `patterns`.

    A folder with the model's files is returned whatever else is in it.

    Args:
      name: a folder, a GGUF file, `package:PACKAGE/PATH` or a hub id.
      revision: the hub's branch, tag or commit; None is the default branch.
      patterns: names or patterns of files, such as WEIGHT_PATTERNS; read only for the hub.

    Returns:
      The path, or the folder in the hub's cache.

    Raises:
      FileError: there is no such folder, it is that of a run and not of a model, or the name cannot be a path.
      HubError: there is no such model on the hub, or the hub cannot be reached.
    """
    _require_name(str(name))
    folder = as_path(model_folder(name) if str(name).startswith("package:") else name)
    if folder.is_dir():
        if not (folder / _CONFIG).is_file() and (run := say_what_run_has(folder, name="merged", file=_CONFIG)):
            raise FileError(f"{name}: {_EXPECTED}; found no {_CONFIG}{run}")
        return folder
    if folder.is_file():
        if is_gguf(folder):
            return folder
        raise FileError(f"{name}: {_EXPECTED}; found {say_what_the_file_is(folder)}")
    if looks_like_path(name):
        raise FileError(f"{name}: {_EXPECTED}; found no such folder{nearest_file(folder)}")
    from huggingface_hub import snapshot_download  # also imports an HTTP client
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (OSError, HFValidationError) as error:
        if "/" in name and folder.parent.is_dir():  # more likely a folder than a model whose owner has that name
            raise FileError(
                f"{name}: {_EXPECTED}; found no such folder{nearest_file(folder)}, and no model of that name on the hub"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubError(
            f"{name}: expected a folder or a model on the Hugging Face hub; found no such folder, "
            f"and the hub says: {reason}\nCheck the name and the connection, or give the folder of a model"
        ) from error


def _require_name(name: str) -> None:
    """Raises FileError for an empty name and for an address, which as a path would be a missing folder."""
    if not name.strip():
        raise FileError(f"model: {_EXPECTED}, or a name on the hub; found an empty name")
    if name.startswith(("http://", "https://")):
        known = name.partition("huggingface.co/")[2].strip("/")
        hint = f"Give its name on the hub: {known}" if known else "Give its name on the hub, or download its folder"
        raise FileError(f"{name}: {_EXPECTED}, or a name on the hub; found an address. {hint}")


def find_downloaded(name: str, revision: str | None, patterns: Sequence[str]) -> Path | None:
    """Returns what `fetch` would return without a download: a file, a folder, or a folder in the hub's cache.

    Returns None if there is no such folder on this disk, or none of its files matches `patterns`.
    """
    folder = as_path(model_folder(name) if str(name).startswith("package:") else name)
    if folder.is_file():
        return folder
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        try:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (OSError, HFValidationError):
            return None
    return folder if any(file for pattern in patterns for file in folder.glob(pattern)) else None


def open_tensors(folder: Path) -> Mapping[str, StoredTensor | GgufTensor]:
    """Opens the tensors of a GGUF file, or of a folder's model.safetensors or shards, as {key: tensor}.

    Shards are the files that `model.safetensors.index.json` names. Only headers are read; a tensor has `shape`, `key`,
    `file`, and `read(dtype, index)`, which returns its numbers.

    Raises:
      FileError: there are no such files (pickles are named and never opened), `open_safetensors` or `gguf_tensors`
        refuses one, a shard or key of the index is missing, a shard is in another folder, or a key is in two shards or
        not in the index.
    """
    if is_gguf(folder):
        return gguf_tensors(folder)
    if (folder / SINGLE_FILE).is_file():
        return open_safetensors(folder / SINGLE_FILE)
    if not (folder / INDEX_FILE).is_file():
        raise FileError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}; found {say_what_is_instead(folder)}")
    where = _weight_map(folder / INDEX_FILE)
    shards = {file: _open_shard(folder / file) for file in sorted(set(where.values()))}
    for key, file in where.items():
        if key not in shards[file]:
            raise FileError(
                f"{folder / file}: {key}: expected by {INDEX_FILE}; found no such key in the file; download or copy"
                " the folder again"
            )
    _require_all_named(folder, shards, where)
    return {key: shards[file][key] for key, file in where.items()}


def _require_all_named(
    folder: Path, shards: Mapping[str, Mapping[str, StoredTensor]], where: Mapping[str, str]
) -> None:
    """Requires the index to name all tensors: some programs read by the index, others everything in the shards."""
    for file, tensors in shards.items():
        for key in tensors:
            if where.get(key) != file:
                found = f"that it names {where[key]}" if key in where else "no such key in it"
                raise FileError(
                    f"{folder / file}: {key}: expected {INDEX_FILE} to name this file for the key; found {found}."
                    " Other programs would load another model: delete the tensor from the file or correct the index"
                )


def _weight_map(index: Path) -> dict[str, str]:
    """Reads {key: the file that has it} from the index; only files in the same folder are accepted."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict):
        raise FileError(f"{index}: weight_map: expected an object of key: file name; found {reprlib.repr(where)}")
    for key, file in where.items():
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            found = reprlib.repr(file)
            raise FileError(f"{index}: weight_map: {key}: expected the name of a file in its folder; found {found}")
    return where


def _open_shard(file: Path) -> dict[str, StoredTensor]:
    if not file.is_file():
        raise FileError(f"{file}: expected by {INDEX_FILE}; found no such file; download or copy the folder again")
    return open_safetensors(file)


def write_model(
    folder: Path, tensors: Mapping[str, Planned], configs: Sequence[Any], dtype: str, max_shard_bytes: int
) -> None:
    """Writes the weights, rounded once to `dtype`, and `configs` by their `save_pretrained`; replaces old weights.

    Everything is written to a temporary folder first, with one tensor in memory at a time. The file that readers look
    for is moved last, so that after a crash the folder has no weights rather than only half of them.

    Args:
      folder: created if it does not exist.
      tensors: {key in the file: its shape and values}.
      configs: transformers' configs; each writes its own file.
      dtype: a key of DTYPES: float32, bfloat16 or float16.
      max_shard_bytes: above this size, model.safetensors becomes several files and an index.

    Raises:
      JloraError: `dtype` is not in DTYPES, or cannot hold a finite value.
    """
    if dtype not in DTYPES:
        raise JloraError(f"dtype: expected one of {', '.join(DTYPES)}; found {dtype!r}")
    with whole_model(folder) as partial:
        _write_shards(partial, tensors, DTYPES[dtype], max_shard_bytes)
        for config in configs:
            config.save_pretrained(partial)


def whole_model(folder: Path) -> AbstractContextManager[Path]:
    """Returns a context manager that yields a temporary folder; its files are moved to `folder` if the block succeeds.

    Old weights in `folder` are deleted then, other files remain; the new weights are moved last (`whole_folder`).
    """
    return whole_folder(folder, last=(SINGLE_FILE, INDEX_FILE), stale=WEIGHT_PATTERNS)


def _write_shards(folder: Path, tensors: Mapping[str, Planned], dtype: np.dtype, max_shard_bytes: int) -> None:
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: int(np.prod(tensor.shape)) * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, keys in split.filename_to_tensors.items():
        _write_file(folder / file, {key: tensors[key] for key in sorted(keys)}, dtype)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_file(file: Path, tensors: Mapping[str, Planned], dtype: np.dtype) -> None:
    """Writes a safetensors file: the header's length, the header, then one tensor after another."""
    code = next(name for name, known in READABLE.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, tensor in tensors.items():
        start, end = end, end + int(np.prod(tensor.shape)) * dtype.itemsize
        header[key] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for key, tensor in tensors.items():
            stream.write(_cast(key, tensor, dtype).reshape(-1).view(np.uint8).data)


def _cast(key: str, tensor: Planned, dtype: np.dtype) -> np.ndarray:
    value = tensor.value()
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(value.astype(dtype, copy=False))
    if dtype == DTYPES["float16"] and bool((np.isinf(rounded) & np.isfinite(value)).any()):
        raise JloraError(
            f"{key}: expected values that float16 can hold (at most 65504); found {np.abs(value).max()}; "
            "choose bfloat16 or float32"
        )
    return rounded
