"""Training commands on 8 devices are those on one, whatever the mesh."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.support.programs import eight_devices
from tests.support.training import tiny, tiny_lm
from train.devices import placement


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """(folder, what eight_devices.py printed)"""
    folder = tmp_path_factory.mktemp("eight")
    environment = tiny.environment(XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {tiny.EIGHT_DEVICES}")
    command = [
        sys.executable,
        "-m",
        "tests.support.programs.eight_devices",
        folder,
        tiny_lm.model_folder(),
        tiny.model_folder(),
    ]
    done = subprocess.run(command, env=environment, cwd=tiny.ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def _numbers(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], k): v for line in lines for k, v in line.items() if k != "time" and "per_second" not in k}


def _assert_same_run(run, other, folders):
    found, expected = _numbers(run), _numbers(other)
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        assert found[place] == pytest.approx(value, rel=1e-4, abs=1e-6), place
    for folder in folders:
        weights, others = tiny.tensors(run / folder), tiny.tensors(other / folder)
        assert weights.keys() == others.keys()
        for key, value in others.items():
            np.testing.assert_allclose(weights[key], value, rtol=1e-3, atol=1e-4, err_msg=f"{folder}: {key}")


def test_a_language_model_on_a_mixed_mesh(eight, tmp_path):
    run = eight[0] / "lm"
    alone = tiny_lm.train(tmp_path / "run", *eight_devices.LM)
    _assert_same_run(run, alone, ["adapter", "merged"])
    assert len((run / "samples.jsonl").read_text().splitlines()) == 1


def test_all_weights_trained_on_a_mesh_and_resumed_there(eight, tmp_path):
    alone = tiny_lm.train(tmp_path / "run", *eight_devices.FULL, "train.max_steps=4")
    _assert_same_run(eight[0] / "full", alone, ["merged"])


def test_a_checkpoint_is_read_to_where_the_run_has_its_arrays(eight):
    assert eight[1]["restored"] == {"equal": True, "as_asked": True, "best": "ndarray", "given_up": True}


def test_a_classifier_on_as_many_parts_as_there_are_devices(eight, tmp_path):
    """Rows of evaluation are rounded up to what the devices can share; the numbers are those of the rows there are."""
    alone = tiny.train(tmp_path / "run", *eight_devices.CLASSIFY)
    _assert_same_run(eight[0] / "classify", alone, ["adapter", "merged"])
    assert tiny.report(eight[0] / "classify")["merged_largest_logit_difference"] < 1e-4


def test_what_lies_where(eight):
    found = eight[1]["laid_out"]
    # method full is not asked for: the leaf trained whole follows mesh.adapters.
    assert found["replicated"] == [[2, 2, 4], [4], [2, 4, 4]]
    assert found["inherit"] == [[2, 2, 4], [4], [2, 2, 2]]
    assert found["rows"] == [2, 2]
    assert found["kept"]


def test_a_mesh_that_does_not_fit_is_refused(eight):
    assert eight[1]["devices"] == 8
    product, twice, zero, batch = eight[1]["messages"]
    assert "number of devices, 8" in product
    assert "-1 for one axis at most" in twice
    assert "mesh.data" in zero
    assert batch.startswith("train.batch_size: expected a multiple of 8, the parts of a batch on 8 devices")


def test_on_one_device_nothing_is_touched():
    config = eight_devices.config()
    assert jax.device_count() == 1
    assert placement.mesh_of(config) is None
    given = {"rows": np.arange(3)}
    assert placement.put_rest(None, given) is given
    assert placement.put_adapted(None, given, config) is given
    assert placement.to_first(given) == given
    assert placement.round_up(None, 3) == 3
    step = object()
    assert placement.train_step_on(None, step, given) is step
    assert placement.eval_step_on(None, step) is step
    assert placement.put_batch(None, 3, lambda places: places).tolist() == [0, 1, 2]
