import os

import pytest
from huggingface_hub import constants

from jlora.errors import JloraError
from train.classify.config import COMMAND
from train.cli import offline
from train.cli import parse as command_line
from train.cli.offline import choose

_CONFIG = """
model: me/model
output_dir: run
data: {train: me/data}
offline:
  model: {folder}
  data: {train: {folder}/train.csv, text: sentence}
  train: {epochs: 7}
"""


def parse(argv):
    return command_line.parse_command_line(argv, COMMAND)


@pytest.fixture
def request_of(tmp_path, monkeypatch):
    """Parses a command line with the config above; what `choose` does to the process is undone."""
    (tmp_path / "train.csv").write_text("sentence,label\n")
    (tmp_path / "c.yaml").write_text(_CONFIG.replace("{folder}", str(tmp_path)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(offline, "hub_answers", lambda: pytest.fail("the hub was asked"))
    return lambda *argv: parse(["--config", str(tmp_path / "c.yaml"), *argv])


def _hub(monkeypatch, answers, cached=()):
    monkeypatch.setattr(offline, "hub_answers", lambda: answers)
    monkeypatch.setattr(offline, "is_cached", lambda name, *_: name in cached)


def test_a_hub_that_answers_is_used(request_of, monkeypatch):
    _hub(monkeypatch, True)
    config, is_offline = choose(request_of())
    assert (config.model, config.data.train, is_offline) == ("me/model", "me/data", False)
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_a_full_cache_comes_before_the_offline_block(request_of, monkeypatch, caplog):
    _hub(monkeypatch, False, {"me/model", "me/data"})
    config, is_offline = choose(request_of())
    assert (config.model, is_offline) == ("me/model", False)
    assert "using its local cache" in caplog.text
    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("cached", [(), ("me/model",), ("me/data",)])
def test_without_hub_and_cache_the_offline_block_says_so_loudly(cached, request_of, monkeypatch, caplog, tmp_path):
    _hub(monkeypatch, False, cached)
    config, is_offline = choose(request_of())
    assert (config.model, config.data.text, is_offline) == (str(tmp_path), "sentence", True)
    assert "! OFFLINE: the hub does not answer" in caplog.text
    assert f"! model {tmp_path} instead of me/model" in caplog.text
    assert f"! data  {tmp_path}/train.csv instead of me/data" in caplog.text
    assert "! also  train.epochs=7.0\n" in caplog.text
    assert constants.HF_HUB_OFFLINE


def test_the_flag_asks_nobody(request_of, tmp_path):
    config, is_offline = choose(request_of("--offline"))
    assert (config.model, is_offline) == (str(tmp_path), True)


def test_local_names_ask_nobody(request_of, tmp_path):
    config, is_offline = choose(request_of(f"model={tmp_path}", f"data.train={tmp_path}/train.csv"))
    assert (config.model, is_offline) == (str(tmp_path), False)
    assert not constants.HF_HUB_OFFLINE


def test_a_dry_run_with_a_local_model_needs_neither_hub_nor_data(request_of, tmp_path):
    for data in ("me/data", "nowhere.csv"):
        config, _ = choose(request_of(f"model={tmp_path}", f"data.train={data}", "--dry-run"))
        assert config.data.train == data


def test_a_dry_run_needs_only_the_model_in_the_cache(request_of, monkeypatch):
    _hub(monkeypatch, False, {"me/model"})
    assert choose(request_of("--dry-run"))[0].model == "me/model"


def test_a_dry_run_asks_for_no_data(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    _hub(monkeypatch, False)
    with pytest.raises(JloraError, match=r"From the hub it needs me/model\. Do") as caught:
        choose(parse(["model=me/model", "data.train=me/data", "output_dir=run", "--dry-run"]))
    assert "me/data" not in str(caught.value)
    assert "data.train" not in str(caught.value)


def test_nothing_to_fall_back_on_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    _hub(monkeypatch, False)
    with pytest.raises(JloraError, match="no `offline:` block") as caught:
        choose(parse(["model=me/model", "data.train=me/data", "output_dir=run"]))
    assert "hf download me/model" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 20
