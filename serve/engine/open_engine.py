"""Opens the base model and makes its engine: one that writes text, or one that classifies."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jlora.bank.bank import Bank, make_bank
from jlora.bank.unstack_entries import unstack_entries
from jlora.errors import FileError, JloraError
from jlora.generation.generator import context_length
from jlora.generation.open_model import end_ids, load_language_model
from jlora.initialization.trace_uses import trace_uses
from jlora.lora.entries import Full
from jlora.models.registry import abstract_base, family
from jlora.models.unstack_layers import unstack_layers
from jlora.peft.config_file import RECOMPUTED
from jlora.peft.folder import read_adapter, read_lora_config
from jlora.pretrained.load import build, example_batch, load_weights
from jlora.pretrained.locate import settle_hub
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.weights import new_heads
from jlora.sharding.mesh import make_mesh, set_mesh
from jlora.tree.leaf_paths import leaves_by_path
from serve.config import ServeConfig
from serve.engine.adapters import AdapterSlots, Read, StoredAdapter
from serve.engine.classifier_engine import ClassifierEngine
from serve.engine.labels import read_labels
from serve.engine.loop import LanguageEngine
from serve.engine.prefill_and_decode import step_of
from serve.engine.row_pool import RowPool, make_sizes

_LONGEST = 4096
"""The context of a model that has positions for more, unless the configuration asks for them."""


class OpenedEngine(NamedTuple):
    """An engine that has not been started, the base's tokenizer, and the tokens that end a text."""

    engine: LanguageEngine | ClassifierEngine
    tokenizer: Any
    stop_ids: tuple[int, ...]


def open_engine(config: ServeConfig, folders: Mapping[str, Path]) -> OpenedEngine:
    """Loads the base, makes a bank of empty slots for it, and an engine for the adapters `folders` {name: folder}.

    Raises:
      JloraError: the model cannot be loaded.
    """
    settle_hub(config.model)
    is_classifier = family(PretrainedSource(config.model).config.model_type).task == "SEQ_CLS"
    return (_open_classifier if is_classifier else _open_language_model)(config, folders)


def _open_language_model(config: ServeConfig, folders: Mapping[str, Path]) -> OpenedEngine:
    dtype, mesh = jnp.dtype(config.dtype), _mesh(config)
    opened = load_language_model(config.model, use_adapter=False, dtype=dtype, quantize=config.quantize, mesh=mesh)
    model, base = opened.adapted.model, opened.adapted.base
    context, read = _context(config, model), functools.partial(_read, abstract_base(model), _trace(model, base))
    is_unstacked = jax.default_backend() == "cpu" and config.quantize is None and mesh is None
    if is_unstacked:  # on a CPU, steps then take less than half the time
        base, read = unstack_layers(base, dtype), functools.partial(_read_unstacked, read)
    bank = _empty_bank(config, mesh, base, *step_of(model, is_unstacked=is_unstacked))
    with set_mesh(mesh):
        pool = RowPool(model, base, make_sizes(config.rows, context), is_unstacked=is_unstacked)
    engine = LanguageEngine(
        config.base_name,
        _adapter_slots(bank, read, folders),
        read,
        pool=pool,
        context=context,
        waiting=config.waiting,
        prefixes=0 if _depends_on_length(model) else config.prefixes,
        mesh=mesh,
    )
    return OpenedEngine(engine, opened.tokenizer, end_ids(model.config, opened.tokenizer))


def _open_classifier(config: ServeConfig, folders: Mapping[str, Path]) -> OpenedEngine:
    """Opens an encoder with a head of `config.labels` outputs, which adapters fill from the first one on."""
    source, dtype, mesh = PretrainedSource(config.model), jnp.dtype(config.dtype), _mesh(config)
    model = build(source.config_with(num_labels=config.labels), dtype=dtype)
    options: dict[str, Any] = {"param_dtype": dtype, "quantize": config.quantize, "mesh": mesh}
    base = load_weights(model, source, key=jax.random.key(0), new_head=True, **options)
    heads = {path.rsplit("/", 2)[-2] for path in new_heads(model, source, new_head=True)}
    read = _head_reader(source, base, config.labels)
    batch = example_batch(model.config)
    bank = _empty_bank(config, mesh, base, model.apply, batch, modules_to_save=sorted(heads))
    engine = ClassifierEngine(
        config.base_name,
        model,
        base,
        _adapter_slots(bank, read, folders),
        read,
        rows=config.rows,
        context=_context(config, model),
        waiting=config.waiting,
        mesh=mesh,
    )
    return OpenedEngine(engine, source.tokenizer, ())


def _depends_on_length(model: Any) -> bool:
    """Returns whether keys are rotated by how long a row will be: two prompts then share no keys."""
    return (getattr(model.config, "rope_parameters", None) or {}).get("rope_type") == "longrope"


def _context(config: ServeConfig, model: Any) -> int:
    """Returns the most tokens of a request: what the configuration asks for, at most the model's own number."""
    own = context_length(model)
    if config.context is None:
        return min(own or _LONGEST, _LONGEST)
    return min(config.context, own or config.context)


def _mesh(config: ServeConfig) -> Mesh | None:
    """Makes the mesh of the devices that share the base; None for one device.

    Raises:
      JloraError: there are fewer devices.
    """
    count, devices = config.mesh.tensor, jax.devices()
    if count > len(devices):
        raise JloraError(f"mesh.tensor: expected at most {len(devices)}, the number of devices here; found {count}")
    return None if count == 1 else make_mesh(1, 1, count, devices[:count])


def _empty_bank(config: ServeConfig, mesh: Mesh | None, base: Any, fn: Any, *args: Any, **options: Any) -> Bank:
    sizes: dict[str, Any] = {"slots": config.slots, "max_rank": config.max_rank, "targets": config.target_modules}
    bank = make_bank(base, fn, *args, **sizes, **options)
    return bank if mesh is None else jax.device_put(bank, NamedSharding(mesh, PartitionSpec()))


def _adapter_slots(bank: Bank, read: Read, folders: Mapping[str, Path]) -> AdapterSlots:
    return AdapterSlots(bank, read, ThreadPoolExecutor(1, thread_name_prefix="adapters"), folders)


def _trace(model: Any, base: Any) -> Any:
    """Traces the model once: reading an adapter then takes a fraction of the time."""
    return trace_uses(model.apply, base, (example_batch(model.config),), {}, None)


def _read(base: Any, seen: Any, folder: Path) -> StoredAdapter:
    """Reads an adapter of the base; what a bank has no place for is refused by `put`, with the path.

    Raises:
      FileError: the adapter needs the base's values: DoRA's norms, or the start of PiSSA and OLoRA.
    """
    lora = read_lora_config(folder)
    if lora.use_dora or lora.init_lora_weights in RECOMPUTED:
        kind = "DoRA" if lora.use_dora else lora.init_lora_weights
        raise FileError(
            f"{folder}: expected plain LoRA, which rows of other adapters can share a batch with, found {kind}. Serve"
            " it alone: merge it with jlora export, and give the merged model as `model`"
        )
    entries, _ = read_adapter(folder, base, lambda: seen, allow_materialize=True)
    return StoredAdapter(jax.device_get(entries))


def _read_unstacked(read: Read, folder: Path) -> StoredAdapter:
    return StoredAdapter(unstack_entries(read(folder).entries))


def _head_reader(source: PretrainedSource, base: Any, outputs: int) -> Read:
    """Returns read(folder) for classifiers: a head of fewer outputs is padded to `outputs`."""
    leaves = leaves_by_path(base)

    @functools.cache
    def traced(count: int) -> tuple[Any, Any]:
        model = build(source.config_with(num_labels=count))
        shapes = abstract_base(model)
        return shapes, _trace(model, shapes)

    def read(folder: Path) -> StoredAdapter:
        names, problem_type = read_labels(folder)
        if len(names) > outputs:
            raise FileError(f"{folder}: expected a head of at most {outputs} outputs (`labels`), found {len(names)}")
        entries = _read(*traced(len(names)), folder).entries
        padded = {path: _pad_outputs(entry, leaves[path].shape) for path, entry in entries.items()}
        return StoredAdapter(padded, names, problem_type)

    return read


def _pad_outputs(entry: Any, shape: tuple[int, ...]) -> Any:
    """Fills a leaf that is trained in full up with zeros, at the end of each axis."""
    if not isinstance(entry, Full):
        return entry
    room = [(0, size - own) for size, own in zip(shape, entry.value.shape, strict=True)]
    return Full(jnp.pad(jnp.asarray(entry.value), room), entry.layers, entry.only, entry.tied, entry.torch_axes)
