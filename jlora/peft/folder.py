"""Reads and writes the folders that PEFT opens: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jlora.errors import FileError, JloraError
from jlora.files.atomic_folder import whole_folder
from jlora.files.finite import require_finite
from jlora.initialization.abstract_adapter import abstract_stored
from jlora.initialization.residual import of_plain_base
from jlora.initialization.trace_uses import BaseUses, trace_uses
from jlora.lora.config import LoraConfig
from jlora.lora.dora import squared_norm
from jlora.lora.entries import Adapter, Entry, LowRank
from jlora.lora.tied_embedding import is_tied_in_peft
from jlora.peft.config_file import CONFIG, RECOMPUTED, base_name_in, read_config, read_fields, to_config, write_config
from jlora.peft.fitted_config import fitted_config
from jlora.peft.key_errors import require_keys
from jlora.peft.lora_bias import fold_lora_bias
from jlora.peft.redundant_tensors import tied_head, without_copies
from jlora.peft.same_base import adapted_modules, require_base_name, require_base_sizes
from jlora.peft.stored_tensors import WEIGHTS, read_tensors, weights_file
from jlora.peft.tensor_keys import PREFIX, from_peft, is_conv1d, names_of_adapted, to_peft
from jlora.peft.torch_paths import in_torch_paths
from jlora.peft.true_config import true_config
from jlora.peft.unused_names import warn_of_unused
from jlora.peft.vllm import for_vllm
from jlora.tree.leaf_paths import array_leaves
from jlora.tree.module_names import torch_path
from jlora.tree.output_heads import HEAD, HEAD_NAMES

if TYPE_CHECKING:
    from jaxtyping import PyTree

__all__ = ["from_peft", "head_rows", "load_adapter", "save_adapter", "read_lora_config", "to_peft"]


def save_adapter(
    folder: str | os.PathLike,
    adapter: Adapter,
    config: LoraConfig,
    *,
    base_model: str | None = None,
    vllm: bool = False,
    names: Mapping[str, str] | None = None,
) -> None:
    """Writes the adapter so that PEFT opens it, in float32, with a configuration that matches it.

    Writes the adapter's actual ranks, scales and modules, even if `config` has others. With `ensure_weight_tying` it
    also writes the tensors of a tied embedding under `lm_head`, as PEFT does.

    Args:
      folder: created if it does not exist; its two adapter files are replaced.
      adapter: {path: LowRank | Full | Rows}.
      config: the configuration that the adapter was made with.
      base_model: name or folder of the base, recorded for those who load it.
      vllm: write an adapter that vLLM can serve: the scale folded into B, all ranks padded to one r, lora_alpha = r.
      names: {path: PyTorch's name of the parameter}, for a tree whose paths differ from the PyTorch model's:
        {"blocks/q/kernel": "model.layers.{}.self_attn.q_proj.weight"}, with {} for the number of the layer in a
        stack. It must have every path of the adapter.

    Raises:
      JloraError: an entry that PEFT's files, or vLLM with `vllm`, cannot hold; a path whose name PEFT would not find.
    """
    adapter = in_torch_paths(adapter, names)
    folder, adapted = Path(folder), names_of_adapted(adapter)
    if vllm:
        adapter, config = for_vllm(adapter, config, adapted)
    else:
        config = true_config(config, adapter)
    tensors = to_peft(adapter)
    tensors = tied_head(tensors, adapter) | tensors
    tensors = {key: np.ascontiguousarray(tensor, np.float32) for key, tensor in tensors.items()}
    fan_in_fan_out = any(is_conv1d(path, entry) for path, entry in adapter.items())
    with whole_folder(folder) as partial:
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        write_config(partial, config, base_model, adapted, fan_in_fan_out=fan_in_fan_out)


def load_adapter(
    folder: str | os.PathLike,
    base: PyTree,
    fn: Callable,
    *args: Any,
    base_model: str | None = None,
    allow_materialize: bool = False,
    names: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> tuple[dict[str, Entry], LoraConfig]:
    """Reads an adapter made here, by PEFT or by mlx-lm.

    The configuration and the tensors must agree. Names that the model does not have are ignored, as in PEFT. A PiSSA or
    OLoRA adapter becomes one of twice the rank for the original base.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors` (mlx-lm's `adapters.safetensors`).
      base: the base that it was made for; leaves may be ShapeDtypeStructs unless the adapter uses DoRA.
      fn, args, kwargs: the adapter is for `fn(base, *args, **kwargs)`, which is only traced: args may be
        ShapeDtypeStructs.
      base_model: name or folder of `base`, compared with the one that `adapter_config.json` names; None: not compared.
      allow_materialize: also adapt weights that go through an operation without a low-rank rule; needed if the adapter
        was made with it.
      names: {path: PyTorch's name of the parameter}, such as {"blocks/q/kernel": "model.layers.{}.q_proj.weight"}, if
        the tree's paths differ from the PyTorch model's. The returned configuration then uses PyTorch's names.

    Returns:
      (adapter, config): {path: LowRank | Full | Rows}, float32 for LowRank and in the leaf's dtype for the others; and
      the file's configuration.

    Raises:
      FileError: a missing file, an unsupported feature, a pickle, or NaN or infinite values.
      AdapterMismatchError: another base, or a key that is missing, unexpected or does not have the base's shape.
      NoRuleError: the adapter was made with `allow_materialize`.
    """

    def trace() -> BaseUses:
        return trace_uses(fn, base, args, kwargs, names)

    return read_adapter(folder, base, trace, base_model=base_model, allow_materialize=allow_materialize, names=names)


def read_adapter(
    folder: str | os.PathLike,
    base: PyTree,
    trace: Callable[[], BaseUses],
    *,
    base_model: str | None = None,
    allow_materialize: bool = False,
    names: Mapping[str, str] | None = None,
) -> tuple[dict[str, Entry], LoraConfig]:
    """Reads an adapter as `load_adapter` does. Tracing takes most of the time: a program may do it once.

    Args:
      trace: trace() returns `trace_uses` of the function, made with the same `names`; it is called after first checks.
      folder, base, base_model, allow_materialize, names: as for `load_adapter`.

    Returns:
      (adapter, config).

    Raises:
      FileError, AdapterMismatchError: as for `load_adapter`.
    """
    folder = Path(folder)
    fields, file = read_fields(folder), folder / CONFIG
    config, where = _with_tying(to_config(fields, file), folder), str(weights_file(folder))
    base_name, leaves, tensors = base_name_in(fields, file), array_leaves(base), read_tensors(folder)
    require_base_name(base_name, base_model, file)
    named_leaves = {torch_path(path, names): leaf for path, leaf in leaves.items()}
    require_base_sizes(tensors, named_leaves, where, base_name)
    modules = adapted_modules(tensors)
    seen = trace()
    template = abstract_stored(str(file), config, seen, adapted=modules, allow_materialize=allow_materialize)
    named = {torch_path(path, names): entry for path, entry in template.items()}
    if fields.get("lora_bias"):
        tensors = fold_lora_bias(tensors, named, named_leaves, where)
    if fields.get("target_parameters"):
        _require_no_conv1d(named, file)
    tensors = without_copies(tensors, named, named_leaves, where)
    bases = [module for names in (*seen.modules.values(), *seen.tied.values()) for module in names]
    require_keys(tensors, named, config, bases, where)
    read = from_peft(tensors, named, where)
    warn_of_unused(fields, config, names_of_adapted(named), [*bases, *[HEAD] * bool(seen.tied)], file)
    adapter = {path: read[torch_path(path, names)] for path in template}
    for key, tensor in tensors.items():  # their shapes have been checked, which limits the work
        require_finite(tensor, f"{where}: {key}")
    adapter = _with_norms(adapter, leaves)
    if config.init_lora_weights in RECOMPUTED:  # PEFT also subtracts the start from the base when it opens the file
        adapter = of_plain_base(adapter, config, base)
        named = {torch_path(path, names): entry for path, entry in adapter.items()}
        config = fitted_config(dataclasses.replace(config, init_lora_weights=True), named)
    return adapter, config


def read_lora_config(folder: str | os.PathLike) -> LoraConfig:
    """Reads the configuration of an adapter's folder, `adapter_config.json`.

    Its `ensure_weight_tying` is true only if PEFT would tie modules: if the configuration or a tensor's key names the
    head or `embed_tokens`. Tensors are not read otherwise.

    Raises:
      FileError: `adapter_config.json` is missing, is not JSON or LoRA, or has an unsupported feature; with
        `ensure_weight_tying` also if the file of the tensors is missing or damaged.
    """
    return _with_tying(read_config(Path(folder)), Path(folder))


def _with_tying(config: LoraConfig, folder: Path) -> LoraConfig:
    tied = config.ensure_weight_tying and is_tied_in_peft(config, read_tensors(folder))
    return dataclasses.replace(config, ensure_weight_tying=tied)


def head_rows(folder: str | os.PathLike) -> int | None:
    """Returns the number of outputs of the classification head in an adapter's file; None if it has no head.

    These are the rows of `classifier.weight` or `score.weight`, or of `out_proj.weight` inside one of the two.
    """
    tensors = read_tensors(Path(folder))
    ends = tuple(f"{head}{layer}.weight" for head in HEAD_NAMES for layer in ("", ".out_proj"))
    return next((value.shape[0] for key, value in tensors.items() if key.removeprefix(PREFIX) in ends), None)


def _with_norms(adapter: dict[str, Entry], leaves: Mapping[str, Any]) -> dict[str, Entry]:
    """Adds the base's norms that DoRA needs; the magnitudes of layers without an adapter are set to their norms."""
    for path, entry in adapter.items():
        if isinstance(entry, LowRank) and entry.magnitude is not None:
            if isinstance(leaves[path], jax.ShapeDtypeStruct):
                raise JloraError(f"{path}: expected the base's values, whose norms DoRA needs; found a shape alone")
            norms = squared_norm(entry, leaves[path])
            adapted = jnp.asarray(entry.ranks).reshape(-1, *(1,) * (norms.ndim - 1)) > 0
            if entry.scale.ndim == 1:
                adapted = jnp.ones_like(norms, bool)
            magnitude = jnp.where(adapted, entry.magnitude, jnp.sqrt(norms))
            adapter[path] = dataclasses.replace(entry, magnitude=magnitude, squared_norm=norms)
    return adapter


def _require_no_conv1d(template: Adapter, file: Path) -> None:
    """Refuses Conv1D: PEFT's A and B of a parameter are for its last and first axis, which Conv1D swaps."""
    for path, entry in template.items():
        if is_conv1d(path, entry):
            raise FileError(
                f"{file}: target_parameters: expected weights of linear layers, found {path}, which is stored"
                " transposed. Name its module in target_modules instead"
            )
