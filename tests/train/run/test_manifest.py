import datetime
import json

import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.errors import JloraError
from train.classify.config import Config
from train.config import dotted_keys
from train.lm.config import LMConfig
from train.run import manifest as module
from train.run.manifest import MAY_CHANGE, manifest, may_change, require_same_inputs, run_day


def _config(**changes):
    return Config(**{"model": "m", "output_dir": "o", "data": {"train": "t"}, **changes})


BASE = {"params": {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "bias": jnp.zeros(3, jnp.bfloat16)}}
DATA = {"train": {"ids": np.arange(5, dtype=np.int32), "cut": 3}, "validation": {"ids": np.zeros((0, 2), np.int32)}}


def _made(config=None, base=BASE, data=DATA, scale=2.0, lengths=(16, 64)):
    low_rank = jlora.LowRank(None, None, jnp.full(4, scale), "ra,rb->ab", (4,))
    return manifest(config or _config(), base, {"params/kernel": low_rank}, data, lengths)


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(_made()))
    return file


def test_what_it_holds():
    found = _made()
    assert list(found) == ["config", "base", "adapter", "data", "batches", "random", "code"]
    assert list(found["adapter"]) == ["params/kernel/scale"]
    assert list(found["base"]) == ["params/bias", "params/kernel"]
    assert found["base"]["params/kernel"].startswith("float32 (2, 3) ")
    assert list(found["data"]) == ["train/ids", "validation/ids"]
    assert found["data"]["train/ids"].startswith("int32 (5,) ")
    assert found["batches"] == {"lengths": "16 64"}
    assert "jax" in found["code"]


def test_the_same_run_is_the_same(file, caplog):
    require_same_inputs(file, _made())
    require_same_inputs(file, _made(_config(model="elsewhere", train={"epochs": 7, "log_every": 1}, mesh={"fsdp": 2})))
    assert not caplog.records


def test_a_float32_run_of_the_time_when_that_was_the_default_is_the_same():
    """Its config.yaml says float32 too, and its manifest was made without."""
    assert _made(_config(train={"dtype": "float32"}))["config"] == {"fixed": "44136fa355b3678a"}  # of nothing
    assert _made(_config(train={"dtype": "bfloat16"}))["config"] != {"fixed": "44136fa355b3678a"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: _made(_config(seed=1)),
            r"expected config.yaml as the run wrote it \(was it edited\?.*\), found another\n  fixed: the run has ",
        ),
        (
            lambda: _made(base={"params": BASE["params"] | {"kernel": BASE["params"]["kernel"].at[1, 2].set(5.5)}}),
            "expected the base that the run was started with, found another\n  params/kernel: the run has float32",
        ),
        (
            lambda: _made(scale=4.0),
            "expected the scales of the adapter that the run was started with, found another\n  params/kernel/scale: ",
        ),
        (lambda: _made(base={"params": {"bias": BASE["params"]["bias"]}}), r"params/kernel: the run has .*, now none"),
        (
            lambda: _made(data=DATA | {"train": {"ids": np.arange(6, dtype=np.int32)}}),
            r"expected the data that the run was started with, found another\n  train/ids: .*\(5,\) .*\(6,\)",
        ),
        (
            lambda: _made(lengths=(16, 24, 64)),
            "batch lengths that the run was started with, found another\n  lengths: the run has 16 64, now 16 24 64",
        ),
        (lambda: _made(data={"train": {"ids": np.arange(5, 0, -1, np.int32)}}), "train/ids: .*\n  validation/ids"),
    ],
)
def test_another_one_is_refused_with_the_differences(file, other, message):
    with pytest.raises(JloraError, match=message):
        require_same_inputs(file, other())


def test_many_differences_are_cut_short(file):
    with pytest.raises(JloraError, match="and 4 more"):
        require_same_inputs(file, _made(data={"train": {str(name): np.zeros(1) for name in range(7)}}))


def test_other_code_is_said_and_no_more(file, caplog):
    made = _made()
    made["code"] = made["code"] | {"jax": "0.0.1"}
    require_same_inputs(file, made)
    assert "jax: the run has " in caplog.text
    assert "now 0.0.1" in caplog.text


def test_what_may_change_exists():
    known = {
        name for schema in (Config, LMConfig) for name in [*dotted_keys.fields(schema), *dotted_keys.sections(schema)]
    }
    assert set(MAY_CHANGE) <= known


def test_what_decides_the_numbers_may_not_change():
    for key in ("seed", "lora.r", "train.batch_size", "train.learning_rate", "train.dtype", "data.max_length"):
        assert not may_change(key)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"other": {}}', '{"config": 1, "base": 2, "adapter": 3, "data": 4, "code": 5, "batches": 6}'],
)
def test_a_broken_manifest_is_said(text, file):
    file.write_text(text)
    with pytest.raises(JloraError, match=r"manifest\.json: expected"):
        require_same_inputs(file, _made())


def test_what_an_older_version_did_not_write_down_is_said_and_not_compared(file, caplog):
    found = json.loads(file.read_text())
    del found["adapter"]
    file.write_text(json.dumps(found))
    require_same_inputs(file, _made(scale=4.0))
    assert "not compared: adapter" in caplog.text
    with pytest.raises(JloraError, match="expected the data that the run was started with"):
        require_same_inputs(file, _made(data={}))


def test_a_key_that_comes_with_a_default_changes_no_hash(monkeypatch):
    before = _made()
    newer = dotted_keys.defaults(Config) | {"train.new": 3}
    flat = module.flat(_config()) | {"train.new": 3}
    monkeypatch.setattr(dotted_keys, "defaults", lambda schema: newer)
    monkeypatch.setattr(module, "flat", lambda config: flat)
    assert _made()["config"] == before["config"]
    flat["train.new"] = 4
    assert _made()["config"] != before["config"]


def test_the_day_of_a_run_is_the_one_that_it_was_started_on(tmp_path):
    today, file = datetime.datetime.now(datetime.UTC).date(), tmp_path / "manifest.json"
    assert run_day(tmp_path, resume=True) >= today
    day = datetime.date(2024, 2, 29)
    made = manifest(_config(), BASE, {}, DATA, (16, 64), day)
    file.write_text(json.dumps(made))
    assert run_day(tmp_path, resume=True) == day
    assert run_day(tmp_path, resume=False) >= today
    require_same_inputs(file, made)
    file.write_text(json.dumps(_made()))  # an older version's
    assert run_day(tmp_path, resume=True) >= today
    for wrong in (3, {}, {"day": 7}, {"day": "yesterday"}):
        file.write_text(json.dumps(made | {"started": wrong}))
        with pytest.raises(JloraError, match=r"manifest\.json: started: expected a day, such as 2026-11-29; found"):
            run_day(tmp_path, resume=True)


def test_a_run_with_the_streams_of_an_older_version_is_refused(file):
    before = json.loads(file.read_text())
    assert before.pop("random") == {"streams": "2"}
    file.write_text(json.dumps(before))
    with pytest.raises(JloraError, match=r"random streams .*\n  streams: the run has 1, now 2"):
        require_same_inputs(file, _made())
