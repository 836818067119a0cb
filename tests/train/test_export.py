import json
import shutil

import numpy as np
import pytest

import jlora
from jlora.models.registry import example_batch
from tests.support.training import lm_folders, tiny, tiny_lm
from train import export


def _call(*argv):
    return tiny.call(export.main, argv)


def _assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert np.array_equal(value, expected[key]), key


def test_it_merges_as_the_run_did(tmp_path):
    run, out = tiny.finished_run(), tmp_path / "deep/out"
    assert _call("--adapter", run / "adapter", "--out", out) == 0
    _assert_same(tiny.tensors(out), tiny.tensors(run / "merged"))
    names = {path.name for path in (run / "merged").iterdir()} - {"README.md"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "config.json").read_text() == (run / "merged/config.json").read_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_one_rounding(dtype, tmp_path):
    run = tiny.finished_run()
    assert _call("--adapter", run / "adapter", "--base", tiny.model_folder(), "--out", tmp_path, "--dtype", dtype) == 0
    exact = tiny.tensors(run / "merged")
    for key, value in tiny.tensors(tmp_path).items():
        assert str(value.dtype) == dtype
        assert np.array_equal(value, exact[key].astype(value.dtype)), key


def test_an_adapter_made_by_peft_gives_pefts_logits(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle is PEFT")
    peft = pytest.importorskip("peft", reason="the oracle is PEFT")
    from transformers import AutoModelForSequenceClassification

    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", init_lora_weights=False
    )
    model = AutoModelForSequenceClassification.from_pretrained(tiny.model_folder("roberta"), num_labels=3)
    model = peft.get_peft_model(model, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    assert _call("--adapter", tmp_path / "adapter", "--out", tmp_path / "out") == 0
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(4, 28).reshape(2, 12)
    with torch.no_grad():
        ours, theirs = merged(input_ids=ids).logits, model(input_ids=ids).logits
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_for_vllm_an_adapter_of_one_rank_whose_scale_is_in_b(tmp_path, capsys):
    base = tiny.model_folder(head=True)
    patterns = ["lora.rank_pattern={layer.0.attention.self.query: 3}", "lora.alpha_pattern={value: 5}"]
    run = tiny.train(tmp_path / "run", "lora.modules_to_save=[]", "train.learning_rate=1e-2", *patterns, model=base)
    out = tmp_path / "vllm"
    assert _call("--adapter", run / "adapter", "--out", out, "--vllm") == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (8, 8, {}, {})
    assert config["base_model_name_or_path"] == str(base)
    assert "--max-lora-rank" in capsys.readouterr().err
    merged = [tmp_path / "one", tmp_path / "other"]
    for adapter, folder in zip((run / "adapter", out), merged, strict=True):
        assert _call("--adapter", adapter, "--out", folder) == 0
    found, expected = map(tiny.tensors, merged)
    assert all(np.allclose(found[key], expected[key], atol=1e-6) for key in expected)


def test_what_vllm_cannot_serve_is_refused(tmp_path, capsys):
    assert _call("--adapter", tiny.finished_run() / "adapter", "--out", tmp_path / "out", "--vllm") == 2
    shown = capsys.readouterr().err
    assert "error: --vllm: params/classifier/" in shown
    assert "trained whole; merge the adapter into the base" in shown
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_kept_unless_told(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    argv = ["--adapter", tiny.finished_run() / "adapter", "--out", tmp_path]
    assert _call(*argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert _call(*argv, "--overwrite") == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("adapter", ["nowhere", "run"])
def test_what_is_no_adapter_is_refused(adapter, tmp_path, capsys):
    folder = tiny.finished_run() if adapter == "run" else tmp_path / adapter
    assert _call("--adapter", folder, "--out", tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "adapter_config.json" in shown
    assert ("found no such folder" if adapter == "nowhere" else f"give {folder / 'adapter'}") in shown
    assert not (tmp_path / "out").exists()


def test_the_adapter_of_another_base_is_refused(tmp_path, capsys):
    argv = [
        "--adapter",
        tiny.finished_run() / "adapter",
        "--base",
        tiny.model_folder("roberta"),
        "--out",
        tmp_path / "o",
    ]
    assert _call(*argv) == 2
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_language_model_is_merged_as_one(tmp_path, capsys):
    run = lm_folders.run_folder()
    assert _call("--adapter", run / "adapter", "--out", tmp_path) == 0
    _assert_same(tiny.tensors(tmp_path), tiny.tensors(run / "merged"))
    assert "AutoModelForCausalLM.from_pretrained" in capsys.readouterr().err
    assert (tmp_path / "chat_template.jinja").is_file()
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch", reason="the oracle is PyTorch")
    peft = pytest.importorskip("peft", reason="the oracle is PEFT")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_lm.model_folder())
    theirs = peft.PeftModel.from_pretrained(base, run / "adapter").merge_and_unload().state_dict()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(np.allclose(merged[key], value, atol=1e-6) for key, value in theirs.items())


def test_into_quantized_weights(tmp_path, capsys):
    """The numbers that the base's codes stand for, plus the update: what LoftQ trained on."""
    adapter = lm_folders.run_folder() / "adapter"
    assert _call("--adapter", adapter, "--out", tmp_path, "--quantize", "nf4") == 0
    model, base, entries, _ = lm_folders.adapted()
    quantized = jlora.quantize(base, "nf4", model.apply, example_batch(model.config))
    jlora.save_base(tmp_path / "expected", model, jlora.dequantize(jlora.merge(quantized, entries)))
    expected = tiny.tensors(tmp_path / "expected")
    for key, value in tiny.tensors(tmp_path).items():
        assert np.allclose(value, expected[key], atol=1e-6), key
    argv = ["--adapter", tiny.finished_run() / "adapter", "--out", tmp_path / "out", "--quantize", "nf4"]
    assert _call(*argv) == 2
    assert "--quantize: expected none for a classifier" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_for_llama_cpp_one_file(dtype, tmp_path, capsys):
    file = tmp_path / "deep/lora.gguf"
    argv = ["--adapter", lm_folders.run_folder() / "adapter", "--gguf-lora", file, "--dtype", dtype]
    assert _call(*argv) == 0
    assert "llama-cli -m BASE.gguf --lora" in capsys.readouterr().err
    model, _, entries, _ = lm_folders.adapted()
    jlora.save_gguf_lora(tmp_path / "expected.gguf", entries, model.config, dtype=dtype)
    assert file.read_bytes() == (tmp_path / "expected.gguf").read_bytes()
    assert _call(*argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert _call(*argv, "--overwrite") == 0


def test_somewhere_to_write_is_needed(capsys):
    assert _call("--adapter", "anything") == 2
    assert "expected --out FOLDER or --gguf-lora FILE" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["adapter", "base"])
def test_what_it_reads_is_not_replaced(lost, tmp_path, capsys):
    folders = {name: tmp_path / name for name in ("adapter", "base")}
    shutil.copytree(tiny.finished_run() / "adapter", folders["adapter"])
    shutil.copytree(tiny.model_folder(), folders["base"])
    before = tiny.contents(tmp_path)
    argv = ["--adapter", folders["adapter"], "--base", folders["base"], "--out", folders[lost], "--overwrite"]
    assert _call(*argv) == 2
    assert f"--{lost}: {folders[lost]}: would be lost" in capsys.readouterr().err
    assert tiny.contents(tmp_path) == before
