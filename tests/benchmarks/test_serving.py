"""The page of the server: its tables say what the files say, and it shows what the command wrote."""

from __future__ import annotations

import json

from benchmarks.common.marked_parts import fill_parts
from benchmarks.serving.page import cold_table, load_table, steps_table, write_parts
from tests.support.training import tiny

PAGE, FILE = tiny.ROOT / "docs" / "serve.md", tiny.ROOT / "docs" / "serving.json"


def test_a_step_has_its_share_of_the_bases_tokens():
    share = {"q1": 0.85, "median": 0.9, "q3": 0.951}
    found = [{"rows": 4, "side": "8 adapters", "seconds": {"median": 0.1234}, "tokens/s against the base": share}]
    assert steps_table(found).splitlines()[2] == "| 4 | 8 adapters | 123 | 0.90 | 0.85 to 0.95 |"


def test_each_load_is_a_column():
    found = {
        "mixed": {"base": {"answers": 1234, "errors": 0}},
        "zipf": {"many": {"answers": 12.5, "errors": 1, "hit rate": 0.5}},
    }
    lines = load_table(found).splitlines()
    assert lines[0] == "|  | base | many |"
    assert lines[2:] == ["| answers | 1,234 | 12.5 |", "| errors | 0 | 1 |", "| hit rate |  | 0.5 |"]


def test_the_cold_adapters_figures_are_rows():
    assert cold_table({"cold": {"cold": {"later by, ms p50": 67.4}}}).splitlines()[2] == "| later by, ms p50 | 67.4 |"


def test_the_page_shows_what_the_command_wrote():
    text = PAGE.read_text(encoding="utf-8")
    assert fill_parts(text, write_parts(json.loads(FILE.read_text(encoding="utf-8")))) == text
