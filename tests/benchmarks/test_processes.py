"""How the runs of benchmarks.processes are compared."""

import json
import math

from benchmarks.processes import largest_difference, record


def _run(folder, *losses):
    folder.mkdir()
    lines = [
        {"step": i, "time": i, "train/loss": loss, "train/tokens_per_second": 1} for i, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return record(folder)


def test_differences_are_relative_and_leave_out_the_clock(tmp_path):
    one, two, shorter = _run(tmp_path / "1", 2.0, 4.0), _run(tmp_path / "2", 2.0, 4.4), _run(tmp_path / "3", 2.0)
    assert [list(line) for line in one] == [["step", "train/loss"]] * 2
    assert largest_difference(one, one) == 0
    assert math.isclose(largest_difference(two, one), 0.1)
    assert largest_difference(shorter, one) == math.inf
