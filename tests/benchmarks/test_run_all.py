"""A run of all pieces goes on where it was killed, leaves out what the time does not reach, and says what failed."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="the benchmark compares with PyTorch")
pytest.importorskip("peft", reason="the benchmark compares with PEFT")

from benchmarks import run_all
from benchmarks.page.pieces import PIECES, Piece

HERE = {"cpu": "a", "cpu_count": 2, "versions": {}, "git": {"commit": "1"}}
GOOD, BAD = Piece(1, ["json.tool", "--json-lines"]), Piece(1, ["no_such_module"])


@pytest.fixture(autouse=True)
def pages(tmp_path, monkeypatch):
    monkeypatch.setattr(run_all, "RESULTS", tmp_path / "benchmarks.json")
    monkeypatch.setattr(run_all, "machine", lambda: HERE)
    monkeypatch.setattr(run_all.render, "write", lambda results: None)


def _run(monkeypatch, pieces, *argv, output=None):
    monkeypatch.setattr(run_all, "PIECES", pieces)
    if output is not None:
        monkeypatch.setattr(run_all, "_output", output)
    code = run_all.main(list(argv))
    return code, json.loads(run_all.RESULTS.read_text())["pieces"]


def test_a_killed_run_goes_on(monkeypatch):
    ran = []

    def output(piece, timeout):
        ran.append(piece)
        return {"result": {}}

    _run(monkeypatch, {"a": GOOD}, output=output)
    code, found = _run(monkeypatch, {"a": GOOD, "b": Piece(2, GOOD.command)}, output=output)
    assert (code, list(found), [piece.seconds for piece in ran]) == (0, ["a", "b"], [1, 2])
    monkeypatch.setattr(run_all, "machine", lambda: HERE | {"git": {"commit": "2"}})
    _run(monkeypatch, {"a": GOOD}, output=output)
    assert len(ran) == 3  # on another commit from the start


def test_what_the_time_does_not_reach_is_left_out(monkeypatch):
    code, found = _run(
        monkeypatch, {"a": Piece(120, []), "b": GOOD}, "--minutes", "1", output=lambda *_: {"result": {}}
    )
    assert code == 0
    assert found["a"]["left_out"] == "60 of 120 seconds were left"
    assert found["b"]["result"] == {}
    assert found["b"]["commit"] == "1"


def test_a_piece_that_fails_is_said(monkeypatch, capsys):
    code, found = _run(monkeypatch, {"bad": BAD})
    assert (code, found["bad"]["failed"]) == (1, "exit code 1")
    assert "bad failed" in capsys.readouterr().out


def test_all_pieces_fit_into_an_hour():
    assert sum(piece.seconds for piece in PIECES.values()) <= 3600
