"""The tables of docs/scaling.md, of a tiny shape on a few chips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import scaling
from tests.support.programs.plan_cases import TINY
from train.planning.chips import CHIPS

ROOT = Path(__file__).parents[2]


def test_the_table_of_a_tiny_shape(tmp_path):
    command = [sys.executable, "-m", "benchmarks.scaling", "--shape", json.dumps(TINY), "--models", "7b"]
    command += ["--methods", "qlora", "--chips", "1", "8", "--rows", "8", "--length", "32"]
    command += ["--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.count("|") for line in done.stdout.splitlines()] == [12] * 4
    one, eight = json.loads((tmp_path / "rows.json").read_text())
    assert (one["mesh"], eight["mesh"]) == ("1 x 1 x 1", "8 x 1 x 1")
    assert one["tokens"] * one["seconds"] == pytest.approx(8 * 32)
    assert one["products"] == 1 > eight["products"]
    assert eight["limit"] == "other collectives"


def test_nothing_fits_where_the_base_alone_is_too_large(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    small = CHIPS["h200"]._replace(memory=1e5)
    with jax.numpy_dtype_promotion("standard"):  # optax.adamw raises a float to an integer's power
        row = scaling.best(str(tmp_path), "tiny", "lora", 1, small, rows=1, length=16)
    assert row == scaling.Row("tiny", "lora", 1, limit="does not fit")
    assert scaling.cells(row)[3] == "does not fit"


@pytest.mark.parametrize(
    ("chips", "rows", "found"),
    [
        (8, 512, [{"data": 1, "fsdp": 8, "tensor": 1}, {"data": 1, "fsdp": 1, "tensor": 8}]),
        (1024, 512, [{"data": 128, "fsdp": 1, "tensor": 8}]),  # 1,024 parts of 512 rows cannot be
        (4, 512, []),
    ],
)
def test_meshes_use_all_chips_and_share_the_rows(chips, rows, found):
    assert list(scaling.meshes(chips, rows, [(8, 1), (1, 8)])) == found
