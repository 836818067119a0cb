import csv

from train.sweep.points import Point
from train.sweep.results.compare_runs import Result
from train.sweep.results.table import write_tables


def test_both_tables_have_a_row_for_each_run(tmp_path):
    ranked = [
        Result(Point("a|b", {"seed": None}), "accuracy", 0.912345, 0.25, 40, 12345, "at its last step, 40"),
        Result(Point("c", {"lora.r": 4, "seed": 0}), "", None, None, None, None, "diverged at step 3"),
    ]
    write_tables(tmp_path, ranked)
    assert (tmp_path / "table.md").read_text(encoding="utf-8").splitlines() == [
        "| seed | lora.r | accuracy | loss | best step | trained parameters | ended | run |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| null |  | 0.9123 | 0.2500 | 40 | 12,345 | at its last step, 40 | a\\|b |",
        "| 0 | 4 |  |  |  |  | diverged at step 3 | c |",
    ]
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["accuracy"], row["run"]) for row in rows] == [("0.912345", "a|b"), ("", "c")]


def test_each_metric_has_a_column_of_its_own(tmp_path):
    results = [
        Result(Point("a", {}), "f1", 0.5, 0.25, 4, 9, ""),
        Result(Point("b", {}), "loss", 0.75, 0.75, 4, 9, ""),
        Result(Point("c", {}), "accuracy", 1.0, 0.5, 4, 9, ""),
    ]
    write_tables(tmp_path, results)
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["f1"], row["accuracy"], row["loss"]) for row in rows] == [
        ("0.5", "", "0.25"), ("", "", "0.75"), ("", "1.0", "0.5")
    ]  # fmt: skip
