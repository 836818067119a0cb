"""jlora configs: the shipped configs are listed, printed and copied."""

import pytest

from jlora.errors import JloraError
from tests.support.training import tiny
from tests.support.training.shipped import SERVER, SHIPPED, SWEEPS
from train import configs
from train.config.shipped import read_config_file, shipped_configs


def _called(*argv):
    return tiny.call(configs.main, argv)


def test_they_are_listed_with_what_they_are(capsys):
    assert _called() == 0
    shown = capsys.readouterr().out.splitlines()
    names = [*(file.stem for file in SHIPPED), *(f"sweeps/{file.stem}" for file in SWEEPS)]
    assert [line.split()[0] for line in shown[: len(names)]] == names
    assert "sst2               Sentiment of film reviews (SST-2) with LoRA on RoBERTa-base" in "\n".join(shown)
    assert all(len(line) > 40 for line in shown[: len(names)])


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_one_is_printed_as_it_is(file, capsys):
    assert _called(file.stem) == 0
    assert capsys.readouterr().out == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_one_is_copied_and_the_command_for_it_named(file, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _called(file.stem, "--copy") == 0
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    command = "lm" if file.stem in ("llama", "qlora", "smollm2") else "serve" if file.name == SERVER else "classify"
    assert capsys.readouterr().out == f"wrote {file.name}\nnow: jlora {command} --config {file.name}\n"


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_sweep_file_is_copied_and_the_whole_command_for_it_named(file, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _called(f"sweeps/{file.stem}", "--copy", "configs/sweeps") == 0
    copied = f"configs/sweeps/{file.name}"
    assert (tmp_path / copied).read_bytes() == file.read_bytes()
    shown = capsys.readouterr().out
    assert shown.startswith(f"wrote {copied}\nnow: jlora sweep --config configs/")
    assert f".yaml --sweep {copied} output_dir=runs/" in shown
    assert shown.partition("now: ")[2] in file.read_text(encoding="utf-8")  # as the head of the file says it


def test_a_copy_makes_the_folder_and_replaces_nothing(capsys, tmp_path):
    target = tmp_path / "new" / "configs"
    assert _called("sst2", "--copy", target) == 0
    (target / "sst2.yaml").write_text("mine")
    assert _called("sst2", "--copy", target) == 2
    assert f"--copy: {target / 'sst2.yaml'}: expected no such file yet, found one" in capsys.readouterr().err
    assert (target / "sst2.yaml").read_text() == "mine"


def test_what_cannot_be_copied(capsys):
    assert _called("--copy") == 2
    assert "--copy: expected a config's name before it: imdb, llama" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        _called("sst3")
    assert ended.value.code == 2
    assert "invalid choice: 'sst3' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("sst2.yaml", "jlora configs sst2 --copy"),
        ("configs/sst2.yaml", "jlora configs sst2 --copy configs"),
        ("configs/sst2", "jlora configs sst2 --copy configs"),
        ("configs/sweeps/rank_lr.yaml", "jlora configs sweeps/rank_lr --copy configs/sweeps"),
    ],
)
def test_a_missing_config_of_a_shipped_name_is_offered(given, advice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tiny.Path(given)
    with pytest.raises(JloraError) as raised:
        read_config_file(path)
    assert str(raised.value).endswith(f". jlora comes with one of this name: {advice}")


def test_a_missing_config_of_another_name_is_not(tmp_path):
    with pytest.raises(JloraError) as raised:
        read_config_file(tmp_path / "mine.yaml")
    assert "jlora configs" not in str(raised.value)


def test_in_a_checkout_they_are_its_files():
    assert list(shipped_configs().values()) == [file.resolve() for file in (*SHIPPED, *SWEEPS)]
