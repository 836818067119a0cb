"""The command writes rows that `jlora lm` reads, says what it found, and refuses what it cannot read."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from serve.config import read_serve_config
from tests.support.training import tiny
from train.books import __main__ as books
from train.cli.parse import parse_command_line
from train.cli.resolve import resolve
from train.lm.config import COMMAND
from train.sweep.config import read_sweep

CHARACTERS = tiny.ROOT / "configs" / "characters"
ASKED = '"What is number {0} of all of them?" asked Bob.\n\n"It is “{0}”, and nothing more," said Ann.\n\n'
BOOK = "".join(map(ASKED.format, range(60)))


def _call(*argv):
    return tiny.call(books.main, argv)


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    return path


def test_rows_are_written_and_counted(book, tmp_path, capsys):
    out = tmp_path / "deep" / "rows"
    assert _call("--book", book, "--speaker", "Ann", "--out", out) == 0
    rows = {name: (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in ("train", "validation")}
    assert {name: len(lines) for name, lines in rows.items()} == {"train": 54, "validation": 6}
    assert [turn["content"] for turn in json.loads(rows["train"][7])["messages"]] == [
        "What is number 7 of all of them?",
        "It is “7”, and nothing more.",
    ]
    shown = capsys.readouterr()
    assert re.search(r"speeches of the character, named +60\n", shown.out)
    assert "speakers that the book names, and their speeches: Bob 60, Ann 60" in shown.out
    assert "warning" not in shown.err.lower()


def test_a_name_that_the_book_lacks_is_refused(book, tmp_path, capsys):
    assert _call("--book", book, "--speaker", "Anne", "--out", tmp_path / "rows") == 2
    expected = "--speaker anne: expected a speaker whom the book names, found none; the most frequent are Bob, Ann."
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()


def test_few_replies_are_warned_of(tmp_path, capsys):
    told = "\n\n".join(
        f"Paragraph {number} tells of many things, and of the weather on that day." for number in range(9)
    )
    book = tmp_path / "book.txt"
    book.write_text(f'"Who is there?" asked Bob.\n\n"It is I," said Ann.\n\n{told}', encoding="utf-8")
    assert _call("--book", book, "--speaker", "Ann", "--out", tmp_path / "rows") == 0
    shown = capsys.readouterr()
    assert "--speaker Ann: expected at least 50 pairs of dialogue, found 1. 8 pairs of narration are used" in shown.err
    assert "Train with: jlora lm --config configs/smollm2.yaml data.train=" in shown.err


def test_what_is_there_is_kept(book, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert _call("--book", book, "--out", tmp_path / "mine") == 2
    assert "expected a new or empty folder; --overwrite writes into this one" in capsys.readouterr().err
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("no/such/book.txt", "no/such/book.txt: no such file or folder"),
        ("package:no_such_package/book.txt", "the Python package no_such_package is not installed"),
        ("owner/name", "--book: owner/name: no such file"),
        ("package:json", "is a folder; expected a text file"),
    ],
)
def test_a_book_that_is_not_there(given, error, tmp_path, capsys):
    assert _call("--book", given, "--out", tmp_path / "rows") == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()


def test_the_characters_are_the_same_in_all_files():
    """The rows that make writes are those that the sweep reads, and the server has the adapters that it writes."""
    config = resolve(parse_command_line(["--config", str(CHARACTERS / "recipe.yaml")], COMMAND), use_offline=False)
    points = read_sweep(CHARACTERS / "together.yaml").points
    makefile = (tiny.ROOT / "Makefile").read_text(encoding="utf-8")
    (named,) = re.findall(r"^CHARACTERS := (.*)$", makefile, re.MULTILINE)
    assert named.split() == list(points)
    for name, values in points.items():
        folder = f"runs/characters/rows/{name}"
        assert values == {"data.train": f"{folder}/train.jsonl", "data.validation": f"{folder}/validation.jsonl"}
        (made,) = re.findall(rf"^BOOK_{name} := (.*)$", makefile, re.MULTILINE)
        assert books.make_books_parser().parse_args(["--book", *shlex.split(made), "--out", folder])
    assert "runs/characters/rows/%/train.jsonl: " in makefile
    served = read_serve_config(CHARACTERS / "serve.yaml", {})
    assert {name: str(folder) for name, folder in served.adapters.items()} == {
        name: f"{config.output_dir}/{name}" for name in points
    }
    assert served.model == config.model
    assert served.max_rank >= config.lora.r
    assert f"http://{served.host}:{served.port}" in makefile
