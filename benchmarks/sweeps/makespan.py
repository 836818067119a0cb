"""A sweep against its runs one after another: python -m benchmarks.sweeps.makespan --folder FOLDER KEY=VALUE ...

Both sides are the commands that a user would give, start-up and compilation included. Of the runs alone only some may
be run (`--alone`), evenly taken from the table; the time of all is then their mean times the number of runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jlora.files import yaml12


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags = _parser().parse_args(argv)
    folder, points = Path(flags.folder), _points(Path(flags.sweep))
    common = ["--config", flags.config, *flags.overrides]
    sweep = [*common, "--sweep", flags.sweep, f"output_dir={folder / 'sweep'}"]
    together = _time(folder / "sweep.log", "jlora", "sweep", *sweep)
    print(f"together: {len(points)} runs, {together:.0f} s", flush=True)
    taken = points[:: max(1, len(points) // flags.alone)][: flags.alone]
    alone = []
    for number, point in enumerate(taken):
        changes = [f"{key}={json.dumps(value)}" for key, value in point.items()]
        run = [*common, *changes, f"output_dir={folder / f'alone-{number}'}"]
        alone.append(_time(folder / f"alone-{number}.log", "jlora", "classify", *run))
        print(f"alone: {' '.join(changes)}, {alone[-1]:.0f} s", flush=True)
    all_alone = sum(alone) / len(alone) * len(points)
    figures = {
        "runs": len(points),
        "together, s": together,
        "alone, s": alone,
        "all alone, s": all_alone,
        "quicker by": all_alone / together,
        "largest difference of a metric": _difference(folder, taken),
    }
    (folder / "makespan.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"all alone {all_alone:.0f} s, together {together:.0f} s: {all_alone / together:.2f} times as quick")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.makespan", description=__doc__.split("\n\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config, for both sides")
    parser.add_argument("--config", default="configs/sst2.yaml")
    parser.add_argument("--sweep", default="configs/sweeps/rank_lr.yaml")
    parser.add_argument("--folder", required=True, help="for all runs, logs and makespan.json; must not hold runs yet")
    parser.add_argument("--alone", type=int, default=24, help="how many of the runs are run alone")
    return parser


def _points(file: Path) -> list[dict]:
    """Returns {key: value} of each run of a grid, in the order of the sweep."""
    points: list[dict] = [{}]
    for key, values in yaml12.read_file(file)["parameters"].items():
        points = [point | {key: value} for point in points for value in values]
    return points


def _time(log: Path, *command: str) -> float:
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with log.open("w") as output:
        subprocess.run([sys.executable, "-m", *command], stdout=output, stderr=subprocess.STDOUT, check=True)
    return time.perf_counter() - begin


def _difference(folder: Path, taken: Sequence[dict]) -> float:
    """Returns by how much the metric of a run alone differs from that of the same run in the sweep, at most."""
    with (folder / "sweep" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = []
    for number, point in enumerate(taken):
        report = json.loads((folder / f"alone-{number}" / "report.json").read_text())
        row = next(row for row in rows if all(row[key] == str(value) for key, value in point.items()))
        best = report["best"]
        found.append(abs(float(row[best["metric"]]) - best["value"]))
    return max(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
