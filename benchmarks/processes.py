"""Several processes beside one, over loopback: python -m benchmarks.processes [KEY=VALUE ...] [--trainers classify lm].

Each trainer runs with one process, two and four; one more run of several loses a process to SIGKILL and is resumed.
Prints the largest relative difference of anything in the record from what one process records, how long the others
lived without the one that was killed, and whether the resumed run left the same record and adapter, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_COMMON = ["--offline", "train.log_every=1", "train.checkpoint_every=3", "train.eval_every=5", "export.merged=false"]


class Case(NamedTuple):
    """A trainer's arguments, and a run that loses its last process: of how many, after which line of the record."""

    arguments: list[str]
    processes: int
    killed_after: int


CASES = {
    "classify": Case(["--config", "configs/sst2.yaml", "train.max_steps=20", "train.batch_size=32"], 4, 11),
    "lm": Case(
        [
            *("--config", "configs/smollm2.yaml", "train.max_steps=10", "train.batch_size=4", "data.max_length=64"),
            "samples.count=0",
        ],
        2,
        7,
    ),
}  # fmt: skip


class Row(NamedTuple):
    """A trainer's figures.

    Attributes:
      differences: {processes: largest relative difference from one process}.
      processes: of the run that lost one. seconds, codes: until the others ended, and how.
      is_same: whether it was resumed to the same bits.
    """

    trainer: str
    differences: dict[int, float]
    processes: int
    seconds: float
    codes: list[int]
    is_same: bool


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 where the resumed runs are the same bits."""
    flags = _parser().parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for trainer in flags.trainers:
            rows.append(compared(trainer, Path(folder, trainer), flags.overrides))
            _show(rows[-1])
    if flags.json:
        flags.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    return 0 if all(row.is_same for row in rows) else 1


def compared(trainer: str, folder: Path, overrides: Sequence[str] = ()) -> Row:
    """All runs of one trainer, in folders inside of this one; `overrides` as on its command line."""
    case = CASES[trainer]._replace(arguments=[*CASES[trainer].arguments, *overrides])
    runs = {count: folder / str(count) for count in (1, 2, 4)}
    for count, run in runs.items():
        _require_done(_finish(_start(trainer, case, run, count)), trainer)
    killed = folder / "killed"
    seconds, codes = _lose_one(trainer, killed, case)
    _require_done(_finish(_start(trainer, case, killed, case.processes, "--resume")), trainer)
    whole, adapter = runs[case.processes], "adapter/adapter_model.safetensors"
    is_same = record(killed) == record(whole) and (killed / adapter).read_bytes() == (whole / adapter).read_bytes()
    differences = {count: largest_difference(record(runs[count]), record(runs[1])) for count in (2, 4)}
    return Row(trainer, differences, case.processes, seconds, codes, is_same)


def record(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and not k.endswith("_per_second")} for line in lines]


def largest_difference(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> float:
    """max |a - b| / |b| over all numbers of two records, infinite where they have other entries."""
    if [list(line) for line in found] != [list(line) for line in expected]:
        return math.inf
    pairs = [(a[key], b[key]) for a, b in zip(found, expected, strict=True) for key in b]
    return max(abs(a - b) / max(abs(b), 1e-30) for a, b in pairs)


def _lose_one(trainer: str, run: Path, case: Case) -> tuple[float, list[int]]:
    """(Seconds from the kill to the end of the last of the others, their exit codes)."""
    *others, last = _start(trainer, case, run, case.processes)
    while not (run / "metrics.jsonl").exists() or len(record(run)) < case.killed_after:
        time.sleep(0.02)
        if last.poll() is not None:
            raise SystemExit(f"{trainer}: expected a run of {case.processes} processes, found one ended: {last.args}")
    last.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    codes = _finish(others)
    return time.monotonic() - begin, codes


def _start(trainer: str, case: Case, run: Path, count: int, *more: str) -> list[subprocess.Popen]:
    arguments = [*_COMMON, *case.arguments, f"output_dir={run}", *more]
    command = [sys.executable, "-m", f"train.{trainer}", *arguments]
    port = _free_port()
    address = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count), "--process"]
    joined = [[*address, str(i)] for i in range(count)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return [subprocess.Popen([*command, *flags * (count > 1)], env=environment, **quiet) for flags in joined]


def _finish(processes: list[subprocess.Popen]) -> list[int]:
    return [process.wait() for process in processes]


def _require_done(codes: list[int], trainer: str) -> None:
    if any(codes):
        raise SystemExit(f"train.{trainer}: expected exit codes 0, found {codes}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _show(row: Row) -> None:
    found = ", ".join(f"{count} processes {difference:.1e}" for count, difference in row.differences.items())
    print(f"{row.trainer}: largest relative difference from one process: {found}", flush=True)
    same = "the same bits" if row.is_same else "OTHER bits"
    print(
        f"{row.trainer}: of {row.processes} one killed, the others ended after {row.seconds:.1f} s (codes {row.codes});"
        f" resumed: {same}",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--trainers", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="keys of all runs, such as data.train=FILE")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures here")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
