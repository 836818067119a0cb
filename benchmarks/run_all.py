"""All benchmarks within an hour on two cores: python -m benchmarks.run_all [PIECE ...] [--minutes N].

Each piece runs in a process of its own, and its result is written to docs/benchmarks.json at once. So a run that was
killed continues where it stopped (on the same commit and machine). With names, only those pieces run again. At the end
docs/benchmarks.md and its plots are written, as `python -m benchmarks.render` does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import render
from benchmarks.page.pieces import PIECES, Piece
from train.cli.progress import clock
from train.run import environment

RESULTS = Path("docs/benchmarks.json")
_PEERS = ("torch", "peft", "bitsandbytes", "qwix")
_SAME = ("cpu", "cpu_count", "versions")
"""Keys of the environment: a run continues another run's pieces only if these are the same, and the commit too."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0, or 1 if a piece failed."""
    flags = _parser().parse_args(argv)
    here = machine()
    results = begun(here, anew=flags.anew, keys=_SAME if flags.pieces else (*_SAME, "git"))
    wanted = flags.pieces or [name for name in PIECES if "result" not in results["pieces"].get(name, {})]
    spent = 0.0 if flags.pieces else sum(found.get("seconds", 0) for found in results["pieces"].values())
    for name in wanted:
        left = 60 * flags.minutes - spent
        results["pieces"][name] = found = _piece(name, PIECES[name], left) | {"commit": here["git"].get("commit")}
        spent += found.get("seconds", 0)
        _write(results)
    render.write(results)
    failed = [name for name in wanted if "failed" in results["pieces"][name]]
    print(f"{clock(spent)} in all; {', '.join(failed) or 'nothing'} failed; docs/benchmarks.md is written", flush=True)
    return 1 if failed else 0


def begun(found: dict[str, Any], *, anew: bool, keys: Sequence[str]) -> dict[str, Any]:
    """The results to continue: those of the file if its environment has the same `keys` values, otherwise none yet."""
    new = {"environment": found, "pieces": {}}
    if anew or not RESULTS.exists():
        return new
    results = json.loads(RESULTS.read_text())
    differing = [key for key in keys if results["environment"].get(key) != found[key]]
    if differing:
        print(f"{RESULTS} is of another run ({', '.join(differing)} differ): beginning anew", flush=True)
        return new
    print(f"going on with {RESULTS}, which holds {len(results['pieces'])} of {len(PIECES)} pieces", flush=True)
    return results


def machine() -> dict[str, Any]:
    """The trainer's description of the environment, the peers' versions and the processor."""
    found = environment.collect()
    processor = Path("/proc/cpuinfo").read_text()
    (memory,) = re.findall(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    flags = set(re.findall(r"^flags\s*: (.*)", processor, re.MULTILINE)[0].split())
    git = {key: value for key, value in (found["git"] or {}).items() if key == "commit"}
    return found | {
        "git": git,
        "versions": found["versions"] | {name: metadata.version(name) for name in _PEERS},
        "cpu": re.findall(r"model name\s*: (.*)", processor)[0],
        "bf16_units": sorted(flags & {"avx512_bf16", "amx_bf16"}),
        "memory_bytes": int(memory) * 1024,
        "date": time.strftime("%Y-%m-%d"),
    }


def _piece(name: str, piece: Piece, left: float) -> dict[str, Any]:
    """{"command", "seconds", "load"} and "result" or "failed"; or {"command", "left_out": why}."""
    command = shlex.join(["python", "-m", *piece.command])
    if piece.seconds > left:
        print(f"{name}: left out, {clock(max(0, left))} are left and it may take {clock(piece.seconds)}", flush=True)
        return {"command": command, "left_out": f"{left:.0f} of {piece.seconds} seconds were left"}
    print(f"[{clock(left)} left] {name}, at most {clock(piece.seconds)}: {command}", flush=True)
    begin, load = time.monotonic(), os.getloadavg()[0]
    found = _output(piece, min(2 * piece.seconds, left))
    seconds = time.monotonic() - begin
    print(f"    {clock(seconds)}{'' if 'result' in found else ', ' + found['failed']}", flush=True)
    return {"command": command, "seconds": seconds, "load": load, **found}


def _output(piece: Piece, timeout: float) -> dict[str, Any]:
    """{"result": the JSON of its last line}, or {"failed": why}, also if it takes longer than `timeout` seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", *piece.command], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return {"failed": f"ended after {timeout:.0f} seconds"}
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode:
        return {"failed": f"exit code {process.returncode}"}
    return {"result": json.loads(output.splitlines()[-1])}


def _write(results: dict[str, Any]) -> None:
    """Writes the whole file or nothing."""
    unfinished = RESULTS.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    unfinished.replace(RESULTS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_all", description=__doc__)
    parser.add_argument("pieces", metavar="PIECE", nargs="*", choices=[[], *PIECES], help="(default: all)")
    parser.add_argument("--minutes", metavar="N", type=float, default=60, help="for all pieces (default 60)")
    parser.add_argument("--anew", action="store_true", help="forget what the file holds")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
