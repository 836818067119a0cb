"""Turn a book into chats in a character's voice: python -m train.books --book BOOK --speaker NAME --out FOLDER."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jlora.closed_pipe import end_quietly
from jlora.errors import FileError
from jlora.files.atomic_folder import whole_folder
from jlora.pretrained.locate import local_path
from train.books.read_book import read_book
from train.books.rows import ENOUGH, VoiceRows, make_rows
from train.cli.arguments import whole_number
from train.cli.exit_codes import exit_code, require_new, show

logger = logging.getLogger(__name__)

_SPEAKERS_SHOWN = 8


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 an error that the user can fix."""
    return exit_code(lambda: _write_rows(make_books_parser().parse_args(argv)))


def make_books_parser() -> argparse.ArgumentParser:
    """Makes the parser of `python -m train.books`."""
    purpose = "Turns a plain book into chats in a character's voice, for `jlora lm`."
    parser = argparse.ArgumentParser(prog="python -m train.books", description=purpose)
    parser.add_argument("--book", required=True, help="text file, or package:PACKAGE/FILE in an installed package")
    parser.add_argument(
        "--speaker",
        action="append",
        default=[],
        metavar="NAME",
        help="the character, as the book names it; again for another name of it; I for a narrator who takes part; "
        "default: the narration",
    )
    parser.add_argument(
        "--most", type=whole_number(2), metavar="N", help="use N pairs, spread evenly over the book; default: all"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for train.jsonl and validation.jsonl")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")
    return parser


def _write_rows(options: argparse.Namespace) -> None:
    require_new(options.out, options.overwrite)
    path = local_path(options.book)
    if path is None:
        raise FileError(f"--book: {options.book}: no such file")
    rows = make_rows(read_book(path, options.book), options.book, options.speaker, options.most)
    _report(rows, options.book, options.speaker)
    with whole_folder(options.out) as partial:
        _write(partial / "train.jsonl", rows.train)
        _write(partial / "validation.jsonl", rows.validation)
    logger.info("In %s: train.jsonl with %d chats", options.out, len(rows.train))
    logger.info("  validation.jsonl with %d, the last of the book", len(rows.validation))
    logger.info(
        "Train with: jlora lm --config configs/smollm2.yaml data.train=%s data.validation=%s "
        "data.completion_only_loss=true output_dir=runs/NAME",
        options.out / "train.jsonl",
        options.out / "validation.jsonl",
    )


def _report(rows: VoiceRows, book: str, speaker: Sequence[str]) -> None:
    """Shows what was found and what was dropped; warns if the narration fills up the dialogue."""
    show(f"{book}: {rows.form}")
    width = max(map(len, rows.counts))
    show("\n".join(f"  {what:<{width}}  {count:>7,}" for what, count in rows.counts.items()))
    speakers = ", ".join(f"{name} {count:,}" for name, count in rows.speakers[:_SPEAKERS_SHOWN])
    show(f"speakers that the book names, and their speeches: {speakers or 'none'}")
    if speaker and rows.is_narrated:
        logger.warning(
            "--speaker %s: expected at least %d pairs of dialogue, found %d. %d pairs of narration are used too: each "
            "paragraph answers the one before it.",
            " --speaker ".join(speaker),
            ENOUGH,
            rows.counts["pairs of dialogue"],
            rows.counts["pairs of narration"],
        )


def _write(path: Path, chats: Sequence[dict[str, Any]]) -> None:
    lines = (json.dumps(chat, ensure_ascii=False) for chat in chats)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(end_quietly(lambda: main(sys.argv[1:])))
