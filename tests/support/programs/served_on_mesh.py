"""Run by test_opening.py in a process of its own, which has 8 devices: engines whose base two of them share.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.support.programs.served_on_mesh FOLDER

FOLDER holds the adapters of `ADAPTERS`, made before. Prints what `answers`, `probabilities` and `splits` give as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax

from jlora.errors import JloraError
from serve.config import ServeConfig
from serve.engine.active_adapters import replace_place, select_slots
from serve.engine.open_engine import open_engine
from serve.engine.prefill_and_decode import empty_memory, extend, insert, repack
from tests import conftest  # noqa: F401  what the suite runs under
from tests.support.serve.engines import ask, prompt, request
from tests.support.training import tiny, tiny_lm

ADAPTERS = ("a0", "a1", "a2", None)
SERVED: dict[str, Any] = {"slots": 2, "max_rank": 4, "rows": 4, "context": 120}
KINDS = {None: 4, "int8": 1}
"""How the base is stored: the rows of its engine. One row is one size of program less to compile."""
ROWS = [[7, 8, 9, 10], [11, 12, 13]]


def questions() -> list[Any]:
    """Requests for more adapters than there are slots, and for the base; the prompts take one piece and two."""
    return [request(name, prompt(number, (20, 70)[number % 2]), 12) for number, name in enumerate(ADAPTERS * 2)]


def open_on(count: int, model: Path, folders: dict[str, Path], **changes: Any) -> Any:
    """An engine on this number of devices, started."""
    mesh: Any = {"tensor": count}
    config = ServeConfig(model=str(model), mesh=mesh, **SERVED | changes)
    engine: Any = open_engine(config, folders).engine
    engine.start()
    return engine


def main(folder: Path) -> None:
    """Prints all results."""
    adapters = {path.name: path for path in folder.glob("a*")}
    found: dict[str, Any] = {"answers": {}}
    for kind, rows in KINDS.items():
        engine = open_on(2, tiny_lm.model_folder(), adapters, quantize=kind, rows=rows)
        compiled = _count_compiled()
        answers = ask(engine, *questions())
        found["answers"][str(kind)] = [answer.ids for answer in answers]
        found["errors"] = [answer.end.message for answer in answers if answer.end and answer.end.reason != "length"]
        found[f"compiled later, {kind}"] = [now - then for now, then in zip(_count_compiled(), compiled, strict=True)]
        if kind is None:
            found["splits"] = _splits(engine._pool)
        engine.stop(0)
    engine = open_on(2, tiny.model_folder(), {"c": folder / "classifier"}, labels=4)
    found["probabilities"] = engine.classify("c", ROWS).result(60).probabilities
    engine.stop(0)
    try:
        open_on(9, tiny_lm.model_folder(), {})
    except JloraError as error:
        found["refused"] = str(error)
    print(json.dumps(found))


def _count_compiled() -> list[int]:
    compiled: list[Any] = [extend, insert, repack, empty_memory, select_slots, replace_place]
    return [fn._cache_size() for fn in compiled]


def _splits(pool: Any) -> dict[str, bool]:
    """Whether a device holds less than all of it."""
    parts = {"weights": pool._base["params"]["model"]["layers"]["mlp"]["up_proj"]["kernel"], "keys": pool._memory.keys}
    return {name: x.addressable_shards[0].data.size < x.size for name, x in parts.items()}


if __name__ == "__main__":
    assert jax.device_count() == 8
    main(Path(sys.argv[1]))
