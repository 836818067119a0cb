"""Hub names are told from files and folders, and a path that is not there is refused."""

import pytest

from jlora.errors import JloraError
from train.classify.config import Config
from train.lm.config import LMConfig
from train.sources.hub_names import data_hub_names, model_hub_names, needs_hub


def config(model, **data):
    return Config.model_validate({"model": model, "output_dir": "o", "data": data})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.csv").touch()
    return tmp_path


def test_what_is_local_needs_no_hub(folder):
    rows = str(folder / "rows.csv")
    assert needs_hub(config(str(folder), train=[rows, rows], validation=rows, test=rows)) == []
    assert needs_hub(config("package:pydantic/v1", train="package:pydantic/main.py")) == []


def test_hub_names_are_given_once_the_model_first_and_without_splits(folder):
    rows = str(folder / "rows.csv")
    mixed = config("owner/model", train=["owner/a", rows], validation="owner/a:dev", test="b:test")
    assert model_hub_names(mixed) == ["owner/model"]
    assert data_hub_names(mixed) == ["owner/a", "b"]
    assert needs_hub(mixed) == ["owner/model", "owner/a", "b"]


@pytest.mark.parametrize("name", ["rows.csv", "./rows", "/no/rows", "~/no/rows", "a/b/c", "package:pydantic/no"])
@pytest.mark.parametrize("key", ["model", "data.train", "data.validation", "data.test"])
def test_a_path_that_is_not_there_is_refused_with_its_key(key, name, folder, monkeypatch):
    monkeypatch.chdir(folder / "..")
    names = {"model": "m", "data.train": "t", key: name}
    model = names.pop("model")
    data = {key.removeprefix("data."): value for key, value in names.items()}
    with pytest.raises(JloraError, match=f"^{key}: {name}"):
        needs_hub(config(model, **data))


def test_a_config_without_test_rows():
    named = LMConfig.model_validate({"model": "a/b", "output_dir": "o", "data": {"train": "c/d:train"}})
    assert needs_hub(named) == ["a/b", "c/d"]
