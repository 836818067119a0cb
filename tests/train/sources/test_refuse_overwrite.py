import os

import pytest

from jlora.errors import JloraError
from train.sources.refuse_overwrite import require_kept


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "merged").mkdir(parents=True)
    (tmp_path / "run" / "merged" / "model.safetensors").touch()
    (tmp_path / "link").symlink_to(tmp_path / "run" / "merged")
    (tmp_path / "run" / "adapter").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "source", ["run/merged", "run/../run/merged/", "link", "run/merged/model.safetensors", "run/adapter", "elsewhere"]
)
def test_a_source_in_what_is_deleted_is_refused(source, run, monkeypatch):
    monkeypatch.chdir(run.parent)
    with pytest.raises(JloraError, match=f"^model: {source}: would be lost.*; name another"):
        require_kept({"model": source}, [run / "merged", run / "adapter"], "name another", inside=True)


def test_a_list_of_sources_is_looked_through(run):
    (run / "predictions.csv").touch()
    sources = {"data.train": ["owner/name", str(run / "merged"), str(run / "predictions.csv")]}
    with pytest.raises(JloraError, match=r"data.train: .*predictions.csv"):
        require_kept(sources, [run / "predictions.csv"], "", inside=True)


_OTHERS = [None, "owner/name", "no/such/file.csv", "run", "run/mergedtoo", "run/merged/model.safetensors"]


@pytest.mark.parametrize("source", _OTHERS)
def test_other_sources_are_not(source, run, monkeypatch):
    monkeypatch.chdir(run.parent)
    os.mkdir("run/mergedtoo")
    assert require_kept({"model": source, "data.test": None}, [run / "merged"], "") is None  # raises nothing
