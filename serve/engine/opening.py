"""Opens the base model and makes its engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax

from jlora.bank.bank import make_bank
from jlora.generation.generator import context_length
from jlora.generation.open_model import LanguageModel, load_language_model
from jlora.initialization.base_uses import base_uses
from jlora.peft.folder import read_adapter
from jlora.pretrained.load import example_batch
from serve.engine.adapters import AdapterSlots, Read
from serve.engine.loop import LanguageEngine
from serve.engine.row_pool import make_sizes

logger = logging.getLogger(__name__)


def open_language_engine(
    model: str,
    folders: Mapping[str, Path],
    *,
    name: str,
    slots: int,
    max_rank: int,
    targets: str | Sequence[str],
    rows: int,
    context: int,
    dtype: Any,
    quantize: Literal["int8", "nf4"] | None,
    prefixes: int,
) -> tuple[LanguageEngine, LanguageModel]:
    """Loads the base, makes a bank of empty slots for it, and an engine that has not been started.

    Args:
      model: a folder, a GGUF file, a hub model, or package:PACKAGE/PATH, as for `load_language_model`.
      folders: {name: folder} of the adapters that can be asked for.
      name: what the base is called.
      slots, max_rank, targets: as for `jlora.make_bank`.
      rows: how many answers get tokens at the same time.
      context: the most tokens of prompt and answer; at most the model's own number is used.

    Raises:
      JloraError: the model cannot be loaded.
    """
    opened = load_language_model(model, use_adapter=False, dtype=dtype, quantize=quantize)
    module, base = opened.adapted.model, opened.adapted.base
    context = min(context, context_length(module) or context)
    batch = example_batch(module.config)
    bank = make_bank(base, module.apply, batch, slots=slots, max_rank=max_rank, targets=targets)
    read = adapter_reader(module, base)
    reader = ThreadPoolExecutor(1, thread_name_prefix="adapters")
    adapters = AdapterSlots(bank, read, reader, folders)
    sizes = make_sizes(rows, context)
    engine = LanguageEngine(name, module, base, adapters, read, sizes=sizes, context=context, prefixes=prefixes)
    return engine, opened


def adapter_reader(module: Any, base: Any) -> Read:
    """Returns read(folder) for adapters of the base; the model is traced once, not for each adapter."""
    seen = base_uses(module.apply, base, (example_batch(module.config),), {}, None)

    def read(folder: Path) -> dict[str, Any]:
        # What a bank has no place for is refused by `put`, with the path.
        entries, _ = read_adapter(folder, base, seen, allow_materialize=True)
        return jax.device_get(entries)

    return read
