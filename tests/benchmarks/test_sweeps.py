"""The page of settings: its tables say what the tables of the sweeps say, and it shows what the command wrote."""

from __future__ import annotations

import csv
import json

import pytest

from benchmarks.common.marked_parts import fill_parts
from benchmarks.sweeps import forgetting, together
from benchmarks.sweeps.answers import SWEEPS, read_results
from benchmarks.sweeps.answers_page import methods_table, modules_table, write_parts
from tests.support.training import tiny

PAGE = tiny.ROOT / "docs" / "which-settings.md"


def _line(run, accuracy, size, **values):
    return {"run": run, "accuracy": str(accuracy), "trained parameters": str(size), **values}


GRID = [
    _line("a", 0.7, 10, **{"lora.r": "2", "train.learning_rate": "0.001", "lora.lora_alpha": "16"}),
    _line("b", 0.9, 10, **{"lora.r": "2", "train.learning_rate": "0.001", "lora.lora_alpha": "32"}),
    _line("c", 0.8, 40, **{"lora.r": "8", "train.learning_rate": "0.001", "lora.lora_alpha": "16"}),
    _line("d", 0.6, 40, **{"lora.r": "8", "train.learning_rate": "0.001", "lora.lora_alpha": "32"}),
]
MODULES = [
    _line("a", 0.75, 90, **{"lora.target_modules": "all-linear", "train.learning_rate": "0.0005"}),
    _line("b", 0.5, 9, **{"lora.target_modules": "a|b", "train.learning_rate": "0.0005"}),
]
METHODS = [
    *[_line(f"head-seed{seed}", 0.6, 5) for seed in (0, 1)],
    *[_line(f"r4-seed{seed}", accuracy, 50) for seed, accuracy in ((0, 0.76), (1, 0.8))],
    *[_line(f"full-seed{seed}", 0.8, 5000) for seed in (0, 1)],
]


def test_the_tables_have_the_best_of_each_pair():
    parts = write_parts({"sweeps": {"rank_lr": GRID, "modules": MODULES, "methods": METHODS}})
    assert parts["rank and rate"].splitlines()[2:] == ["| 2 | **90.0** |", "| 8 | 80.0 |"]
    assert parts["alpha and rate"].splitlines()[2:] == ["| 16 | 80.0 |", "| 32 | **90.0** |"]


def test_modules_are_sorted_by_size():
    assert modules_table(MODULES).splitlines()[2:] == ["| `a\\|b` | 9 | 50.0 |", "| `all-linear` | 90 | 75.0 |"]


def test_the_share_of_the_gain_is_that_over_the_head_alone():
    assert methods_table(METHODS).splitlines()[2:] == [
        "| head alone | 5 | 60.0 | 60.0 to 60.0 |  |",
        "| LoRA, rank 4 | 50 | 78.0 | 76.0 to 80.0 | 90 % |",
        "| full fine-tuning | 5,000 | 80.0 | 80.0 to 80.0 |  |",
    ]


def _compared(adapters, rows, long, short):
    return {
        "adapters": adapters,
        "rows of each": rows,
        "quicker by": long,
        "quicker by, 50 steps and compilation": short,
    }


def test_together_has_a_row_for_each_number_of_adapters_and_gaps_where_none_was_measured():
    found = [_compared(1, 4, 1, 1), _compared(8, 1, 1.549, 1.76), _compared(1, 1, 1, 1)]
    assert together.write_table(found).splitlines() == [
        "| adapters | 1 row each | 4 rows each |",
        "| --- | ---: | ---: |",
        "| 1 | 1.00 / 1.00 | 1.00 / 1.00 |",
        "| 8 | 1.55 / 1.76 |  |",
    ]


def test_the_page_of_sweeps_shows_what_the_command_wrote():
    folder = PAGE.parent
    text = (folder / "sweep.md").read_text(encoding="utf-8")
    measured = json.loads((folder / "sweeps/together.json").read_text(encoding="utf-8"))
    assert fill_parts(text, {"together": together.write_table(measured)}) == text


def test_forgetting_is_the_change_of_the_perplexity_of_posts():
    base = {"run": forgetting.BASE, "verses": 40.0, "posts": 200.0}
    run = {"run": "a", "method": "lora", "rate": 5e-4, "trained parameters": 1000, "verses": 25.0, "posts": 210.0}
    assert forgetting.write_table({"runs": [base, run]}).splitlines()[2:] == [
        "| the base |  | 40.0 | 200.0 |  |",
        "| LoRA, rate 0.0005 | 1,000 | 25.0 | 210.0 | +5.0 % |",
    ]


def test_the_page_of_settings_shows_what_was_forgotten():
    text = PAGE.read_text(encoding="utf-8")
    measured = json.loads((PAGE.parent / "forgetting.json").read_text(encoding="utf-8"))
    assert fill_parts(text, {"forgetting": forgetting.write_table(measured)}) == text


def _write(folder, lines):
    for name in SWEEPS:
        (folder / name).mkdir()
        with (folder / name / "table.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)


def test_results_are_the_lines_of_the_tables(tmp_path):
    _write(tmp_path, MODULES)
    assert read_results(tmp_path)["sweeps"] == dict.fromkeys(SWEEPS, MODULES)


def test_a_run_without_a_result_is_refused(tmp_path):
    _write(tmp_path, [*MODULES, _line("diverged", "", 9, **{"lora.target_modules": "x", "train.learning_rate": "1"})])
    with pytest.raises(ValueError, match="found none of diverged"):
        read_results(tmp_path)


def test_the_page_shows_what_the_command_wrote():
    text, results = PAGE.read_text(encoding="utf-8"), json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    assert fill_parts(text, write_parts(results)) == text
    for name in SWEEPS:
        assert f"(sweeps/{name}.png)" in text
        assert (PAGE.parent / "sweeps" / f"{name}.png").is_file()
