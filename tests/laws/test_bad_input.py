"""Whatever is wrong with the input: exit code 2, one screen that says what and where, and nothing written."""

import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.training import tiny
from train.classify import __main__ as classify


def _refused(capsys, output, *arguments, **options):
    """The text of the error; the folder is as it was before."""
    before = tiny.contents(output)
    capsys.readouterr()
    assert tiny.call(classify.main, tiny.arguments(output, *arguments, **options)) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert sum(max(1, math.ceil(len(line) / 120)) for line in shown.splitlines()) <= 25, shown
    assert tiny.contents(output) == before
    assert before or not output.exists()
    return shown


def _rows(tmp_path, content, name="train.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


_ROWS = "text,label\na good film,1\na bad film,0\nthe plot is good,1\n"

BAD_DATA = {
    "a missing file": (None, ["data.train", "train.csv", "no such file"]),
    "an empty file": ("", ["train.csv", "empty"]),
    "a header and nothing more": ("text,label\n", ["train.csv", "expected data rows, found none", "text, label"]),
    "no text column": (
        "sentence,label\na,1\n",
        ["expected a column 'text'", "data.text", "found the columns sentence, label"],
    ),
    "no label column": (
        "text,mark\na,1\n",
        ["expected a column 'label'", "data.label", "found the columns text, mark"],
    ),
    "a gap in the labels": (_ROWS + "it was bad,7\n", ["data row 4", "'7'", "whole numbers from 0 without a gap"]),
    "a label of another type": (_ROWS + "it was bad,poor\n", ["data row 4", "'poor'"]),
    "no label": (_ROWS + "it was bad,\n", ["data row 4", "empty label"]),
    "an unlabelled row in train": (_ROWS + "it was bad,-1\n", ["data row 4", "-1", "which only data.test may have"]),
    "one class": ("text,label\na good film,0\nfine,0\n", ["two classes or more"]),
    "no UTF-8": (_ROWS.encode() + b"caf\xe9,1\n", ["data row 4", "0xe9", "data.encoding=latin-1"]),
    "a row with too many fields": (_ROWS + "one, two,1\n", ["data row 4", "expected 2 fields (text, label), found 3"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case, tmp_path, capsys):
    content, expected = BAD_DATA[case]
    path = tmp_path / "train.csv" if content is None else _rows(tmp_path, content)
    shown = _refused(capsys, tmp_path / "run", f"data.train={path}")
    for part in expected:
        assert part in shown


def test_a_validation_label_that_train_does_not_have(tmp_path, capsys):
    path = _rows(tmp_path, "text,label\ngood,1\nbad,2\n", "dev.csv")
    shown = _refused(capsys, tmp_path / "run", f"data.validation={path}")
    assert "dev.csv, data row 2" in shown
    assert "expected a class id from 0 to 1" in shown


def test_an_unlabelled_row_in_validation_is_refused_and_in_test_is_not(tmp_path, capsys):
    path = _rows(tmp_path, "text,label\ngood,1\nbad,-1\nso bad,0\n")
    assert "data row 2" in _refused(capsys, tmp_path / "run", f"data.validation={path}")
    run = tiny.train(tmp_path / "run", f"data.test={path}")
    assert "accuracy" in tiny.report(run)["metrics"]["test"]


BAD_ARGUMENTS = {
    "an unknown key": (["lora.rank=4"], ["lora.rank", "did you mean"]),
    "a wrong type": (["train.batch_size=many"], ["train.batch_size", "whole number", "'many'"]),
    "a rank of zero": (["lora.r=0"], ["lora.r", ">= 1", "0"]),
    "a negative rank": (["lora.r=-1"], ["lora.r", ">= 1", "-1"]),
    "an unknown flag": (["--resum"], ["--resum", "nearest: --resume"]),
    "two flags that contradict": (["--resume", "--overwrite"], ["--resume", "--overwrite", "both"]),
    "a metric of another task": (["train.metric=pearson"], ["train.metric", "accuracy", "'pearson'"]),
    "a tracker that is not installed": (["tracker=trackio"], ["trackio is not installed", "pip install"]),
    "a target that matches nothing": (
        ["lora.target_modules=[querry]"],
        ["'querry'", "nearest", "attention.self.query"],
    ),
    "a regex that matches nothing": (["lora.target_modules=query"], ["'query'", ".*(query).*"]),
    "no regular expression": (["lora.target_modules=*query"], ["*query", "regular expression"]),
    "a rank pattern that matches nothing": (["lora.rank_pattern={kew: 2}"], ["rank_pattern", "'kew'"]),
    "an adapter that is not there": (["lora.from=nowhere"], ["nowhere", "adapter_config.json"]),
    "nothing exported": (["method=full", "export.merged=false"], ["export.merged", "method: full"]),
    "rows longer than the tokenizer takes": (["data.max_length=22"], ["data.max_length=22", "20"]),
    "rows longer than the model takes": (["data.max_length=64"], ["data.max_length=64", "24"]),
    "a hub set that no hub has": (["data.train=me/nothing", "--offline"], ["me/nothing", "data.train=FILE"]),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case, tmp_path, capsys, monkeypatch):
    arguments, expected = BAD_ARGUMENTS[case]
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    shown = _refused(capsys, tmp_path / "run", *arguments)
    for part in expected:
        assert part in shown


def _changed_model(tmp_path, change):
    """A copy of the tiny model with `change(tensors)` in its weights."""
    folder = tmp_path / "model"
    shutil.copytree(tiny.model_folder(), folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


_QUERY = "bert.encoder.layer.1.attention.self.query.weight"

BAD_TENSORS = {
    "a wrong shape": (lambda t: t.update({_QUERY: np.zeros((32, 16), "f")}), [_QUERY, "(32, 32)", "(32, 16)"]),
    "a missing key": (lambda t: t.pop(_QUERY), [_QUERY, "found no such keys"]),
    "an unknown key": (lambda t: t.update({"bert.extra.weight": np.zeros(2, "f")}), ["bert.extra.weight"]),
    "integers": (lambda t: t.update({_QUERY: np.zeros((32, 32), np.int8)}), [_QUERY, "dtype", "I8"]),
    "another number of classes": (
        lambda t: t.update({"classifier.weight": np.zeros((5, 32), "f"), "classifier.bias": np.zeros(5, "f")}),
        ["classifier.", "(2", "(5"],
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors(case, tmp_path, capsys):
    change, expected = BAD_TENSORS[case]
    shown = _refused(capsys, tmp_path / "run", model=_changed_model(tmp_path, change))
    for part in expected:
        assert part in shown


def _cut(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04never opened")


def _no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _config(**changes):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


BAD_FOLDERS = {
    "a truncated file": (_cut, ["model.safetensors", "whole safetensors file of", "bytes", "copy it again"]),
    "a pickle": (_pickled, ["pytorch_model.bin", "never opened", "model.safetensors"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["expected model.safetensors", "neither"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json"]),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "JSON"]),
    "no tokenizer": (_no_tokenizer, ["expected a tokenizer", "tokenizer.json"]),
    "an unknown family": (_config(model_type="xlm"), ["model_type", "bert, bloom, distilbert", "roberta", "'xlm'"]),
    "a variant that is not built": (_config(is_decoder=True), ["is_decoder", "not supported"]),
    "fewer positions than tokens": (_config(max_position_embeddings=8), ["8"]),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_model_folders(case, tmp_path, capsys):
    change, expected = BAD_FOLDERS[case]
    folder = tmp_path / "model"
    shutil.copytree(tiny.model_folder(), folder)
    change(folder)
    shown = _refused(capsys, tmp_path / "run", model=folder)
    for part in expected:
        assert part in shown


def test_rows_longer_than_the_model_are_refused_before_anything_is_written(tmp_path, capsys):
    folder = _changed_model(tmp_path, _positions(8))
    _config(max_position_embeddings=8)(folder)
    shown = _refused(capsys, tmp_path / "run", model=folder)
    assert re.search("at most 8 tokens a row.*found 16.*data.max_length", shown)


def _positions(count):
    name = "bert.embeddings.position_embeddings.weight"
    return lambda tensors: tensors.update({name: tensors[name][:count]})


def test_the_tokenizer_of_another_model(tmp_path, capsys):
    name = "bert.embeddings.word_embeddings.weight"
    folder = _changed_model(tmp_path, lambda tensors: tensors.update({name: tensors[name][:20]}))
    _config(vocab_size=20)(folder)
    shown = _refused(capsys, tmp_path / "run", model=folder)
    assert re.search("train: expected token ids below .* vocab_size 20", shown)


def test_a_model_that_is_not_there(tmp_path, capsys):
    shown = _refused(capsys, tmp_path / "run", f"model={tmp_path / 'nowhere'}")
    assert "model: " in shown
    assert "nowhere" in shown


def test_a_folder_that_holds_another_run_is_left_alone(tmp_path, capsys):
    run = tiny.train(tmp_path / "run")
    shown = _refused(capsys, run)
    assert "--overwrite" in shown
    assert "--resume" in shown
    resumed = _refused(capsys, run, "--resume", "seed=3", "lora.r=2")
    assert "seed: the run has 0, now given 3" in resumed
    assert "lora.r: the run has 8, now given 2" in resumed
    bad = _refused(capsys, run, "--overwrite", "lora.target_modules=[nothing]")
    assert "'nothing'" in bad


def test_a_folder_that_holds_no_run_is_never_overwritten(tmp_path, capsys):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.txt").write_text("years of work")
    for flags in ([], ["--overwrite"], ["--resume"]):
        assert "chapter1.txt" in _refused(capsys, folder, *flags)


def test_a_file_in_the_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "run").write_text("kept")
    assert tiny.call(classify.main, tiny.arguments(tmp_path / "run", "--overwrite")) == 2
    assert "output_dir: " in (shown := capsys.readouterr().err)
    assert "found a file" in shown
    assert (tmp_path / "run").read_text() == "kept"


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "output_dir" in _refused(capsys, tmp_path / "file" / "run", "train.max_steps=1")


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step_and_keeps_the_checkpoint(tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["train.learning_rate=1e18", "train.warmup_steps=2", "train.max_steps=20", "train.eval_every=1"]
    assert tiny.call(classify.main, tiny.arguments(run, *arguments)) == 2
    shown = capsys.readouterr().err
    stopped = re.search(r"step (\d+): expected a finite .*, found (nan|inf).*checkpoint of step (\d+) is kept", shown)
    assert stopped, shown
    assert int(stopped[3]) == int(stopped[1]) - 1
    assert (run / "checkpoints" / stopped[3]).is_dir()
    assert not (run / "report.json").exists()
    assert not (run / "adapter").exists()


def test_a_rank_above_the_smaller_side_is_a_warning_with_path_and_sizes(tmp_path):
    with pytest.warns(UserWarning, match=r"attention/self/query/kernel: rank 33 .* 32 x 32"):
        tiny.train(tmp_path / "run", "lora.r=33", "--dry-run")
