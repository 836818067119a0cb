"""Sides in processes of their own take turns; one that fails does not end the others; time bounds the rounds."""

from __future__ import annotations

import sys
import time

import pytest

from benchmarks.common.alternate import alternate
from benchmarks.common.commands import timed_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

SIDE = (
    "from benchmarks.common.alternate import serve;"
    " serve(lambda: (lambda: print('noise') or {value}, {{'side': {value}}}))"
)


def _side(value):
    return ["-c", SIDE.format(value=value)]


def test_each_side_takes_every_round():
    found = alternate({"a": _side(1), "b": _side(2)}, 3, 60)
    assert [found[side]["values"] for side in "ab"] == [[1] * 4, [2] * 4]
    assert all(len(found[side]["seconds"]) == 3 and found[side]["peak_bytes"] > 1e6 for side in "ab")
    assert found["b"]["facts"] == {"side": 2}


def test_a_side_that_fails_is_said_and_the_others_go_on():
    found = alternate({"bad": ["-c", "raise SystemExit(3)"], "good": _side(1)}, 1, 60)
    assert found["bad"] == {"failed": "ended with code 3"}
    assert len(found["good"]["seconds"]) == 1


def test_no_round_begins_after_the_time():
    found = alternate({"a": _side(1)}, 5, 0)
    assert len(found["a"]["seconds"]) == 1


def test_without_rounds_the_first_step_is_measured():
    found = alternate({"a": _side(1)}, 0, 60)["a"]
    assert found["seconds"] == [found["first"]]
    assert found["values"] == [1]


def test_a_command_is_ended_after_its_first_step():
    said = "import sys, time; print('step 1/9', file=sys.stderr, flush=True); time.sleep(600)"
    begin = time.monotonic()
    found = timed_command(["-c", said], to_first_step=True)
    assert 0 < found["first_step"] <= found["seconds"] < time.monotonic() - begin + 1
    assert found["peak_bytes"] > 1e6


def test_a_command_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)code 1.*no such thing"):
        timed_command(["-c", "raise ValueError('no such thing')"])
