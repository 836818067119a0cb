import csv
import json
import shutil

import numpy as np
import pytest

from tests.support.training import tiny
from train import predict
from train.classify import metrics
from train.classify.classifier import load_trained
from train.classify.data.splits import Split


def _call(*argv):
    return tiny.call(predict.main, argv)


def _write(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def _labelled(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("part", ["", "merged", "adapter"])
def test_new_text_is_labelled_with_probabilities(part, tmp_path):
    texts = [text for text, _ in tiny.texts(7, seed=3)]
    file = _write(tmp_path / "in.csv", ["text"], [[text] for text in texts])
    folder = tiny.finished_run() / part
    larger_than_the_input = ["--batch-size", 10**11]
    assert _call("--model", folder, "--input", file, "--output", tmp_path / "deep/out.csv", *larger_than_the_input) == 0
    rows = _labelled(tmp_path / "deep/out.csv")
    assert [row["text"] for row in rows] == texts
    split = Split(texts, None, [-1] * 7, list(range(7)), ["x"] * 7)
    shares = metrics.probabilities("single_label_classification", load_trained(folder).logits(split, 16))
    for row, expected in zip(rows, shares, strict=True):
        assert row["predicted"] == f"LABEL_{np.argmax(expected)}"
        assert [float(row["LABEL_0"]), float(row["LABEL_1"])] == pytest.approx(expected.tolist(), abs=2e-6)


def test_a_tokenizer_without_padding_token_labels_the_same(tmp_path):
    file = _write(tmp_path / "in.csv", ["text"], [[text] for text, _ in tiny.texts(7, seed=3)])
    shutil.copytree(tiny.finished_run() / "merged", tmp_path / "merged")
    settings = json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    assert settings.pop("pad_token") == "[PAD]"
    (tmp_path / "merged" / "tokenizer_config.json").write_text(json.dumps(settings))
    for folder, output in ((tiny.finished_run(), "a.csv"), (tmp_path / "merged", "b.csv")):
        argv = ["--model", folder, "--input", file, "--output", tmp_path / output, "--max-length", 16]
        assert _call(*argv) == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_evaluate_gives_the_runs_own_numbers(task, tmp_path, capsys):
    problem = {"single": "single_label_classification", "multi": "multi_label_classification"}.get(task, task)
    run = tiny.finished_run(*([f"task={problem}"] if task != "single" else []), task=task)
    capsys.readouterr()
    data, output = tiny.data_file(10, 1, task), tmp_path / "out.csv"
    assert _call("--model", run, "--input", data, "--output", output, "--evaluate") == 0
    expected = tiny.report(run)["metrics"]["validation"]
    shown = dict(part.split() for part in capsys.readouterr().out.strip().split("  "))
    assert shown == {name: f"{value:.4f}" for name, value in expected.items()}
    if task == "regression":
        assert all(-50 < float(row["predicted"]) < 50 for row in _labelled(output))


def test_the_columns_of_the_input_are_kept_as_they_are(tmp_path):
    rows = [[f"id{row}", text, row, "mine"] for row, (text, _) in enumerate(tiny.texts(5, seed=3))]
    names = ["id", "text", "LABEL_0", "predicted LABEL_0"]
    file = _write(tmp_path / "in.csv", names, rows)
    assert _call("--model", tiny.finished_run(), "--input", file, "--output", tmp_path / "out.csv") == 0
    found = _labelled(tmp_path / "out.csv")
    assert list(found[0]) == [*names, "predicted", "predicted predicted LABEL_0", "LABEL_1"]
    assert [[row[name] for name in names] for row in found] == [[str(cell) for cell in row] for row in rows]
    assert all(row["predicted"].startswith("LABEL_") for row in found)


def test_lists_and_objects_of_the_input_are_written_as_json(tmp_path):
    cell = {"a": [1, "é"]}
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "good", "more": cell}) + "\n")
    argv = ["--model", tiny.finished_run(), "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.csv"]
    assert _call(*argv) == 0
    assert json.loads(_labelled(tmp_path / "out.csv")[0]["more"]) == cell


def test_errors_name_the_flags_of_this_command(tmp_path, capsys):
    file = tmp_path / "data.test.csv"
    given = ["--model", tiny.finished_run(), "--output", tmp_path / "out.csv", "--input"]
    for text, message in (
        ("id;text\n1;good\n", "--separator ';'"),
        ("id\n1\n", "expected a column 'text' (--text), found the columns id"),
    ):
        file.write_text(text)
        assert _call(*given, file) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert str(file) in shown
        assert "data." not in shown.replace(str(file), "")


def test_a_length_that_the_tokenizer_lacks_is_refused_before_the_model_is_read(tmp_path, capsys):
    shutil.copytree(tiny.finished_run() / "merged", tmp_path / "merged")
    (tmp_path / "merged" / "model.safetensors").write_bytes(b"never read")
    settings = json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    (tmp_path / "merged" / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 32}))
    file = _write(tmp_path / "in.csv", ["text"], [["good"]])
    argv = ["--model", tmp_path / "merged", "--input", file, "--output", tmp_path / "out.csv", "--max-length", 33]
    assert _call(*argv) == 2
    shown = capsys.readouterr().err
    assert "error: --max-length 33: expected more than the 2 special tokens of a row and at most" in shown
    assert "data." not in shown


def test_pairs_columns_and_names_are_those_of_the_run(tmp_path, capsys):
    rows = [[text, text[::-1], ("neg", "pos")[label], "x"] for text, label in tiny.texts(24)]
    columns_of_the_input = ["first", "second", "mark", "text"]
    file = _write(tmp_path / "data.csv", columns_of_the_input, rows)
    columns = ["data.text=first", "data.text_pair=second", "data.label=mark", "data.max_length=20"]
    names = "data.label_names={neg: bad news, pos: good news}"
    run = tiny.train(tmp_path / "run", f"data.train={file}", f"data.validation={file}", *columns, names)
    capsys.readouterr()
    assert _call("--model", run, "--input", file, "--output", tmp_path / "out.csv", "--evaluate") == 0
    assert f"accuracy {tiny.report(run)['metrics']['validation']['accuracy']:.4f}" in capsys.readouterr().out
    found = _labelled(tmp_path / "out.csv")
    assert list(found[0]) == [*columns_of_the_input, "predicted", "bad news", "good news"]
    assert [row["second"] for row in found] == [row[1] for row in rows]
    # The command line beats the run.
    argv = ["--model", run, "--input", file, "--output", tmp_path / "b.csv", "--text", "second", "--text-pair", "text"]
    assert _call(*argv) == 0
    other = _labelled(tmp_path / "b.csv")[0]
    assert other["good news"] != found[0]["good news"]


def test_an_adapter_made_by_peft(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle is PEFT")
    peft = pytest.importorskip("peft", reason="the oracle is PEFT")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, base = tmp_path / "adapter", tiny.model_folder()
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "dense"], init_lora_weights=False
    )
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model = peft.get_peft_model(model, config).eval()
    model.save_pretrained(folder)
    texts = [text for text, _ in tiny.texts(6, seed=5)]
    with torch.no_grad():
        encoded = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")
        expected = model(**encoded).logits.softmax(-1).numpy()
    file = _write(tmp_path / "in.csv", ["text"], [[text] for text in texts])
    assert _call("--model", folder, "--input", file, "--output", tmp_path / "out.csv", "--max-length", "16") == 0
    rows = _labelled(tmp_path / "out.csv")
    assert [row["predicted"] for row in rows] == [f"LABEL_{i}" for i in expected.argmax(-1)]
    found = [[float(row[f"LABEL_{i}"]) for i in range(3)] for row in rows]
    assert np.abs(found - expected).max() < 1e-5


def test_unlabelled_rows_do_not_enter_the_metrics(tmp_path, capsys):
    rows = tiny.texts(4, seed=6)
    for name, labels in (("part", [-1, 0, 1, -1]), ("none", [-1] * 4)):
        file = _write(
            tmp_path / f"{name}.csv", ["text", "label"], [[r[0], y] for r, y in zip(rows, labels, strict=True)]
        )
        output = tmp_path / f"{name}-out.csv"
        assert _call("--model", tiny.finished_run(), "--input", file, "--output", output, "--evaluate") == 0
        assert ("accuracy" if name == "part" else "no row is labelled") in capsys.readouterr().out


def _refused(capsys, *argv):
    capsys.readouterr()
    assert _call(*argv) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert len(shown.splitlines()) < 25
    return shown


def test_an_output_that_is_there_is_kept_unless_told(tmp_path, capsys):
    file, output = _write(tmp_path / "in.csv", ["text"], [["good"]]), tmp_path / "out.csv"
    output.write_text("mine")
    argv = ["--model", tiny.finished_run(), "--input", file, "--output", output]
    assert "--overwrite" in _refused(capsys, *argv)
    assert output.read_text() == "mine"
    assert _call(*argv, "--overwrite") == 0
    assert len(_labelled(output)) == 1
    replaces_its_input = ["--model", tiny.finished_run(), "--input", file, "--output", file, "--overwrite"]
    assert "--input" in _refused(capsys, *replaces_its_input)
    assert file.read_text().splitlines() == ["text", "good"]


def test_bad_input(tmp_path, capsys):
    run, output = tiny.finished_run(), tmp_path / "out.csv"
    file = _write(tmp_path / "in.csv", ["sentence", "label"], [["good", "9"]])
    argv = ["--input", file, "--output", output, "--model"]
    assert "found the columns sentence, label. --text names it" in _refused(capsys, *argv, run)
    assert "data row 1" in _refused(capsys, *argv, run, "--text", "sentence", "--evaluate")
    assert "no such folder" in _refused(capsys, *argv, tmp_path / "nowhere", "--text", "sentence")
    assert "no such file" in _refused(capsys, "--model", run, "--input", "nowhere.csv", "--output", output)
    too_long = _refused(capsys, *argv, run, "--text", "sentence", "--max-length", "9999")
    assert "--max-length 9999: expected more than" in too_long
    assert not output.exists()


@pytest.mark.parametrize("option", ["--max-length=3", "--max-length=x", "--batch-size=0", f"--batch-size={10**20}"])
def test_bad_numbers(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        _call("--model", tiny.finished_run(), "--input", "a.csv", "--output", tmp_path / "b.csv", option)
    assert caught.value.code == 2
    assert "expected a whole number >=" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config",
    ["name: something else", "data: {max_length: big, text: 5}", "data: [1]", "data: {label_names: [1]}", "a: [", "\0"],
)
def test_a_config_that_is_not_ours_beside_the_folder_does_no_harm(config, tmp_path):
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "model").symlink_to(tiny.finished_run() / "merged")
    file = _write(tmp_path / "in.csv", ["text"], [["good"]])
    argv = ["--model", tmp_path / "model", "--input", file, "--output", tmp_path / "out.csv", "--max-length", "16"]
    assert _call(*argv) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text", ""], "error: --text: expected text; found empty text\n"),
        (["--encoding", ""], "error: --encoding: expected text; found empty text\n"),
        (["--text-pair", ""], "error: --text-pair: expected text or null; found empty text\n"),
        (["--input", ""], "error: --input: expected text or list of text; found empty text\n"),
    ],
)
def test_an_empty_value_names_its_flag(flags, message, tmp_path, capsys):
    argv = ["--model", tmp_path, "--input", "in.csv", "--output", tmp_path / "out.csv", *flags]
    assert _call(*argv) == 2
    assert capsys.readouterr().err.endswith(message)


def test_a_config_of_a_run_that_was_damaged_is_named(tmp_path, capsys):
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("data: {max_length: big}")
    assert _call("--model", tmp_path, "--input", "in.csv", "--output", tmp_path / "out.csv") == 2
    message = "config.yaml: data.max_length: expected whole number >= 4; found the text 'big'\n"
    assert capsys.readouterr().err.endswith(message)
    (tmp_path / "config.yaml").write_text("data: {drop_other_labels: true}")
    assert _call("--model", tmp_path, "--input", "in.csv", "--output", tmp_path / "out.csv") == 2
    assert "config.yaml: data.drop_other_labels: true needs data.label_names" in capsys.readouterr().err


def test_an_error_offers_no_key_that_the_command_lacks(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "good", "label": "x"}\n{"text": null, "label": 0}\n')
    argv = ["--model", tiny.finished_run(), "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.csv"]
    for wrong in (_refused(capsys, *argv), _refused(capsys, *argv, "--text", "label", "--evaluate")):
        assert "data row" in wrong
        assert "skip_bad_rows" not in wrong
