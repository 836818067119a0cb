"""Loads and saves a model's weights in safetensors files, with one map between leaves and keys for both directions."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jlora.errors import FileError, JloraError, nearest
from jlora.models.family import HEAD_KEY
from jlora.models.registry import abstract_base, example_batch, family
from jlora.pretrained.folder import Planned, write_model
from jlora.pretrained.foreign_keys import say_whose_key
from jlora.pretrained.place_leaf import load_leaf, place_on_mesh
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.stored_head import with_both_tables
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from jlora.tree.module_names import hf_keys, is_stacked, is_transposed
from jlora.tree.quantized import QuantizationKind, as_array, is_quantized

if TYPE_CHECKING:
    from jaxtyping import PyTree
    from transformers import GenerationConfig

logger = logging.getLogger("jlora")

_OTHER_CONFIG = "If config.json is of another model than the weights, take the one that belongs to them"


def load_weights(
    model: Any,
    source: PretrainedSource,
    *,
    param_dtype: Any = jnp.float32,
    quantize: QuantizationKind | None = None,
    key: jax.Array | None = None,
    new_head: bool = False,
    mesh: Mesh | None = None,
) -> Any:
    """Loads the weights of `model` tensor by tensor: each is cast and put on the device before the next is read.

    Args:
      model: from `build`.
      source: where the weights are stored.
      param_dtype: of the leaves, float32 or bfloat16.
      quantize: "nf4" or "int8" makes `Quantized` leaves of the weights of linear layers, except heads. Each layer is
        quantized when it is read, so that the dense model is never in memory.
      key: initialises a head that the files do not have; the log names it.
      new_head: replaces a head for another number of classes with a newly initialised one.
      mesh: splits the leaves over its devices, as `jlora.base_shardings` says. A process reads only what its own
        devices hold, except that it reads tensors to be quantized, and those of GGUF files, in full for a moment.

    Returns:
      {"params": ...} with the shapes of `abstract_base(model)`.

    Raises:
      FileError: there are no safetensors files (pickles are never opened), a file is incomplete, a key is missing,
        unexpected or of another shape, or a dtype is not floating point.
      JloraError: a new head needs a `key`, or `param_dtype` or `quantize` has another value.
    """
    _require_options(param_dtype, quantize)
    folder, abstract = source.fetch_weights(), abstract_base(model)
    leaves = leaves_by_path(abstract)
    wanted, tensors, new, dropped, replaced = _match_tensors(model, source, leaves, new_head)
    if dropped:
        logger.info("%s: not used: %s", folder, ", ".join(dropped))
    if new and key is None:
        raise JloraError(
            f"{folder}: expected {_some(_names(new, wanted))}; found no such head; to initialise it, give a key: "
            "load_base(..., key=jax.random.key(0))"
        )
    sources = {path: [tensors[name] for name in names] for path, names in wanted.items() if path not in new}
    for path, stored in sources.items():
        _require_shapes(path, leaves[path].shape, stored, family(model.config.model_type).new_heads)
    # Load the largest tensors first. Each exists twice for a moment (file and device), and early on the memory is
    # almost empty.
    order = sorted(sources, key=lambda path: leaves[path].size, reverse=True)
    loaded = {path: load_leaf(path, sources[path], param_dtype, quantize, mesh) for path in order}
    if new and key is not None:
        instead = "".join(f"; this replaces {name} of shape {shape}" for name, shape in replaced.items())
        logger.warning("%s: newly initialised: %s%s", folder, ", ".join(_names(new, wanted)), instead)
        made = {path: leaf.astype(param_dtype) for path, leaf in _initialise(model, key, new).items()}
        loaded |= {path: place_on_mesh(path, leaf, mesh) for path, leaf in made.items()}
    return replace_leaves(abstract, loaded)


def _require_options(param_dtype: Any, quantize: Any) -> None:
    if param_dtype not in (jnp.float32, jnp.bfloat16):
        raise JloraError(f"param_dtype: expected float32 or bfloat16; found {param_dtype!r}")
    if quantize not in (None, *get_args(QuantizationKind)):
        raise JloraError(f"quantize: expected one of {', '.join(get_args(QuantizationKind))}; found {quantize!r}")


def new_heads(model: Any, source: PretrainedSource, *, new_head: bool = False) -> dict[str, list[str]]:
    """Returns {path of a leaf: keys} of the heads that the files lack and `load_weights` would initialise; {} if none.

    No tensor is read, only the headers of the files.

    Args:
      model: from `build`.
      source: where the files are.
      new_head: whether a head for another number of classes counts as missing; otherwise shapes are not compared.

    Raises:
      FileError: there are no such files; a key other than a head's is missing or unexpected; only some keys of a head
        are missing.
    """
    match = _match_tensors(model, source, leaves_by_path(abstract_base(model)), new_head)
    return {path: match.wanted[path] for path in sorted(match.new)}


def save_base(
    folder: str | Path, model: Any, base: PyTree, *, dtype: str = "float32", max_shard_bytes: int = 5_000_000_000
) -> None:
    """Writes `base` as a checkpoint of the Hugging Face class with the same name as `model`'s class.

    Writes model.safetensors (shards and an index above `max_shard_bytes`), config.json and, for a causal language
    model, generation_config.json. Older weights in `folder` are replaced, and other files remain. A crash leaves no
    incomplete model. Only one layer's tensor is copied at a time.

    Args:
      folder: created if it does not exist.
      model, base: from `load_base`; `base` may be any tree of the same paths and shapes. Quantized weights are written
        dequantized.
      dtype: "float32", "bfloat16" or "float16"; values are rounded to it once.
      max_shard_bytes: size in bytes above which a file is split.

    Raises:
      JloraError: `base` is not a tree of this model, `dtype` is unknown or cannot hold a value.
    """
    expected = {path: leaf.shape for path, leaf in leaves_by_path(abstract_base(model)).items()}
    leaves = leaves_by_path(base)
    found = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            wanted, given = (shapes.get(path, "no such leaf") for shapes in (expected, found))
            raise JloraError(f"{path}: expected shape {wanted}; found {given}")
    tensors, stored_names = {}, family(model.config.model_type).stored_names
    for path, leaf in leaves.items():
        for layer, name in enumerate(_keys(path, leaf.shape)):
            tensors[stored_names.get(name, name)] = Planned(
                _checkpoint_shape(path, leaf.shape), partial(_tensor, path, leaf, layer)
            )
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], dtype
    configs = [config] + ([_generation(config)] if family(config.model_type).task == "CAUSAL_LM" else [])
    write_model(Path(folder), tensors, configs, dtype, max_shard_bytes)


def _generation(config: Any) -> GenerationConfig:
    """Makes the generation config (start, stop and padding tokens), which Hugging Face reads from its own file."""
    from transformers import GenerationConfig

    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(**{name: getattr(config, name, None) for name in ids})


def _keys(path: str, shape: tuple[int, ...]) -> list[str]:
    return hf_keys(path, shape[0] if is_stacked(path) else None)


def _checkpoint_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of one layer's tensor in a checkpoint."""
    shape = shape[1:] if is_stacked(path) else shape
    return shape[::-1] if is_transposed(path) else shape


class _Match(NamedTuple):
    """The comparison of a source's keys with a model's.

    Attributes:
      wanted: {path: its keys}.
      tensors: {key: tensor}.
      new: paths of new heads.
      dropped: keys that are not read.
      replaced: {key: its shape in the files} of heads that are replaced because their size differs.
    """

    wanted: dict[str, list[str]]
    tensors: dict[str, Any]
    new: set[str]
    dropped: list[str]
    replaced: dict[str, tuple[int, ...]]


def _match_tensors(model: Any, source: PretrainedSource, leaves: Mapping[str, Any], new_head: bool) -> _Match:
    module, folder = family(model.config.model_type), source.fetch_weights()
    wanted = {path: _keys(path, leaf.shape) for path, leaf in leaves.items()}
    names = {name for names in wanted.values() for name in names}
    head = {HEAD_KEY} if module.task == "CAUSAL_LM" else set()
    tensors, dropped = _find_known_tensors(module, source.tensors, names | head)
    if head:
        tensors = with_both_tables(model, folder, tensors, files_tie=source.config.tie_word_embeddings)
    others = _of_another_size(module, tensors, wanted, leaves) if new_head else {}
    kept = {name: tensor for name, tensor in tensors.items() if name not in others}
    return _Match(wanted, kept, _new_heads(module, folder, kept, wanted, tuple(others)), dropped, others)


def _of_another_size(
    module: Any, tensors: Mapping[str, Any], wanted: Mapping[str, list[str]], leaves: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Returns {key: its shape in the files} of heads that have another shape in the model."""
    expected = {name: _checkpoint_shape(path, leaves[path].shape) for path, names in wanted.items() for name in names}
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name.startswith(module.new_heads)}
    return {name: shape for name, shape in shapes.items() if shape != expected.get(name, shape)}


def _find_known_tensors(module: Any, stored: Mapping[str, Any], wanted: set[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns ({current full key: stored tensor}, the keys that are not read)."""
    known: dict[str, Any] = {}
    dropped = []
    for key, tensor in stored.items():
        name = _todays_name(module, key, wanted)
        if name in known:
            raise FileError(f"{tensor.file}: {key}: expected once; found also as {known[name].key}")
        elif name in wanted:
            known[name] = tensor
        elif name.startswith(module.dropped):
            dropped.append(key)
        elif not name.endswith(module.buffers):
            expected = f"{tensor.file}: {key}: expected a key of {module.model.__name__}"
            unknown = f"one that it does not have{nearest(name, wanted)}. {_OTHER_CONFIG}"
            raise FileError(f"{expected}; found {say_whose_key(key) or unknown}")
    return known, dropped


def _todays_name(module: Any, key: str, wanted: set[str]) -> str:
    for old, new in module.old_suffixes.items():
        if key.endswith(old):
            key = key.removesuffix(old) + new
    if key in wanted:
        return key
    full = f"{module.prefix}.{key}"
    return full if full in wanted or full.endswith(module.buffers) or full.startswith(module.dropped) else key


def _new_heads(
    module: Any, folder: Path, tensors: Mapping[str, Any], wanted: Mapping[str, list[str]], replaced: tuple[str, ...]
) -> set[str]:
    """Returns the paths of the heads that are missing as a whole or `replaced`; raises for any other missing key."""
    absent = replaced + tuple(head for head in module.new_heads if not any(name.startswith(head) for name in tensors))
    missing = [name for names in wanted.values() for name in names if name not in tensors]
    required = [name for name in missing if not name.startswith(absent)]
    if required:
        raise FileError(
            f"{folder}: expected {_some(required)}; found no such keys. Copy or download the folder again."
            f" {_OTHER_CONFIG}"
        )
    return {path for path, names in wanted.items() if names[0] in missing}


def _names(paths: Iterable[str], wanted: Mapping[str, list[str]]) -> list[str]:
    return sorted(name for path in paths for name in wanted[path])


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _require_shapes(path: str, shape: tuple[int, ...], tensors: Iterable[Any], heads: tuple[str, ...]) -> None:
    expected = _checkpoint_shape(path, shape)
    for tensor in tensors:
        tensor.require_float()
        if tensor.shape != expected:
            is_head = hf_keys(path, None)[0].startswith(heads)
            hint = ": the head is for another number of classes; new_head=true replaces it"
            hint = hint if is_head else f". {_OTHER_CONFIG}"
            raise FileError(f"{tensor.file}: {tensor.key}: expected shape {expected}; found {tensor.shape}{hint}")


def _tensor(path: str, leaf: Any, layer: int) -> np.ndarray:
    """Returns one layer of a leaf as the checkpoint's tensor."""
    value = jax.tree.map(lambda x: x[layer], leaf) if is_stacked(path) else leaf
    value = np.asarray(as_array(value, jnp.float32) if is_quantized(value) else value)
    return value.T if is_transposed(path) else value


def _initialise(model: Any, key: jax.Array, paths: set[str]) -> dict[str, jax.Array]:
    """Computes the leaves at `paths` of `model.init(key, ...)`; jit removes the computation of all others."""
    batch = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in example_batch(model.config).items()}

    @jax.jit
    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {path: leaf for path, leaf in leaves_by_path(model.init(key, batch)).items() if path in paths}

    return init(key)
