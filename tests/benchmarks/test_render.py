"""docs/benchmarks.md out of its JSON: figures, ratios within rounds, what is missing, where jlora loses."""

from __future__ import annotations

import copy
import json
import math

import pytest

pytest.importorskip("matplotlib")

from benchmarks import render
from benchmarks.growth import exponent
from benchmarks.page.losses import lost
from benchmarks.page.pieces import PIECES
from benchmarks.render import PAGE, RESULTS

MACHINE = {"float32": 100e9, "bfloat16": 200e9, "copy": 10e9}
WORK = {"model": "minilm", "rows": 32, "length": 64, "dtype": "float32"}
MUST = {"flops": 50e9, "full_flops": 80e9, "bytes": 1e9}


def _side(*seconds, peak=2e9):
    return {"facts": {}, "first": 1.0, "seconds": list(seconds), "values": [1.0], "peak_bytes": peak}


def _steps(**sides):
    return {"work": WORK, "apart": False, "must": MUST, "sides": sides}


def _results(**found):
    environment = {
        "date": "2026-01-01", "cpu": "CPU", "cpu_count": 2, "memory_bytes": 2**34, "python": "3.11",
        "bf16_units": ["avx512_bf16"], "versions": {"jlora": "0.1.0", "jax": "0.10"},
    }  # fmt: skip
    pieces = {name: {"command": f"python -m {name}", "result": result} for name, result in found.items()}
    return {"environment": environment, "pieces": pieces}


OURS = {"seconds": [[1.0, 1.2], [2.0, 2.4]], "peak_bytes": [1e9, 2e9], "compile_seconds": [1.0, 1.0]}
GROWTH = {"axis": "tokens", "x": [1024, 2048], "sides": {"lora": OURS}}
FOUND = _results(
    **{
        "machine": MACHINE,
        "encoder-centre": _steps(lora=_side(1.0, 2.0), peft=_side(2.0, 8.0), compiled={"failed": "ended with code 1"}),
        "lm-4x256": _steps(lora=_side(3.0, 3.0, peak=3e9), peft=_side(2.0, 2.0)),
        "growth-tokens": GROWTH,
        "growth-temporaries": {
            "axis": "temporaries",
            "x": [1024, 2048],
            "bytes": [1e9, 2e9],
            "compile_seconds": [1, 1],
        },
    }
)


def test_figures_ratios_and_shares_are_on_the_page():
    page = render.text(FOUND, [])
    assert "| jlora, LoRA | 1.00 / 1.50 / 2.00 | 1,365 |" in page
    assert "| PEFT | 2.00 / 5.00 / 8.00 | 410 | 0.25 / 0.38 / 0.50 | 2.00 | 1.00 | 10% |" in page
    assert "failed: ended with code 1" in page
    assert "| 32 x 64" not in page
    assert "python -m encoder-centre" in page


def test_what_is_not_measured_is_said():
    results = copy.deepcopy(FOUND)
    results["pieces"]["epoch"] = {"command": "python -m x", "left_out": "10 of 180 seconds were left"}
    assert "- epoch: 10 of 180 seconds were left" in render.text(results, [])


def test_where_a_peer_is_better_is_said():
    found = {name: piece["result"] for name, piece in FOUND["pieces"].items()}
    lines = lost(found)
    assert "- lm-4x256: jlora takes 1.50 times the time of PEFT" in lines
    assert "- lm-4x256: jlora takes 1.50 times the memory of PEFT" in lines
    assert not any("encoder-centre" in line for line in lines)


def test_the_page_and_its_plots_are_written(tmp_path):
    render.write(FOUND, tmp_path / "page.md")
    assert {file.name for file in (tmp_path / "page").iterdir()} == {"growth.png", "steps.png"}
    first = (tmp_path / "page.md").read_text(), (tmp_path / "page" / "growth.png").read_bytes()
    render.write(FOUND, tmp_path / "page.md")
    assert first == ((tmp_path / "page.md").read_text(), (tmp_path / "page" / "growth.png").read_bytes())


def test_an_empty_run_is_a_page_too():
    assert "# Benchmarks" in render.text(_results(), [])


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponents(power):
    assert math.isclose(exponent([1, 2, 4], [3 * x**power for x in (1, 2, 4)]), power)


def test_the_page_names_what_was_not_measured():
    pieces = {name: {"result": {}} for name in list(PIECES)[3:]} | {"machine": {"failed": "exit code 1"}}
    lines = render._missing(pieces)
    assert lines[2:] == ["- machine: exit code 1", "- encoder-centre, encoder-dropout: not run yet", ""]
    assert render._missing({name: {"result": {}} for name in PIECES}) == []


def test_the_page_says_which_commit_each_piece_is_of():
    pieces = {"a": {"commit": "1234567890"}, "b": {"commit": "abcdefabcdef"}, "c": {"commit": "1234567890"}, "d": {}}
    assert render._commits(pieces) == ["Measured, by commit:", "", "- 1234567: a, c", "- abcdefa: b", ""]
    assert render._commits({"d": {}}) == []


def test_the_committed_page_is_that_of_the_committed_figures():
    if not RESULTS.exists():
        pytest.skip("no run is committed")
    results = json.loads(RESULTS.read_text())
    drawn = [file.stem for file in PAGE.with_suffix("").glob("*.png")]
    assert PAGE.read_text() == render.text(results, drawn)
    assert results["pieces"].keys() <= PIECES.keys()
