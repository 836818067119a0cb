"""The command: from two folders to an adapter that PEFT opens, and what it says of the rest."""

import csv
import functools
import json
import shutil

import pytest

import jlora
from jlora.pretrained.load import example_batch, load_base
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from tests.support.adapters.lora_cases import normal, random_adapter
from tests.support.models.encoder_cases import difference
from tests.support.training import lm_folders, tiny, tiny_lm
from train import export, extract
from train.classify.classifier import load_trained
from train.classify.data.splits import Split

_TEXTS = [text for text, _ in tiny.texts(6, seed=9)]


@functools.cache
def _tuned(family="bert", *, changed=("adapter", "head")):
    """A folder of the tiny model after a change of rank 2, a head of its own, and other leaves where named."""
    folder = tiny.HOME / "-".join([family, "tuned", *changed])
    shutil.copytree(tiny.model_folder(family, head=True), folder)
    model, base = load_base(str(folder))
    batch = example_batch(model.config)
    given = random_adapter(model.apply, base, batch, targets="all-linear", task_type="SEQ_CLS", use_dora=False)
    if "adapter" in changed:
        base = jlora.merge(base, given)
    leaves = leaves_by_path(base)
    moved = {p: x + 0.1 * normal(1, *x.shape) for p, x in leaves.items() if p.endswith(tuple(changed))}
    jlora.save_base(folder, model, replace_leaves(base, moved))
    if "head" not in changed:
        tiny.drop_keys(folder, "classifier.", "pre_classifier.")
    return folder


def _call(*argv):
    return tiny.call(extract.main, argv)


def _logits(folder):
    rows = Split(_TEXTS, None, [-1] * 6, list(range(6)), ["x"] * 6)
    return load_trained(folder).logits(rows, 16)


def _lines(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("options", [["--rank", "2"], ["--energy", "0.99999"]], ids=lambda options: options[0])
def test_what_has_a_low_rank_comes_back_in_peft(options, tmp_path, capsys):
    out = tmp_path / "deep/out"
    assert _call("--tuned", _tuned(), "--base", tiny.model_folder(), "--out", out, *options) == 0
    shown = capsys.readouterr()
    assert "outside of the adapter: 0.00 % of the squared change\n" in shown.out
    assert f"--adapter {out / 'adapter'}" in shown.err
    expected = _logits(_tuned())
    assert difference(_logits(out), expected) < 1e-4
    config = json.loads((out / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny.model_folder())
    assert config["task_type"] == "SEQ_CLS"

    torch = pytest.importorskip("torch", reason="the oracle is PEFT")
    peft = pytest.importorskip("peft", reason="the oracle is PEFT")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tiny.model_folder())
    model = peft.PeftModel.from_pretrained(model, out / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "adapter")
    encoded = tokenizer(_TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        assert difference(model(**encoded).logits.numpy(), expected) < 1e-4


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_other_families_come_back_when_merged(family, tmp_path):
    argv = ["--tuned", _tuned(family), "--base", tiny.model_folder(family), "--out", tmp_path / "out", "--rank", "2"]
    assert _call(*argv) == 0
    merged = ["--adapter", tmp_path / "out/adapter", "--out", tmp_path / "merged"]
    assert tiny.call(export.main, merged) == 0
    found, expected = tiny.tensors(tmp_path / "merged"), tiny.tensors(_tuned(family))
    assert found.keys() == expected.keys()
    assert all(difference(found[key], expected[key]) < 1e-5 for key in expected)


def test_the_table_the_file_and_the_picture(tmp_path, capsys):
    base = ["--tuned", _tuned(), "--base", tiny.model_folder(), "--out", tmp_path]
    assert _call(*base, "--energy", "0.9", "--targets", "query,output.dense") == 0
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert table[0].split()[:2] == ["module", "modules"]
    assert [line.split()[0] for line in table[1:]] == [
        "bert.encoder.layer.*.attention.output.dense",
        "bert.encoder.layer.*.attention.self.query",
        "bert.encoder.layer.*.output.dense",
        "all",
    ]
    rows = _lines(tmp_path / "spectrum.csv")
    assert len(rows) == 6
    for row in rows:
        assert row["rank"] == row["rank_for_90_percent"]
        assert float(row["energy_kept"]) >= 0.9
        assert int(row["rank_for_50_percent"]) <= int(row["rank_for_90_percent"]) <= 2
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert {config["r"], *config["rank_pattern"].values()} == {int(row["rank"]) for row in rows}
    assert (tmp_path / "spectrum.png").stat().st_size > 10_000


def test_what_lies_outside_is_said_and_can_be_taken_in(tmp_path, capsys):
    changed = ("adapter", "head", "LayerNorm/scale", "LayerNorm/bias", "query/bias", "word_embeddings/embedding")
    argv = ["--tuned", _tuned(changed=changed), "--base", tiny.model_folder(), "--rank", "2"]
    assert _call(*argv, "--out", tmp_path / "a") == 0
    shown = capsys.readouterr()
    assert all(
        f"{kind} " in shown.out.split("outside of the adapter")[1] for kind in ("embeddings", "biases", "layer norms")
    )
    assert "To take it in: --bias all  --modules-to-save LayerNorm,word_embeddings" in shown.err
    more = ["--bias", "all", "--modules-to-save", "LayerNorm,word_embeddings"]
    assert _call(*argv, *more, "--out", tmp_path / "b") == 0
    assert "outside of the adapter: 0.00 %" in capsys.readouterr().out
    expected = _logits(_tuned(changed=changed))
    assert difference(_logits(tmp_path / "b"), expected) < 1e-4 < difference(_logits(tmp_path / "a"), expected)


def test_models_without_a_head_give_an_adapter_without_one(tmp_path, capsys):
    tuned = _tuned(changed=("adapter",))
    assert _call("--tuned", tuned, "--base", tiny.model_folder(), "--out", tmp_path, "--rank", "2") == 0
    assert "has no classification head" in capsys.readouterr().err
    assert not any("classifier" in key for key in tiny.tensors(tmp_path / "adapter"))
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["task_type"] is None
    assert not any("classifier" in row["module"] for row in _lines(tmp_path / "spectrum.csv"))


def _refused(capsys, *argv):
    capsys.readouterr()
    assert _call(*argv) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, capsys):
    base, out = tiny.model_folder(), tmp_path / "out"
    assert "give the fine-tuned model" in _refused(capsys, "--tuned", base, "--base", base, "--out", out)
    found = _refused(capsys, "--tuned", _tuned(), "--base", tmp_path / "none", "--out", out)
    assert "none" in found
    found = _refused(capsys, "--tuned", _tuned(), "--base", tiny.model_folder("roberta"), "--out", out)
    assert "model_type: 'bert' in the tuned model, 'roberta' in the base" in found
    other = tiny.model_folder(hidden_size=16)
    found = _refused(capsys, "--tuned", _tuned(), "--base", other, "--out", out)
    assert "hidden_size: 32 in the tuned model, 16 in the base" in found
    found = _refused(capsys, "--tuned", _tuned(), "--base", base, "--out", out, "--targets", "querry")
    assert "nearest: " in found
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    assert "--overwrite" in _refused(capsys, "--tuned", _tuned(), "--base", base, "--out", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_config_that_differs_but_has_the_same_weights_is_warned_of(tmp_path, capsys):
    folder = tmp_path / "base"
    shutil.copytree(tiny.model_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu", "hidden_dropout_prob": 0.3}))
    assert _call("--tuned", _tuned(), "--base", folder, "--out", tmp_path / "out", "--rank", "2") == 0
    shown = capsys.readouterr().err
    assert "hidden_act: 'gelu' in the tuned model, 'relu' in the base" in shown
    assert "dropout" not in shown


@pytest.mark.parametrize(
    "option", [["--energy", "90"], ["--rank", "0"], ["--rank", "4", "--energy", "0.5"], ["--bias", "some"]]
)
def test_bad_arguments(option, capsys):
    with pytest.raises(SystemExit) as caught:
        _call("--tuned", "a", "--base", "b", "--out", "c", *option)
    assert caught.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_an_adapter_out_of_two_language_models(tmp_path, capsys):
    """What random LoRA changed comes back: merged, the extracted adapter is the tuned model."""
    model, base, adapter, _ = lm_folders.adapted()
    tuned = tmp_path / "tuned"
    shutil.copytree(tiny_lm.model_folder(), tuned)
    jlora.save_base(tuned, model, jlora.merge(base, adapter))
    out = tmp_path / "out"
    assert _call("--tuned", tuned, "--base", tiny_lm.model_folder(), "--out", out, "--rank", "2") == 0
    shown = capsys.readouterr()
    assert "outside of the adapter: 0.00 % of the squared change\n" in shown.out
    assert "jlora lm --config FILE lora.from=" in shown.err
    config = json.loads((out / "adapter/adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert not (out / "adapter/labels.json").exists()
    assert tiny.call(export.main, ["--adapter", out / "adapter", "--out", tmp_path / "merged"]) == 0
    found, expected = tiny.tensors(tmp_path / "merged"), tiny.tensors(tuned)
    assert found.keys() == expected.keys()
    assert all(difference(found[key], expected[key]) < 1e-4 for key in expected)


def test_a_larger_vocabulary_is_refused(tmp_path, capsys):
    larger = tmp_path / "larger"
    shutil.copytree(tiny_lm.model_folder(), larger)
    config = json.loads((larger / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 2}))
    assert _call("--tuned", larger, "--base", tiny_lm.model_folder(), "--out", tmp_path / "out") == 2
    assert "vocab_size: " in (shown := capsys.readouterr().err)
    assert "An adapter cannot make the vocabulary larger" in shown
