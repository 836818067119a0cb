import errno
import json
import shutil
from pathlib import Path

import pytest

from jlora.errors import JloraError
from tests.support.training import tiny
from train.classify.config import Config
from train.config.command import Flags
from train.run import environment, lock
from train.run import folder as run_folder
from train.run.folder import choose_action, claim, require_checkpoints, take_over, write_json


def _config(folder, **changes):
    return Config(model="m", output_dir=str(folder), data={"train": "t"}, **changes)


def _finish(run):
    write_json(run / "report.json", {"files": run_folder.list_exported_files(run)})


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    claim(_config(tmp_path / "run"), Flags(), {})
    return tmp_path / "run"


def test_a_new_or_empty_folder_is_free(tmp_path):
    for flags in (Flags(), Flags(resume=True), Flags(overwrite=True)):
        assert choose_action(_config(tmp_path / "new"), flags) == "new"
        assert choose_action(_config(tmp_path), flags) == "new"
    assert not (tmp_path / "new").exists()


def test_claiming_writes_config_and_environment(run):
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "environment.json"]
    assert json.loads((run / "environment.json").read_text())["cpu_count"] >= 1


def test_a_run_is_resumed_finished_or_refused(run):
    with pytest.raises(JloraError, match=r"holds a run.*--resume.*--overwrite.*output_dir=FOLDER"):
        choose_action(_config(run), Flags())
    assert choose_action(_config(run), Flags(resume=True)) == "resumed"
    assert choose_action(_config(run), Flags(overwrite=True)) == "new"
    _finish(run)
    assert choose_action(_config(run), Flags(resume=True)) == "finished"


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("model", "merged"),
        ("lora.from", "adapter"),
        ("data.train", "predictions.csv"),
        ("data.test", "checkpoints/rows.csv"),
        ("data.validation", "tensorboard/rows.csv"),
    ],
)
def test_a_run_is_not_replaced_by_one_that_reads_it(key, source, run):
    (run / source).parent.mkdir(exist_ok=True)
    (run / source).touch()
    before = tiny.contents(run)
    section, _, name = key.rpartition(".")
    changes = {section: {name: str(run / source)}} if section else {name: str(run / source)}
    config = Config.model_validate(
        _config(run).model_dump(by_alias=True)
        | changes
        | ({"data": {"train": "t", "max_length": 16, **changes.get("data", {})}} if section == "data" else {})
    )
    with pytest.raises(JloraError, match=rf"{key}: .*{source}: would be lost, because --overwrite replaces"):
        choose_action(config, Flags(overwrite=True))
    assert tiny.contents(run) == before


@pytest.mark.parametrize("lost", ["merged", "adapter/adapter_model.safetensors", "report.json", "predictions.csv"])
def test_a_run_whose_exports_are_not_all_there_is_not_finished(lost, run, caplog):
    weights = ("merged/model.safetensors", "adapter/adapter_model.safetensors")
    for name in (*weights, "adapter/README.md", "predictions.csv"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    _finish(run)
    (run / "adapter" / "README.md").unlink()  # a card is the user's
    assert choose_action(_config(run), Flags(resume=True)) == "finished"
    if lost == "report.json":
        (run / lost).write_text("")
    else:
        shutil.rmtree(run / lost) if (run / lost).is_dir() else (run / lost).unlink()
    with caplog.at_level("WARNING", "train"):
        assert choose_action(_config(run), Flags(resume=True)) == "resumed"
    assert lost in caplog.text
    assert "exporting again" in caplog.text


def test_a_run_whose_upload_failed_is_not_finished(run):
    config = _config(run, hub={"push": True, "repo": "me/mine"})
    claim(config, Flags(overwrite=True), {})
    _finish(run)
    assert choose_action(config, Flags(resume=True)) == "resumed"
    write_json(run / "report.json", {"files": [], "pushed_to": "https://example.org"})
    assert choose_action(config, Flags(resume=True)) == "finished"


@pytest.mark.parametrize("flags", [Flags(), Flags(resume=True), Flags(overwrite=True)])
def test_a_run_without_its_config_is_named_as_that(flags, run):
    (run / "config.yaml").unlink()
    with pytest.raises(JloraError, match=r"holds a run whose config.yaml is missing.*Put the file back"):
        choose_action(_config(run), flags)


@pytest.mark.parametrize("damage", ["", "[]", '{"cpu_count": '])
def test_a_damaged_environment_json_costs_no_run(damage, run, caplog):
    (run / "environment.json").write_text(damage)
    take_over(_config(run))
    assert "environment.json" in caplog.text
    assert "the run goes on" in caplog.text


def test_only_the_same_configuration_is_resumed(run):
    with pytest.raises(JloraError, match="found 2 differences") as caught:
        choose_action(_config(run, seed=4, lora={"r": 2}, train={"epochs": 9}), Flags(resume=True))
    assert "epochs" not in str(caught.value)
    assert "  seed: the run has 0, now given 4" in str(caught.value)
    assert "  lora.r: the run has 8, now given 2" in str(caught.value)


def test_a_change_without_an_effect_is_not_called_another_configuration(run, caplog):
    with caplog.at_level("INFO", "train"):
        take_over(_config(run, train={"max_hours": 23.5}))
        assert "without an effect on the result\n  train.max_hours: was not set, now given 23.5" in caplog.text
        take_over(_config(run, train={"log_every": 3}))
    assert "  train.max_hours: the run has 23.5, now not set" in caplog.text
    assert "another configuration" not in caplog.text
    assert "None" not in caplog.text


def test_a_finished_run_goes_on_where_what_may_change_does(run, caplog):
    _finish(run)
    longer = _config(run, train={"epochs": 9}, export={"merged": False})
    assert choose_action(longer, Flags(resume=True)) == "resumed"
    with caplog.at_level("INFO", "train"):
        take_over(longer)
    assert "train.epochs: the run has 3.0, now given 9.0" in caplog.text
    assert "export.merged: the run has True, now given False" in caplog.text
    assert not (run / "report.json").exists()
    assert choose_action(longer, Flags(resume=True)) == "resumed"
    _finish(run)
    assert choose_action(longer, Flags(resume=True)) == "finished"


def test_a_key_that_is_newer_than_the_run_had_its_default(run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("".join(line for line in text.splitlines(True) if "adam_beta1" not in line))
    assert (run / "config.yaml").read_text() != text
    assert choose_action(_config(run), Flags(resume=True)) == "resumed"
    with pytest.raises(JloraError, match=r"train\.adam_beta1: the run has 0\.9, now given 0\.8"):
        choose_action(_config(run, train={"adam_beta1": 0.8}), Flags(resume=True))


@pytest.mark.parametrize("name", ["checkpoints", "environment.json"])
def test_killed_while_it_replaces_a_run_it_can_do_so_again(name, run, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    (run / "checkpoints").mkdir()
    (run / lock.NAME).touch()
    monkeypatch.setattr(
        *((run_folder.shutil, "rmtree") if name == "checkpoints" else (run_folder, "write_json")), killed
    )
    with pytest.raises(KeyboardInterrupt):
        claim(_config(run, seed=1), Flags(overwrite=True), {})
    monkeypatch.undo()
    assert choose_action(_config(run, seed=1), Flags(overwrite=True)) == "new"


def test_a_run_that_was_moved_is_the_same(run, tmp_path):
    run.rename(tmp_path / "moved")
    _finish(tmp_path / "moved")
    assert choose_action(_config(tmp_path / "moved"), Flags(resume=True)) == "finished"


def test_a_lock_is_no_run(tmp_path):
    (tmp_path / lock.NAME).touch()
    assert choose_action(_config(tmp_path), Flags()) == "new"


def test_both_flags_contradict(run):
    with pytest.raises(JloraError, match="--resume or --overwrite, found both"):
        choose_action(_config(run), Flags(resume=True, overwrite=True))


@pytest.mark.parametrize("flags", [Flags(), Flags(resume=True), Flags(overwrite=True)])
def test_what_is_no_run_is_never_touched(flags, tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(JloraError, match=r"one that holds a run; found \['adapter'\]"):
        choose_action(_config(tmp_path), flags)


def test_a_users_own_config_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text("model: mine")
    with pytest.raises(JloraError, match=r"one that holds a run; found \['config.yaml'\]"):
        choose_action(_config(tmp_path), Flags(overwrite=True))


def test_a_disk_that_is_full_at_the_first_file_leaves_a_new_folder(tmp_path, monkeypatch):
    def full(path, *_, **__):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"config\.yaml"):
        claim(_config(tmp_path), Flags(), {})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "config.yaml.unfinished").touch()  # of a process that was killed there
    assert choose_action(_config(tmp_path), Flags(resume=True)) == "new"


def test_of_a_link_the_link_is_deleted(run, tmp_path):
    (tmp_path / "scratch" / "3").mkdir(parents=True)
    (run / "checkpoints").symlink_to(tmp_path / "scratch")
    claim(_config(run, seed=1), Flags(overwrite=True), {})
    assert not (run / "checkpoints").is_symlink()
    assert (tmp_path / "scratch" / "3").is_dir()


def _record(run, step):
    (run / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")


def test_checkpoints_that_were_lost_are_missed(tmp_path):
    claim(_config(tmp_path, train={"checkpoint_every": 5}), Flags(), {})
    require_checkpoints(tmp_path, 100)
    _record(tmp_path, 10)  # the first checkpoint may not have been whole yet
    require_checkpoints(tmp_path, 100)
    _record(tmp_path, 11)
    (tmp_path / "checkpoints" / "5.damaged").mkdir(parents=True)
    with pytest.raises(JloraError, match=r"has come to step 11; found none.*--overwrite"):
        require_checkpoints(tmp_path, 100)
    (tmp_path / "checkpoints" / "10").mkdir()
    require_checkpoints(tmp_path, 100)


def test_a_finished_run_had_checkpoints(run):
    _record(run, 3)
    require_checkpoints(run, 100)
    (run / "report.json").touch()
    with pytest.raises(JloraError, match="expected the checkpoints of this run"):
        require_checkpoints(run, 100)


def test_overwriting_deletes_what_a_run_leaves_and_no_more(run):
    for name in run_folder.OURS:
        if not (run / name).exists():
            (run / name).mkdir() if "." not in name else (run / name).write_text("")
    (run / "notes.txt").write_text("mine")
    claim(_config(run, seed=1), Flags(overwrite=True), {})
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "environment.json", "notes.txt"]
    assert "seed: 1" in (run / "config.yaml").read_text()


def test_resuming_keeps_what_is_there_and_says_where_the_cores_differ(run, monkeypatch, caplog):
    before = (run / "environment.json").read_bytes()
    there = environment.collect() | {"cpu_count": 3000}
    monkeypatch.setattr(environment, "collect", lambda: there)
    with caplog.at_level("WARNING", "train"):
        take_over(_config(run))
    assert "this is 3000: results are equal to rounding only" in caplog.text
    assert (run / "environment.json").read_bytes() == before


def test_json_is_whole_or_not_there(tmp_path):
    write_json(tmp_path / "report.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "report.json", {"a": float("nan")})
    assert json.loads((tmp_path / "report.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
