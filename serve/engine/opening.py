"""Opens the base model and makes its engine: one that writes text, or one that classifies."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jlora.bank.bank import make_bank
from jlora.errors import FileError
from jlora.generation.generator import context_length
from jlora.generation.open_model import end_ids, load_language_model
from jlora.initialization.base_uses import base_uses
from jlora.lora.entries import Full
from jlora.models.registry import abstract_base, family
from jlora.peft.folder import head_rows, read_adapter
from jlora.pretrained.load import build, example_batch, load_weights
from jlora.pretrained.locate import settle_hub
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.weights import new_heads
from jlora.tree.leaf_paths import leaves_by_path
from serve.config import ServeConfig
from serve.engine.adapters import AdapterSlots, Read
from serve.engine.classifier_engine import ClassifierEngine
from serve.engine.loop import LanguageEngine
from serve.engine.row_pool import make_sizes

_LONGEST = 4096
"""The context of a model that has positions for more, unless the configuration asks for them."""


class Opened(NamedTuple):
    """An engine that has not been started, the base's tokenizer, and the tokens that end a text."""

    engine: LanguageEngine | ClassifierEngine
    tokenizer: Any
    stop_ids: tuple[int, ...]


def open_engine(config: ServeConfig, folders: Mapping[str, Path]) -> Opened:
    """Loads the base, makes a bank of empty slots for it, and an engine for the adapters `folders` {name: folder}.

    Raises:
      JloraError: the model cannot be loaded.
    """
    settle_hub(config.model)
    is_classifier = family(PretrainedSource(config.model).config.model_type).task == "SEQ_CLS"
    return (_open_classifier if is_classifier else _open_language_model)(config, folders)


def _open_language_model(config: ServeConfig, folders: Mapping[str, Path]) -> Opened:
    dtype = jnp.dtype(config.dtype)
    opened = load_language_model(config.model, use_adapter=False, dtype=dtype, quantize=config.quantize)
    model, base = opened.adapted.model, opened.adapted.base
    context = _context(config, model)
    read = functools.partial(_read, base, _trace(model, base))
    adapters = _slots(config, model, base, read, folders)
    engine = LanguageEngine(
        config.base_name,
        model,
        base,
        adapters,
        read,
        sizes=make_sizes(config.rows, context),
        context=context,
        waiting=config.waiting,
        prefixes=config.prefixes,
    )
    return Opened(engine, opened.tokenizer, end_ids(model.config, opened.tokenizer))


def _open_classifier(config: ServeConfig, folders: Mapping[str, Path]) -> Opened:
    """Opens an encoder with a head of `config.labels` outputs, which adapters fill from the first one on."""
    source, dtype = PretrainedSource(config.model), jnp.dtype(config.dtype)
    model = build(source.config_with(num_labels=config.labels), dtype=dtype)
    options: dict[str, Any] = {"param_dtype": dtype, "quantize": config.quantize}
    base = load_weights(model, source, key=jax.random.key(0), new_head=True, **options)
    heads = {path.rsplit("/", 2)[-2] for path in new_heads(model, source, new_head=True)}
    read = _head_reader(source, base, config.labels)
    adapters = _slots(config, model, base, read, folders, modules_to_save=sorted(heads))
    context = _context(config, model)
    engine = ClassifierEngine(
        config.base_name, model, base, adapters, read, rows=config.rows, context=context, waiting=config.waiting
    )
    return Opened(engine, source.tokenizer, ())


def _context(config: ServeConfig, model: Any) -> int:
    """Returns the most tokens of a request: what the configuration asks for, at most the model's own number."""
    own = context_length(model)
    if config.context is None:
        return min(own or _LONGEST, _LONGEST)
    return min(config.context, own or config.context)


def _slots(
    config: ServeConfig, model: Any, base: Any, read: Read, folders: Mapping[str, Path], **options: Any
) -> AdapterSlots:
    bank = make_bank(
        base,
        model.apply,
        example_batch(model.config),
        slots=config.slots,
        max_rank=config.max_rank,
        targets=config.target_modules,
        **options,
    )
    return AdapterSlots(bank, read, ThreadPoolExecutor(1, thread_name_prefix="adapters"), folders)


def _trace(model: Any, base: Any) -> Any:
    """Traces the model once: reading an adapter then takes a fraction of the time."""
    return base_uses(model.apply, base, (example_batch(model.config),), {}, None)


def _read(base: Any, seen: Any, folder: Path) -> dict[str, Any]:
    """Reads an adapter of the base; what a bank has no place for is refused by `put`, with the path."""
    entries, _ = read_adapter(folder, base, lambda: seen, allow_materialize=True)
    return jax.device_get(entries)


def _head_reader(source: PretrainedSource, base: Any, outputs: int) -> Read:
    """Returns read(folder) for classifiers: a head of fewer outputs is padded to `outputs`."""
    leaves = leaves_by_path(base)

    @functools.cache
    def traced(count: int) -> tuple[Any, Any]:
        model = build(source.config_with(num_labels=count))
        shapes = abstract_base(model)
        return shapes, _trace(model, shapes)

    def read(folder: Path) -> dict[str, Any]:
        count = head_rows(folder)
        if count is None or count > outputs:
            found = "no head" if count is None else f"one of {count} outputs"
            raise FileError(f"{folder}: expected a classification head of at most {outputs} (`labels`), found {found}")
        entries = _read(*traced(count), folder)
        return {path: _pad_outputs(entry, leaves[path].shape) for path, entry in entries.items()}

    return read


def _pad_outputs(entry: Any, shape: tuple[int, ...]) -> Any:
    """Fills a leaf that is trained in full up with zeros, at the end of each axis."""
    if not isinstance(entry, Full):
        return entry
    room = [(0, size - own) for size, own in zip(shape, entry.value.shape, strict=True)]
    return Full(jnp.pad(jnp.asarray(entry.value), room), entry.layers, entry.only, entry.tied, entry.torch_axes)
