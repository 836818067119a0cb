"""Writes the figures of the server into docs/serve.md: python -m benchmarks.serving.page [--folder FOLDER].

FOLDER holds load.json of `benchmarks.serving.load` and steps.json of `benchmarks.serving.steps --json`; both go into
docs/serving.json, and from there into the marked parts of the page. Without FOLDER the page is written from that file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.marked_parts import fill_parts, table

PAGE, FILE = Path("docs/serve.md"), Path("docs/serving.json")


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.page", description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, help="of load.json and steps.json")
    folder = parser.parse_args(argv).folder
    if folder is not None:
        found = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("load", "steps")}
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    parts = write_parts(json.loads(FILE.read_text(encoding="utf-8")))
    PAGE.write_text(fill_parts(PAGE.read_text(encoding="utf-8"), parts), encoding="utf-8")
    return 0


def write_parts(found: dict[str, Any]) -> dict[str, str]:
    """Returns {name of a part of the page: its table}."""
    return {"steps": steps_table(found["steps"]), "load": load_table(found["load"]), "cold": cold_table(found["load"])}


def steps_table(found: Sequence[dict[str, Any]]) -> str:
    """Returns a row for each number of rows and of adapters: ms of a step, and its tokens/s against the base alone."""
    rows = []
    for one in found:
        share = one["tokens/s against the base"]
        cells = [f"{1000 * one['seconds']['median']:.0f}", f"{share['median']:.2f}"]
        rows.append([str(one["rows"]), one["side"], *cells, f"{share['q1']:.2f} to {share['q3']:.2f}"])
    return table(["rows", "adapters", "ms of a step", "tokens/s against the base", "quartiles"], rows, text_columns=2)


def load_table(found: dict[str, Any]) -> str:
    """Returns a column for each load: what its clients saw, and what the process held."""
    sides = found["mixed"] | found["zipf"]
    names = [name for name in next(iter(found["zipf"].values())) if any(name in side for side in sides.values())]
    rows = [[name, *(_number(side.get(name)) for side in sides.values())] for name in names]
    return table(["", *sides], rows)


def cold_table(found: dict[str, Any]) -> str:
    """Returns a row for each figure of an adapter that is not in memory."""
    return table(
        ["one client, one row", "ms"], [[name, _number(value)] for name, value in found["cold"]["cold"].items()]
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
