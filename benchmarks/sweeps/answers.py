"""Which rank, rate, alpha and modules: python -m benchmarks.sweeps.answers --folder FOLDER [KEY=VALUE ...]

Runs three sweeps of configs/sweeps/ and writes their tables into docs/which-settings.json, their pictures beside it,
and from these the marked parts of docs/which-settings.md. Finished runs in FOLDER are not trained again. `--render`
writes the page from the .json without running anything.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.marked_parts import fill_parts
from benchmarks.sweeps.answers_page import write_parts
from train.run import environment

SWEEPS = ("rank_lr", "modules", "methods")


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags = _make_parser().parse_args(argv)
    file = flags.page.with_suffix(".json")
    if not flags.render:
        for name in SWEEPS:
            _run(name, flags)
        results = read_results(flags.folder)
        file.write_text(json.dumps(results | {"overrides": flags.overrides}, indent=1) + "\n", encoding="utf-8")
        for name in SWEEPS:
            shutil.copy(flags.folder / name / "sweep.png", flags.page.parent / "sweeps" / f"{name}.png")
    parts = write_parts(json.loads(file.read_text(encoding="utf-8")))
    flags.page.write_text(fill_parts(flags.page.read_text(encoding="utf-8"), parts), encoding="utf-8")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.answers", description=__doc__.split("\n\n")[0])
    page = Path("docs/which-settings.md")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config, for all sweeps")
    parser.add_argument("--config", default="configs/sst2.yaml")
    parser.add_argument("--folder", type=Path, default=Path("runs/which-settings"), help="of the sweeps")
    parser.add_argument("--page", type=Path, default=page, help=f"page with the marked parts (default {page})")
    parser.add_argument("--render", action="store_true", help="write the page from its .json, without training")
    return parser


def _run(name: str, flags: argparse.Namespace) -> None:
    """Runs a sweep, or goes on with it."""
    folder = flags.folder / name
    command = [sys.executable, "-m", "jlora", "sweep", "--config", flags.config]
    command += ["--sweep", f"configs/sweeps/{name}.yaml", *flags.overrides, f"output_dir={folder}"]
    subprocess.run([*command, *(["--resume"] if folder.is_dir() else [])], check=True)


def read_results(folder: Path) -> dict[str, Any]:
    """Returns {name of a sweep: the lines of its table.csv as {column: text}} and the environment of the runs.

    Raises:
      ValueError: runs that have no result.
    """
    found: dict[str, Any] = {}
    for name in SWEEPS:
        with (folder / name / "table.csv").open(encoding="utf-8", newline="") as file:
            found[name] = list(csv.DictReader(file))
        failed = [line["run"] for line in found[name] if not line["accuracy"]]
        if failed:
            raise ValueError(f"{folder / name}: expected a result of every run, found none of {', '.join(failed)}")
    collected = environment.collect()
    return {"sweeps": found, "environment": {"versions": collected["versions"], "jax": collected["jax"]}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
