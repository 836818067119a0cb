"""Both trainers called from Python, with a caller's own loss, metrics, callback and model."""

from __future__ import annotations

import csv
import os
import signal
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

import train.classify
import train.lm
from jlora.errors import JloraError
from jlora.files import yaml12
from tests.support.training import tiny, tiny_lm
from train.classify.config import Config
from train.lm.config import LMConfig


def _values(arguments):
    """{dotted key: value} of a command line."""
    pairs = (argument.split("=", 1) for argument in arguments)
    return {key: yaml12.parse(value, key) for key, value in pairs}


def _run(trainer, *given, **options):
    with tiny.isolated():
        return trainer.run(*given, **options)


def _always_seven(config, opened, model):
    return lambda trainable, frozen, base, batch, key: 7.0 * jnp.sum(batch.weights)


def _without_an_opinion(model):
    return SimpleNamespace(config=model.config, apply=lambda *args, **more: 0 * model.apply(*args, **more))


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """(the finished run, {step: what was said of it}) with functions of the caller's."""
    folder, seen = tmp_path_factory.mktemp("changed"), {}
    config = folder / "config.yaml"
    config.write_text(yaml12.dump(_values(tiny.arguments(folder / "run"))), encoding="utf-8")
    finished = _run(
        train.classify,
        config,
        {"train.max_steps": 3, "train.log_every": 3},
        loss=_always_seven,
        metrics=lambda opened, split, found: {"batches": float(len(found))},
        on_step=seen.__setitem__,
        wrap_model=_without_an_opinion,
    )
    return finished, seen


def test_a_loss_of_ones_own_is_what_is_trained(changed):
    assert [values["loss"] for values in changed[1].values()] == [7.0, 7.0, 7.0]


def test_a_callback_is_called_after_each_step(changed):
    assert list(changed[1]) == [1, 2, 3]
    assert all(set(values) == {"loss", "grad_norm"} for values in changed[1].values())


def test_metrics_of_ones_own_stand_beside_the_trainers(changed):
    found = changed[0].report["metrics"]["validation"]
    assert found["batches"] == 2.0
    assert "accuracy" in found


def test_a_model_of_ones_own_is_what_predicts(changed):
    with (changed[0].folder / "predictions.csv").open(encoding="utf-8") as file:
        assert all(row["LABEL_0"] == row["LABEL_1"] == "0.5000" for row in csv.DictReader(file))
    assert changed[0].report["merged_largest_logit_difference"] == 0.0


def test_what_it_returns_is_what_the_run_has_made(changed):
    finished, _ = changed
    assert tiny.report(finished.folder) == finished.report
    assert finished.report_file.is_file()
    assert (finished.adapter_folder / "adapter_config.json").is_file()
    assert (finished.merged_folder / "config.json").is_file()
    assert finished.adapter
    assert finished.model.config.num_labels == 2


def test_a_finished_run_is_said_and_left_alone(changed):
    values = _values(tiny.arguments(changed[0].folder)) | {"train.max_steps": 3, "train.log_every": 3}
    with pytest.raises(JloraError, match="this run is finished"):
        _run(train.classify, Config.model_validate(_nested(values)), resume=True)
    with pytest.raises(JloraError, match="holds a run"):
        _run(train.classify, values)


def _nested(values):
    found = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (found.setdefault(section, {}) if section else found)[name] = value
    return found


def test_a_language_model_is_trained_the_same_way_and_goes_on_where_it_was_stopped(tmp_path):
    values = _nested(_values(tiny_lm.arguments(tmp_path / "run", "export.merged=false"))) | {
        "output_dir": tmp_path / "run"  # a path is a text
    }
    seen = {}

    def stop(step, found):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(JloraError, match=r"stopped \(SIGTERM\); resume=True goes on"):
        _run(train.lm, values, {"train.max_steps": 4}, on_step=stop)
    finished = _run(train.lm, values, {"train.max_steps": 4}, on_step=seen.__setitem__, resume=True)
    assert 0 < len(seen) < 4
    assert list(seen)[-1] == 4
    assert finished.merged_folder is None
    assert finished.report["metrics"]["validation"]["perplexity"] > 1


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ({"train": {"lerning_rate": 1}}, {}, r"(?s)given to run: .*train\.lerning_rate: unknown key"),
        ({}, {"lora.r": "four"}, r"lora\.r \(overrides\): expected whole number"),
        ({"lora": {"r": 4}, "lora.r": 4}, {}, "given twice"),
        ("nowhere.yaml", {}, "expected a YAML file, found no such file"),
    ],
)
def test_what_is_wrong_with_a_config_is_raised(config, overrides, message, tmp_path):
    if isinstance(config, dict):
        config = _nested(_values(tiny.arguments(tmp_path / "run"))) | config
    with pytest.raises(JloraError, match=message):
        _run(train.classify, config, overrides)
    assert not (tmp_path / "run").exists()


def test_a_config_of_the_other_trainer_is_refused(tmp_path):
    config = LMConfig.model_validate({"model": "m", "output_dir": str(tmp_path), "data": {"train": "t"}})
    with pytest.raises(JloraError, match=r"expected train\.classify\.config\.Config, found train\.lm\.config"):
        train.classify.run(config)
