"""The command from end to end, on a model and files that are tiny."""

import csv
import functools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from transformers import RobertaConfig

from tests.support.training import tiny
from tests.support.training.hub_stand_in import serve_hub
from train.classify import __main__ as classify
from train.run import folder as run_folder
from train.run import lock

_SHORT = ["export.merged=false"]
_QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def _log(capsys):
    shown = capsys.readouterr()
    return shown.out + shown.err


def test_it_learns_what_there_is_to_learn(tmp_path, capsys):
    """Whether a text says `good` or `bad`, from a random frozen encoder."""
    learning = [
        "train.max_steps=60",
        "train.learning_rate=1e-2",
        "lora.target_modules=all-linear",
        "train.log_every=20",
    ]
    run = tiny.train(tmp_path / "run", *learning, "train.eval_every=20", f"data.test={tiny.data_file(20, 2)}")
    found = tiny.report(run)
    assert found["metrics"]["test"]["accuracy"] == 1.0
    assert found["metrics"]["validation"]["accuracy"] == 1.0
    assert found["merged_largest_logit_difference"] < 1e-4
    shown = _log(capsys)
    assert re.search(r"step 40/60  loss 0\.\d+  epoch \S+  lr .*examples/s", shown)
    assert "test: accuracy 1.0000" in shown
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"].removeprefix("LABEL_") for row in rows] == [row["label"] for row in rows]


def test_a_run_leaves_all_that_it_should(tmp_path):
    run = tiny.train(tmp_path / "run")
    assert {path.name for path in run.iterdir()} == {*run_folder.OURS, lock.NAME} - {
        "samples.jsonl",
        "adapter.gguf",
        "wandb",
        "trackio",
    }
    for folder, weights in (("adapter", "adapter_model"), ("merged", "model")):
        names = {path.name for path in (run / folder).iterdir()}
        assert {f"{weights}.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert {"jax", "transformers"} <= set(json.loads((run / "environment.json").read_text())["versions"])


def test_a_seed_is_a_run_bit_for_bit_and_another_seed_another_run(tmp_path):
    runs = [tiny.train(tmp_path / str(i), *_SHORT, f"seed={seed}") for i, seed in enumerate((5, 5, 6))]
    first, again, other = ((run / "adapter/adapter_model.safetensors").read_bytes() for run in runs)
    assert first == again
    assert first != other


@pytest.mark.parametrize("method", ["full", "head"])
def test_the_baselines_are_one_word_away(method, tmp_path):
    run = tiny.train(tmp_path / "run", f"method={method}", "train.learning_rate={lora: 1.0, full: 1e-2, head: 1e-2}")
    assert not (run / "adapter").exists()
    before, after = tiny.tensors(tiny.model_folder()), tiny.tensors(run / "merged")
    moved = {key for key in before if not np.array_equal(before[key], after[key])}
    assert (moved == set()) if method == "head" else (moved == set(before))
    trainable = 66 if method == "head" else sum(value.size for value in after.values())
    assert tiny.report(run)["parameters"]["trainable"] == trainable
    assert tiny.report(run)["parameters"]["total"] == sum(value.size for value in after.values())


def test_several_labels_a_row():
    run = tiny.finished_run("task=multi_label_classification", task="multi")
    config = json.loads((run / "merged/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "dull", "1": "fine", "2": "long"}
    assert set(tiny.report(run)["metrics"]["validation"]) == {"f1_micro", "f1_macro", "accuracy", "loss"}


def test_regression_on_pairs(tmp_path):
    run = tiny.train(tmp_path / "run", "data.text_pair=other", "data.max_length=20", task="regression")
    config = json.loads((run / "merged/config.json").read_text())
    assert config["problem_type"] == "regression"
    assert tiny.tensors(run / "merged")["classifier.weight"].shape == (1, 32)
    found = tiny.report(run)
    assert set(found["metrics"]["validation"]) == {"pearson", "spearman", "mse", "mae", "loss"}
    assert found["metrics"]["validation"]["mse"] == pytest.approx(found["metrics"]["validation"]["loss"])
    assert found["rows_cut"]["train"] > 0
    assert (run / "predictions.csv").read_text().startswith("text,text_pair,label,predicted,")


@functools.cache
def _plain(*kept):
    return tiny.train(tiny.HOME / "plain", *kept)


@pytest.mark.parametrize("switch", ["train.dtype=bfloat16", "train.remat=true"])
def test_bfloat16_and_remat_change_little(switch, tmp_path):
    kept = ["train.learning_rate=1e-2", *_SHORT]
    plain, other = _plain(*kept), tiny.train(tmp_path / "run", *kept, switch)
    first, second = tiny.tensors(plain / "adapter"), tiny.tensors(other / "adapter")
    tolerance = 1e-6 if "remat" in switch else 5e-2
    for key, value in first.items():
        assert second[key].dtype == np.float32
        assert np.abs(value - second[key]).max() < tolerance, key
    losses = [tiny.report(run)["metrics"]["validation"]["loss"] for run in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_other_families(family, tmp_path):
    run = tiny.train(tmp_path / "run", "lora.target_modules=all-linear", model=tiny.model_folder(family))
    assert tiny.report(run)["merged_largest_logit_difference"] < 1e-4
    heads = [key for key in tiny.tensors(run / "adapter") if "lora_" not in key]
    assert len(heads) == 4  # two layers, each with weight and bias


def test_a_warm_start_takes_the_adapter_as_it_is(tmp_path, capsys):
    first = tiny.train(tmp_path / "first", "lora.r=4", "lora.lora_alpha=16", *_SHORT)
    capsys.readouterr()
    still = ["train.learning_rate=1e-30", f"lora.from={first / 'adapter'}"]
    second = tiny.train(tmp_path / "second", *still, *_SHORT)
    shown = _log(capsys)
    assert "lora.from: the stored adapter's r=4 is used; the config's 8 is ignored" in shown
    assert "lora.from: the stored adapter's lora_alpha=16 is used; the config's 8 is ignored" in shown
    before, after = tiny.tensors(first / "adapter"), tiny.tensors(second / "adapter")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    stored = json.loads((second / "adapter/adapter_config.json").read_text())
    assert (stored["r"], stored["lora_alpha"]) == (4, 16)
    assert tiny.report(first)["metrics"]["validation"] == tiny.report(second)["metrics"]["validation"]


def test_a_frozen_head_is_warned_of_where_it_is_random(tmp_path, capsys):
    frozen = ["lora.modules_to_save=[]", *_SHORT]
    run = tiny.train(tmp_path / "new", *frozen)
    warning = "newly initialised, and frozen: classifier.bias, classifier.weight"
    assert warning in _log(capsys)
    assert all("lora_" in key for key in tiny.tensors(run / "adapter"))
    run = tiny.train(tmp_path / "there", *frozen, model=tiny.model_folder(head=True))
    assert "and frozen:" not in _log(capsys)
    assert all("lora_" in key for key in tiny.tensors(run / "adapter"))


def test_a_random_pooler_is_warned_of_too(tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny.model_folder().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tiny.drop_keys(folder, "bert.pooler.")
    tiny.train(tmp_path / "run", *_SHORT, model=folder)
    assert "and frozen: bert.pooler.dense.bias, bert.pooler.dense.weight" in _log(capsys)
    trained = tiny.train(tmp_path / "trained", "lora.modules_to_save=[classifier, pooler]", *_SHORT, model=folder)
    assert "and frozen:" not in _log(capsys)
    assert "base_model.model.bert.pooler.dense.weight" in tiny.tensors(trained / "adapter")


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path):
    run = tiny.train(tmp_path / "run", *_SHORT)
    (run / "notes.txt").write_text("mine")
    (run / "merged").mkdir()
    tiny.train(run, "seed=1", "--overwrite", *_SHORT)
    assert tiny.report(run)["seed"] == 1
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "merged").exists()
    assert len(list((run / "tensorboard").iterdir())) == 1


_ROBERTA_BASE = RobertaConfig(
    vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1
)


@pytest.mark.parametrize(
    ("arguments", "total", "trainable", "percent"),
    [
        (["lora.target_modules=[query, output.dense]", "lora.r=4"], "124,978,946", "923,906", "0.7392"),
        (["method=full"], "124,647,170", "124,647,170", "100.0000"),
        (["method=head"], "124,647,170", "592,130", "0.4750"),
    ],
    ids=["lora", "full", "head"],
)
def test_a_dry_run_needs_neither_weights_nor_data(arguments, total, trainable, percent, tmp_path, capsys):
    _ROBERTA_BASE.save_pretrained(tmp_path / "roberta-base")
    common = [f"model={tmp_path / 'roberta-base'}", f"output_dir={tmp_path / 'run'}"]
    for data in (tmp_path / "nowhere.csv", "stanfordnlp/sst2"):
        assert tiny.call(classify.main, [*common, f"data.train={data}", "--dry-run", *arguments]) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"^total +{total}$", shown, re.MULTILINE)
        assert re.search(rf"^trainable +{trainable}$", shown, re.MULTILINE)
        assert re.search(rf"^percent +{percent} %$", shown, re.MULTILINE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["roberta-base"]


def test_verbose_lists_every_parameter(tmp_path, capsys):
    tiny.train(tmp_path / "run", "--dry-run", "--verbose")
    shown = capsys.readouterr().out
    for key in tiny.tensors(tiny.model_folder()):
        assert f"\n{key} " in shown
    assert re.search(r"layer\.1\.attention\.self\.query\.weight +no +1,024  \(32, 32\) +yes", shown)


def _command(*arguments, **environment):
    command = [sys.executable, "-m", "train.classify", *map(str, arguments)]
    options = {"cwd": tiny.ROOT, "capture_output": True, "text": True, "timeout": 300}
    return subprocess.run(command, env=tiny.environment(**environment), **options)


def test_no_hub_no_cache_and_no_offline_block(tmp_path):
    done = _command("model=FacebookAI/roberta-base", "data.train=stanfordnlp/sst2", f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) <= 15
    for part in ("no hub answers", "hf download FacebookAI/roberta-base", "data.train=FILE", "`offline:` block"):
        assert part in done.stderr
    assert not (tmp_path / "run").exists()


def test_model_and_data_from_the_hub(tmp_path):
    model = {path.name: path.read_bytes() for path in tiny.model_folder().iterdir()}
    data = {"train.csv": tiny.data_file(24).read_bytes(), "validation.csv": tiny.data_file(10, 1).read_bytes()}
    run = tmp_path / "run"
    arguments = [
        *tiny.arguments(run),
        "model=me/tiny-bert",
        "data.train=me/texts",
        "data.validation=me/texts:validation",
    ]
    with serve_hub({"me/tiny-bert": model, "datasets/me/texts": data}) as address:
        done = _command(*arguments, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    found = tiny.report(run)
    assert found["sources"] == {"model": "me/tiny-bert", "data": "me/texts", "offline": False}
    assert found["rows"] == {"train": 24, "validation": 10}
    assert json.loads((run / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "me/tiny-bert"
    # The hub is gone, its cache is not.
    again = _command(*arguments, "--overwrite", HF_HOME=str(tmp_path / "hf"))
    assert again.returncode == 0, again.stderr
    assert "using its local cache" in again.stderr
    assert tiny.report(run)["metrics"] == found["metrics"]
