"""The end of a run of either trainer, when the config says that it is to be uploaded."""

import pytest

from jlora.errors import JloraError
from tests.support.training import tiny, tiny_lm
from train.task import report, train_in_folder

PUSHED = ["hub.push=true", "hub.repo=me/mine"]


@pytest.fixture(autouse=True)
def _granted(monkeypatch):
    monkeypatch.setattr(train_in_folder, "check_push", lambda repo, private: repo)


_PLACES = (str(tiny.HOME), str(tiny.ROOT))


@pytest.mark.parametrize("shipped", ["merged", "adapter"])
@pytest.mark.parametrize(("trainer", "kind"), [(tiny, "text-classification"), (tiny_lm, "text-generation")])
def test_what_is_pushed_names_the_repository_and_no_place_of_this_machine(
    trainer, kind, shipped, tmp_path, monkeypatch
):
    pushed, places = [], []

    def push(folder, repo, private):
        pushed.append((folder.name, repo, private, (folder / "README.md").read_text()))
        places.append({place for file in folder.rglob("*") for place in _PLACES if place.encode() in file.read_bytes()})
        return "https://example.org/commit"

    monkeypatch.setattr(report, "push", push)
    run = trainer.train(tmp_path / "run", *PUSHED, f"export.merged={str(shipped == 'merged').lower()}")
    ((name, repo, private, card),) = pushed
    assert (name, repo, private) == (shipped, "me/mine", True)
    assert places == [set()]
    assert kind in card
    assert "'me/mine'" in card
    assert ("'me/mine'" in (run / "adapter/README.md").read_text()) is (shipped == "adapter")
    assert tiny.report(run)["pushed_to"] == "https://example.org/commit"


def test_what_an_earlier_end_exported_and_this_one_does_not_is_deleted(tmp_path):
    tiny_lm.train(tmp_path / "run", "export.gguf_lora=true")
    run = tiny_lm.train(tmp_path / "run", "--resume", "train.max_steps=3", "export.merged=false")
    assert (run / "adapter/adapter_config.json").exists()
    assert not (run / "merged").exists()
    assert not (run / "adapter.gguf").exists()


def test_a_hub_that_fails_at_the_end_costs_no_number(tmp_path, monkeypatch, capsys):
    def fails(folder, repo, private):
        raise JloraError(f"hub.push: upload to {repo} failed")

    monkeypatch.setattr(report, "push", fails)
    assert tiny.call(tiny.classify.main, tiny.arguments(tmp_path / "run", *PUSHED)) == 2
    assert "upload to me/mine failed" in capsys.readouterr().err
    assert "accuracy" in tiny.report(tmp_path / "run")["metrics"]["validation"]
