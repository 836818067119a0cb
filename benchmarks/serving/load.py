"""A server under load, in three parts: python -m benchmarks.serving.load --folder FOLDER.

mixed: 64 clients ask 8 adapters for some minutes, beside the same clients who ask the base alone, one adapter and 64 of
them; what the process holds in memory is read each second.
zipf: clients ask 1,000 adapters on disk, of which 64 fit into memory, as often as Zipf's law says.
cold: one client asks for adapters that are not in memory, in turns with one that is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.serving.clients import Seen, ask, ask_again, summarize
from benchmarks.serving.running import Server, run_server, write_adapters


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 1 an answer with an error."""
    flags = _parser().parse_args(argv)
    folder = Path(flags.folder)
    found = {part: _PARTS[part](folder, flags) for part in flags.parts}
    (folder / "load.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{folder / 'load.json'}: written")
    return int(any(figures["errors"] for part in found.values() for figures in part.values() if "errors" in figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.load", description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", required=True, help="for adapters, logs and load.json")
    parser.add_argument("--parts", nargs="+", choices=list(_PARTS), default=list(_PARTS))
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180, help="of 8 adapters; the others have a third")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--zipf-adapters", type=int, default=1000)
    parser.add_argument("--zipf-seconds", type=float, default=120)
    return parser


def _mixed(folder: Path, flags: argparse.Namespace) -> dict[str, Any]:
    names = write_adapters(folder / "mixed", 64, r=8, target_modules="all-linear")
    found = {}
    keys = {"slots": 64, "max_rank": 8, "rows": flags.rows, "context": 256, "adapter_folders": [str(folder / "mixed")]}
    sides = {"base": ["base"], "1 adapter": names[:1], "8 adapters": names[:8], "64 adapters": names}
    with run_server(folder, **keys) as server:
        for side, models in sides.items():
            seconds = flags.seconds if side == "8 adapters" else flags.seconds / 3
            found[side] = _load(server, lambda number, models=models: models[number % len(models)], seconds, flags)
            _print(side, found[side])
    return found


def _zipf(folder: Path, flags: argparse.Namespace) -> dict[str, Any]:
    count = flags.zipf_adapters
    names = write_adapters(folder / "many", count, r=4, target_modules=["q_proj", "v_proj"])
    share = 1 / np.arange(1, count + 1)
    draws = np.random.default_rng(0).choice(count, 10**6, p=share / share.sum())
    keys = {"slots": 64, "max_rank": 4, "target_modules": ["q_proj", "v_proj"], "rows": flags.rows, "context": 256}
    with run_server(folder, adapter_folders=[str(folder / "many")], **keys) as server:
        before = server.metrics()
        figures = _load(server, lambda number: names[draws[number]], flags.zipf_seconds, flags)
        counts = {name: value - before.get(name, 0) for name, value in server.metrics().items()}
    for kind in ("hits", "misses", "evictions"):
        figures[kind] = next(value for name, value in counts.items() if kind in name)
    figures["hit rate"] = figures["hits"] / (figures["hits"] + figures["misses"])
    _print(f"{count} adapters, 64 slots", figures)
    return {f"{count} adapters, 64 slots": figures}


def _cold(folder: Path, flags: argparse.Namespace) -> dict[str, Any]:
    names = write_adapters(folder / "eight", 8, r=8, target_modules="all-linear")
    keys = {"slots": 2, "max_rank": 8, "rows": 1, "context": 256, "adapter_folders": [str(folder / "eight")]}
    cold, warm = [], []

    async def turns(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=600) as http:
            for number in range(40):
                name = names[number % len(names)]  # two slots: whoever is asked for has left by now
                for times in (cold, warm):
                    one = await ask(http, name, f"{number} {times is cold}", 2, seed=number)
                    times.append(1000 * (one.tokens[0] - one.asked))

    with run_server(folder, **keys) as server:
        asyncio.run(turns(server.url))
    later = [first - second for first, second in zip(cold, warm, strict=True)]
    figures = {
        "first token, ms p50, cold": statistics.median(cold),
        "first token, ms p50, in memory": statistics.median(warm),
        "later by, ms p50": statistics.median(later),
        "later by, ms most": max(later),
    }
    _print("cold", figures)
    return {"cold": figures}


def _load(server: Server, pick: Callable[[int], str], seconds: float, flags: argparse.Namespace) -> dict[str, Any]:
    """Returns what the clients see, and the server's memory (RSS, MiB) at a third of the time, its end, and at most.

    Rates and times leave out the first sixth of the time.
    """
    held: list[tuple[float, int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1):
            held.append((time.monotonic(), server.resident_bytes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.monotonic()
    try:
        seen: list[Seen] = asyncio.run(ask_again(server.url, pick, flags.clients, seconds, flags.tokens))
    finally:
        ended.set()
        watcher.join()
    for one in [one for one in seen if one.error is not None][:3]:
        print(f"{one.model}: {one.error}")
    late = [size / 2**20 for at, size in held if at > begin + seconds / 3]
    figures = summarize(seen, begin + seconds / 6, begin + seconds)
    memory = {"MiB at a third": late[0], "MiB at the end": late[-1], "MiB at most": max(late)}
    return {"seconds": seconds, **figures, **memory}


def _print(side: str, figures: dict[str, float]) -> None:
    print(side + ": " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)


_PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "mixed": _mixed,
    "zipf": _zipf,
    "cold": _cold,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
