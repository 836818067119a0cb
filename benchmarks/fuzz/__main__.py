"""Damaged and invented files for every loader: python -m benchmarks.fuzz [--seconds N] [--seed N].

Each file is a good one that was changed, in its bytes or in what it says. A loader may read it or refuse it with a
JloraError. Whatever else it raises is a crash, and so is a folder that takes a minute or 4 GB; it is printed with the
smallest files that do it, and the exit status is 1. How much of the loaders is run is said by

    coverage run --branch --include='jlora/*,train/*' -m benchmarks.fuzz --seconds 600
    coverage report --include="$(python -m benchmarks.fuzz --loaders)"
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from safetensors import safe_open

import jlora
from benchmarks.fuzz import files
from jlora.errors import JloraError
from jlora.files.safetensors_reader import open_safetensors
from jlora.gguf.model import gguf_tensors, gguf_tokenizer
from jlora.pretrained.folder import open_tensors
from jlora.pretrained.load import abstract_base, build
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.tokenizer import read_tokenizer
from train.classify.classifier import read_label_entries
from train.cli.parse import parse_command_line
from train.cli.resolve import resolve
from train.lm.config import COMMAND

LOADERS = (
    "jlora/files/bounded_json.py", "jlora/files/safetensors_reader.py", "jlora/files/finite.py",
    "jlora/pretrained/folder.py",
    "jlora/pretrained/config_checks.py", "jlora/gguf/reader.py", "jlora/gguf/model.py", "jlora/gguf/architectures.py",
    "jlora/gguf/tokenizer.py", "jlora/peft/folder.py", "jlora/peft/config_file.py", "jlora/files/path_checks.py",
    "jlora/pretrained/tokenizer.py", "jlora/pretrained/tokenizer_files.py", "jlora/files/yaml12.py",
    "train/config/validate.py",
)  # fmt: skip
"""The files that read what others wrote."""


_MOST_SECONDS = 60
"""For one folder."""
_MOST_MEMORY = 2**32
"""Bytes of addresses beside those that the process starts with."""


class Target(NamedTuple):
    """A loader: the {name: bytes} of a folder that it is given, and what it does there."""

    files: st.SearchStrategy[dict[str, bytes]]
    load: Callable[[Path], Any]


def _read_safetensors(folder: Path) -> None:
    """What is read here is what Hugging Face's own package reads; where that refuses, so do we."""
    file = folder / "model.safetensors"
    tensors = open_safetensors(file)
    with safe_open(file, framework="numpy") as oracle:
        assert set(oracle.keys()) == set(tensors)
    for key, tensor in tensors.items():
        tensor.require_float()
        value = tensor.read(jnp.float32)
        with safe_open(file, framework="numpy") as oracle:
            np.testing.assert_array_equal(value, oracle.get_tensor(key).astype(np.float32))


def _read_shards(folder: Path) -> None:
    for tensor in open_tensors(folder).values():
        tensor.require_float()
        tensor.read(jnp.float32)


def _read_gguf(folder: Path) -> None:
    """The three parts one by one: what one refuses says nothing of the others."""
    file = folder / "model.gguf"
    _or_refused(lambda: build(PretrainedSource(file).config))
    _or_refused(lambda: gguf_tokenizer(file)("a text <s>"))
    for tensor in gguf_tensors(file).values():
        tensor.require_float()
        tensor.read(jnp.float32)


def _read_config(folder: Path) -> None:
    abstract_base(build(PretrainedSource(folder).config))


def _read_adapter(folder: Path) -> None:
    jlora.load_adapter(folder, files.BASE, files.apply, files.X)


def _read_tokenizer(folder: Path) -> None:
    read_tokenizer(folder, str(folder))


def _read_run_config(folder: Path) -> None:
    """As the command does, up to the config of the run."""
    resolve(parse_command_line(["--config", str(folder / "config.yaml")], COMMAND), use_offline=False)


TARGETS = {
    "safetensors": Target(files.safetensors(), _read_safetensors),
    "shards": Target(files.shards(), _read_shards),
    "gguf": Target(files.gguf_models(), _read_gguf),
    "config": Target(files.configs(), _read_config),
    "adapter": Target(files.adapters(), _read_adapter),
    "tokenizer": Target(files.tokenizers(), _read_tokenizer),
    "vocabulary": Target(files.vocabularies(), _read_tokenizer),
    "labels": Target(files.labels(), lambda folder: read_label_entries(folder / "labels.json")),
    "run config": Target(files.run_configs(), _read_run_config),
}


AT_ONCE = {
    "safetensors": 500, "shards": 300, "gguf": 300, "config": 60, "adapter": 150, "tokenizer": 150, "vocabulary": 60,
    "labels": 300, "run config": 150,
}  # fmt: skip
"""Folders for a loader before it is the next one's turn."""


def _or_refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except JloraError:
        return False
    return True


def fuzz(target: Target, examples: int, seen: Counter[str], seed: int | None = None) -> None:
    """Gives a loader so many folders, and counts in `seen` what it "read" and "refused"; raises what it raises.

    Args:
      seed: None draws the same folders each time.
    """

    def one(content: dict[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder, _bounded():
            for name, data in content.items():
                (Path(folder) / name).write_bytes(data)
            seen["read" if _or_refused(lambda: target.load(Path(folder))) else "refused"] += 1

    run = hypothesis.given(target.files)(one)
    run = hypothesis.settings(
        max_examples=examples,
        derandomize=seed is None,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )(run)
    (run if seed is None else hypothesis.seed(seed)(run))()


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def too_long(*_: Any) -> None:
        raise TimeoutError(f"{_MOST_SECONDS} seconds for one folder")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(_MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags = _parser().parse_args(argv)
    if flags.loaders:
        print(",".join(LOADERS))
        return 0
    _limit_memory()
    seen: dict[str, Counter[str]] = {name: Counter() for name in TARGETS}
    begin, seed, crashes = time.monotonic(), flags.seed, 0
    while time.monotonic() - begin < flags.seconds:
        for name, target in TARGETS.items():
            seed += 1
            try:
                fuzz(target, AT_ONCE[name], seen[name], seed)
            except Exception:
                crashes += 1
                print(f"{name}, seed {seed}:\n{traceback.format_exc()}", flush=True)
    for name, found in seen.items():
        print(f"{name:12} {found.total():8} files, {found['read']:8} read, {found['refused']:8} refused")
    print(
        f"{sum(found.total() for found in seen.values())} files in {time.monotonic() - begin:.0f} s, {crashes} crashes"
    )
    return int(crashes > 0)


def _limit_memory() -> None:
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    limit = int(status["VmSize"].split()[0]) * 1024 + _MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--seconds", metavar="N", type=float, default=600, help="how long (default 600)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="other files for another one (default 0)")
    parser.add_argument("--loaders", action="store_true", help="print the loaders' files, and leave")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
