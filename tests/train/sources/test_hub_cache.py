from pathlib import Path

import pytest
from huggingface_hub import constants

from train.sources.hub_cache import is_cached


def test_a_cached_model_has_a_config_and_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not is_cached("me/tiny", "model")
    repository = tmp_path / "models--me--tiny"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    assert not is_cached("me/tiny", "model")
    (snapshot / "model.safetensors").write_bytes(b"")
    assert is_cached("me/tiny", "model")


@pytest.mark.parametrize("name", ["a..b", "-a/b", "a" * 200])
def test_what_is_no_name_of_a_repository_is_in_no_cache(name):
    assert not is_cached(name, "model")


def test_a_cached_data_set_is_one_that_was_prepared(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert not is_cached("nyu-mll/glue", "dataset")
    prepared = Path(tmp_path, "nyu-mll___glue", "mrpc", "0.0.0", "abc")
    prepared.mkdir(parents=True)
    assert not is_cached("nyu-mll/glue", "dataset", "mrpc")
    (prepared / "dataset_info.json").write_text("{}")
    assert is_cached("nyu-mll/glue", "dataset")
    assert is_cached("nyu-mll/glue:test", "dataset", "mrpc")
    assert not is_cached("nyu-mll/glue", "dataset", "sst2")
