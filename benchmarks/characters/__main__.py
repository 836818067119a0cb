"""Measures the characters of `make characters`: python -m benchmarks.characters [--adapters FOLDER] [--page FILE].

Each character's held-out text is read under the base and under every adapter, and each of them answers ten fixed
questions. All figures go into docs/characters.json, and from there into the marked parts of docs/characters.md;
`--render` writes these again without measuring.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.characters.answers import answer_questions
from benchmarks.characters.loaded import BASE, load_characters
from benchmarks.characters.page import fill_page
from benchmarks.characters.perplexity import measure_perplexities
from train.cli.exit_codes import exit_code
from train.cli.progress import configure_logging
from train.devices.compilation import use_compilation_cache
from train.run import environment


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 an error that the user can fix."""
    flags = _make_parser().parse_args(argv)
    configure_logging()
    use_compilation_cache()
    return exit_code(lambda: _run(flags))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.characters", description=__doc__)
    folder, page = Path("runs/characters/adapters"), Path("docs/characters.md")
    parser.add_argument("--adapters", type=Path, default=folder, help=f"the sweep's folder (default {folder})")
    parser.add_argument("--page", type=Path, default=page, help=f"page with the marked parts (default {page})")
    parser.add_argument("--render", action="store_true", help="write the page from its .json, without measuring")
    return parser


def _run(flags: argparse.Namespace) -> None:
    file = flags.page.with_suffix(".json")
    if not flags.render:
        file.write_text(json.dumps(measure(flags.adapters), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    results = json.loads(file.read_text(encoding="utf-8"))
    flags.page.write_text(fill_page(flags.page.read_text(encoding="utf-8"), results), encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """Returns the figures of the characters in the folder of a finished sweep.

    {"training": {name: part of its report}, "tokens": {name: of its held-out text}, "perplexity": {name of the text:
    {"base" or name of the adapter: value}}, "answers": {name: [{"question", "answer"}]}, "environment": of this run}
    """
    characters = load_characters(folder)
    answers = {name: answer_questions(characters, name) for name in (*characters.adapters, BASE)}
    found = environment.collect()
    return {
        "training": {name: _training(folder / name) for name in characters.adapters},
        "tokens": {name: characters.held_out_tokens(name) for name in characters.adapters},
        "perplexity": measure_perplexities(characters),
        "answers": answers,
        "environment": {"versions": found["versions"], "jax": found["jax"]},
    }


def _training(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    kept = ("rows", "learnt_tokens", "best", "parameters", "times", "sweep")
    return {name: report[name] for name in kept}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
