"""Tiny engines of real models, adapters for them, and requests that are waited for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jlora
from jlora.generation.open_model import LanguageModel, load_language_model
from jlora.pretrained.load import example_batch
from serve.config import ServeConfig
from serve.engine import open_engine as module
from serve.engine.open_engine import OpenedEngine, open_engine
from serve.engine.requests import CompletionRequest, End, Token
from serve.engine.row_pool import Sizes, make_sizes
from tests.support.training import tiny, tiny_lm

RANKS = (1, 2, 4, 3, 2)


@functools.cache
def base() -> LanguageModel:
    """The language model that the engines serve."""
    return load_language_model(str(tiny_lm.model_folder()), use_adapter=False)


@functools.cache
def adapter_folder(index: int, **fields: Any) -> Path:
    """The folder of an adapter of the base, whose answers differ from the base's and the others'."""
    adapted = base().adapted
    config = jlora.LoraConfig(
        **{"r": RANKS[index % 5], "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False} | fields
    )
    batch = example_batch(adapted.model.config)
    adapter = jlora.init(jax.random.key(index), config, adapted.base, adapted.model.apply, batch)
    folder = tiny.HOME / "-".join(["served", str(index), *map(str, fields.values())])
    jlora.save_adapter(folder, adapter, config)
    return folder


def load(index: int, **fields: Any) -> dict[str, Any]:
    """The adapter in `adapter_folder`."""
    adapted = base().adapted
    batch = example_batch(adapted.model.config)
    return jlora.load_adapter(adapter_folder(index, **fields), adapted.base, adapted.model.apply, batch)[0]


PLACES = (128, 192)
"""Sizes of an engine's memory: a prompt of at most 96 tokens fits the first, one of the whole context the second."""


def open_tiny(adapters: int = 5, places: Sequence[int] = PLACES[1:], **fields: Any) -> OpenedEngine:
    """An engine of the base with the adapters a0, a1, ..., started; `places` are the sizes of its memory."""
    folders = {f"a{index}": adapter_folder(index) for index in range(adapters)}
    options = {"slots": 2, "max_rank": 4, "rows": 4, "context": 120, "prefixes": 4} | fields
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_sizes", lambda rows, context: Sizes(make_sizes(rows, context).rows, tuple(places)))
        opened = open_engine(ServeConfig(model=str(tiny_lm.model_folder()), name="tiny", **options), folders)
    opened.engine.start()
    return opened


def request(adapter: str | None, ids: Sequence[int], count: int = 12, **fields: Any) -> CompletionRequest:
    """A greedy request that no token stops."""
    return CompletionRequest(adapter, tuple(ids), count, **{"temperature": 0.0, "stop_ids": frozenset()} | fields)


def prompt(seed: int, length: int) -> list[int]:
    """Random tokens of the base's tokenizer."""
    return np.random.default_rng(seed).integers(5, 200, length).tolist()


class Waiting:
    """Collects what the engine emits for one request."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.end: End | None = None
        self.has_first, self.is_over = threading.Event(), threading.Event()

    def __call__(self, found: Token | End) -> None:
        if isinstance(found, Token):
            self.tokens.append(found)
            self.has_first.set()
        else:
            self.end = found
            self.has_first.set()
            self.is_over.set()

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return [token.id for token in self.tokens]


def ask(engine: Any, *requests: CompletionRequest) -> list[Waiting]:
    """Submits all requests at once and waits for their ends."""
    found = [Waiting() for _ in requests]
    engine.submit(list(zip(requests, found, strict=True)))
    for emit in found:
        assert emit.is_over.wait(120)
    return found


@functools.cache
def alone(index: int | None, ids: tuple[int, ...], count: int) -> list[int]:
    """The greedy tokens that `jlora.generate` gives with one adapter, and no other request."""
    adapted = base().adapted
    adapter = None if index is None else load(index)
    row = np.asarray([ids], np.int32)
    found = jlora.generate(adapted.model, adapted.base, adapter, row, np.ones_like(row), max_new_tokens=count, pad_id=0)
    return np.asarray(found)[0].tolist()
