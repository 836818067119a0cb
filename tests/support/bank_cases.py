"""Functions, bases and adapters of several ranks for the tests of banks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jlora

KINDS = ("plain", "stacked", "dora", "head", "int8", "nf4")
SLOTS, MAX_RANK, WIDTH = 5, 6, 32


class Case(NamedTuple):
    """A function of six rows, its base, and what its bank and adapters are made with."""

    fn: Callable
    base: Any
    rows: jax.Array
    options: dict[str, Any]
    configs: list[jlora.LoraConfig]


def make_case(kind: str, dropout: float = 0.0) -> Case:
    """Makes the case of one kind; its adapters have ranks 1, 4 and 6, and the first one fewer targets."""
    keys = jax.random.split(jax.random.key(3), 4)
    base: Any = {
        "layers": {"kernel": jax.random.normal(keys[0], (2, WIDTH, WIDTH)) / WIDTH**0.5},
        "mid": {"kernel": jax.random.normal(keys[1], (WIDTH, WIDTH)) / WIDTH**0.5},
        "head": {"kernel": jax.random.normal(keys[2], (WIDTH, 4)) / WIDTH**0.5, "bias": jnp.zeros(4)},
    }
    rows = jax.random.normal(keys[3], (6, 3, WIDTH))
    if kind in ("int8", "nf4"):
        base = jlora.quantize(base, kind, apply, rows)
    options: dict[str, Any] = {"use_dora": kind == "dora"}
    if kind == "head":
        options["modules_to_save"] = ["head"]
    names = ["mid"] if kind != "stacked" else ["layers.0.kernel", "layers.1.kernel"]
    every = {"target_modules": r".*(layers|mid).*", "lora_dropout": dropout, "init_lora_weights": False, **options}
    configs = [jlora.LoraConfig(r=rank, lora_alpha=3 * rank, **every) for rank in (1, 4, MAX_RANK)]
    if kind == "plain":
        configs[0] = jlora.LoraConfig(r=1, lora_alpha=2, **every | {"target_modules": names})
    return Case(apply, base, rows, options, configs)


def apply(base: Any, x: jax.Array) -> jax.Array:
    """Runs two scanned layers, one that is not, and a head: (rows, 3, WIDTH) to (rows, 3, 4)."""
    x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, base["layers"]["kernel"])[0]
    x = jnp.tanh(x @ base["mid"]["kernel"])
    return x @ base["head"]["kernel"] + base["head"]["bias"][None, None]


def make_empty_bank(case: Case, slots: int = SLOTS) -> jlora.Bank:
    """Makes the bank of a case."""
    config, options = case.configs[-1], {"slots": slots, "max_rank": MAX_RANK, **case.options}
    targets, dropout = config.target_modules, config.lora_dropout
    return jlora.make_bank(case.base, case.fn, case.rows, targets=targets, dropout=dropout, **options)


def make_adapters(case: Case) -> list[dict[str, Any]]:
    """Makes the adapters of a case; their heads differ from the base's."""
    drawn = [jlora.init(jax.random.key(i), c, case.base, case.fn, case.rows) for i, c in enumerate(case.configs)]

    def other(i: int, entry: Any) -> Any:
        return entry if isinstance(entry, jlora.LowRank) else jlora.Full(entry.value + 0.1 * (i + 1))

    return [{path: other(i, entry) for path, entry in adapter.items()} for i, adapter in enumerate(drawn)]


def with_adapters(case: Case) -> tuple[jlora.Bank, list[dict[str, Any]]]:
    """Returns the bank with the adapters in its first slots, and the adapters."""
    bank, adapters = make_empty_bank(case), make_adapters(case)
    for slot, adapter in enumerate(adapters):
        bank = jlora.put(bank, slot, adapter)
    return bank, adapters
