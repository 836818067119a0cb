"""Runs of train.lm that add tokens: what they leave opens with transformers and PEFT, and goes on bit for bit."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from jlora.generation.open_model import load_language_model
from jlora.generation.stored_vocabulary import with_stored_vocabulary
from jlora.pretrained.source import PretrainedSource
from jlora.tree.leaf_paths import leaves_by_path
from tests.support.models.encoder_cases import difference
from tests.support.training import tiny, tiny_lm
from tests.support.training.lm_data import byte_tokenizer
from train import export, generate
from train.lm import __main__ as lm
from train.lm.config import LMConfig
from train.lm.model import abstract_model, prepare_model
from train.lm.vocabulary.added_tokens import add_tokens
from train.planning.memory import count_bytes

TOKENS = ["<|im_start|>", "<|im_end|>"]
ADDED = f"data.add_tokens={json.dumps(TOKENS)}"
SIZE = 258
"""The tokens of the tiny model, and of its tokenizer."""
TELLING = ["train.learning_rate=1e-2", "train.max_steps=4"]
BOTH = "lora.modules_to_save=[embed_tokens,lm_head]"
CASES = {
    "tied": (True, []),
    "untied": (False, []),
    "tied, both tables whole": (True, [BOTH]),
    "tied, both tables whole as one": (True, [BOTH, "lora.ensure_weight_tying=true"]),
    "untied, both tables whole": (False, [BOTH]),
    "tied, with rows of one's own": (True, ["lora.trainable_token_indices=[5,7]"]),
    "untied, with rows of one's own": (False, ["lora.trainable_token_indices=[5,7]"]),
    "untied, pissa": (False, ["lora.init_lora_weights=pissa"]),
    "tied, dora, nf4": (True, ["lora.use_dora=true", "quantize=nf4"]),
    "untied, loftq": (False, ["lora.init_lora_weights=loftq", "quantize=int8"]),
    "gpt2": ("gpt2", []),
}
"""{name: (whether Llama's head is tied, or another family, settings)}."""


def _model(tied):
    if isinstance(tied, str):
        return tiny_lm.model_folder(tied)
    return tiny_lm.model_folder("llama", **({"tie_word_embeddings": True} if tied else {}))


@functools.cache
def _texts():
    """Rows with the tokens in them."""
    path = tiny.HOME / "with-tokens.jsonl"
    rows = [{"text": f"{TOKENS[0]}{a} {b}{TOKENS[1]}"} for a in tiny_lm.WORDS for b in tiny_lm.WORDS[:3]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@functools.cache
def _run(tied, *more):
    output = Path(tempfile.mkdtemp(dir=tiny.HOME)) / "run"
    return tiny_lm.train(output, ADDED, *TELLING, *more, model=_model(tied), data=_texts())


def _config(tied=True, **sections):
    data = {"train": "t", "max_length": 32, "add_tokens": TOKENS}
    sections = {"train": {"dtype": "float32"}, **sections}
    return LMConfig.model_validate({"model": str(_model(tied)), "output_dir": "o", "data": data, **sections})


@pytest.mark.parametrize("case", CASES)
def test_transformers_and_peft_open_what_it_leaves(case):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft", reason="the oracle is PEFT")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tied, more = CASES[case]
    run = _run(tied, *more)
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    assert tokenizer.convert_tokens_to_ids(TOKENS) == [SIZE, SIZE + 1]
    base = AutoModelForCausalLM.from_pretrained(_model(tied))
    base.resize_token_embeddings(len(tokenizer))
    ids = torch.arange(SIZE - 10, SIZE + 2)[None]
    with torch.no_grad():
        before = base(ids).logits.numpy()
        merged = AutoModelForCausalLM.from_pretrained(run / "merged")(ids).logits.numpy()
        adapted = peft.PeftModel.from_pretrained(base, run / "adapter").eval()(ids).logits.numpy()
    assert merged.shape == (1, 12, SIZE + 2)
    assert difference(before[..., SIZE:], merged[..., SIZE:]) > 1e-3
    if "loftq" not in case:  # whose adapter belongs to the quantized weights
        assert difference(adapted, merged) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_export_and_generate_take_the_adapter(tied, tmp_path, capsys):
    run = _run(tied)
    assert tiny.call(export.main, ["--adapter", run / "adapter", "--out", tmp_path / "out"]) == 0
    found, expected = tiny.tensors(tmp_path / "out"), tiny.tensors(run / "merged")
    assert found.keys() == expected.keys()
    assert all(np.allclose(found[key], expected[key], atol=1e-6) for key in found)
    answers = []
    for model in (run, run / "adapter"):
        capsys.readouterr()
        assert tiny.call(generate.main, ["--model", model, "--prompt", f"{TOKENS[0]}the", "--greedy"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_a_full_run_has_the_tokens_in_merged():
    run = _run(True, "method=full")
    assert tiny.tensors(run / "merged")["model.embed_tokens.weight"].shape[0] == SIZE + 2
    assert load_language_model(str(run)).tokenizer.convert_tokens_to_ids(TOKENS) == [SIZE, SIZE + 1]


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path):
    steady = [ADDED, "train.schedule=constant", "train.eval_every=2", "train.learning_rate=1e-2"]
    options = {"model": _model(False), "data": _texts()}
    whole = tiny_lm.train(tmp_path / "whole", *steady, "train.max_steps=4", **options)
    run = tiny_lm.train(tmp_path / "run", *steady, "train.max_steps=2", **options)
    tiny_lm.train(run, *steady, "train.max_steps=4", "--resume", **options)
    for name in ("adapter/adapter_model.safetensors", "merged/model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_goes_on_from_the_adapter_of_another(tmp_path):
    stored = _run(False) / "adapter"
    run = tiny_lm.train(tmp_path / "run", ADDED, f"lora.from={stored}", model=_model(False), data=_texts())
    before, after = tiny.tensors(stored), tiny.tensors(run / "adapter")
    assert before.keys() == after.keys()
    assert all(before[key].shape == after[key].shape for key in before)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"method": "full"},
        {"quantize": "nf4"},
        {"lora": {"modules_to_save": ["embed_tokens", "lm_head"]}},
        {"lora": {"init_lora_weights": "olora"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_plan_holds_what_the_run_holds(sections, tied):
    config, added = _config(tied, **sections), (SIZE, SIZE + 1)
    source = PretrainedSource(config.model)
    planned, found = abstract_model(config, source, added), prepare_model(config, source, added=added)
    assert planned.model.config.vocab_size == found.model.config.vocab_size == SIZE + 2
    assert count_bytes(planned.base) == count_bytes(found.base)
    assert count_bytes(planned.adapter) == count_bytes(found.adapter)


def test_a_table_with_room_does_not_grow():
    """As those are that were padded to a multiple of 64."""
    config = _config()
    found = prepare_model(config, PretrainedSource(config.model), added=(SIZE - 2,))
    assert found.model.config.vocab_size == SIZE
    assert found.adapter["params/model/embed_tokens/embedding"].indices == (SIZE - 2,)


def test_tokens_that_are_there_are_named_and_left(caplog):
    tokenizer = byte_tokenizer()
    with caplog.at_level("INFO"):
        assert add_tokens(tokenizer, ["<end>", "<a>", "<a>", "b"], SIZE) == (SIZE,)
        assert add_tokens(tokenizer, ["<a>"], SIZE) == ()
    assert "already tokens: '<end>' (257), 'b' (" in caplog.text
    assert "added: '<a>' (258)" in caplog.text
    assert tokenizer.tokenize("x<a> y") == ["x", "<a>", "Ġ", "y"]
    assert tokenizer.decode(tokenizer("x<a> y")["input_ids"], skip_special_tokens=True) == "x<a> y"


def test_rows_that_nothing_has_are_trained_too():
    """Where the tokenizer has tokens already that the model has not."""
    assert add_tokens(byte_tokenizer(), ["<a>"], SIZE - 1) == (SIZE - 1, SIZE)


def test_dry_run_and_preview_know_the_tokens(tmp_path, capsys):
    given = tiny_lm.arguments(tmp_path / "run", ADDED, model=_model(True), data=_texts())
    assert tiny.call(lm.main, [*given, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "model.embed_tokens.token_adapter.trainable_tokens_delta" in shown.out
    assert "only the model's config.json and tokenizer were read" in shown.err
    assert tiny.call(lm.main, [*given, "--preview"]) == 0
    shown = capsys.readouterr()
    assert "«<|im_start|>»the sea<|im_end|><end>" in shown.out
    assert "data.add_tokens: added: '<|im_start|>' (258), '<|im_end|>' (259)" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lora.modules_to_save=[embed_tokens]"], "expected both the embedding and the head in lora.modules_to_save"),
        (
            ["lora.target_modules=[q_proj,embed_tokens]"],
            "expected both the embedding and the head in lora.modules_to_save",
        ),
        (["export.gguf_lora=true"], "llama.cpp's file holds A and B alone, found data.add_tokens"),
        (["lora.from={plain}"], "expected an adapter that trains rows of model.embed_tokens"),
        (["data.add_tokens=[]", "lora.from={added}"], "expected rows of the model's 258 tokens; found rows [258, 259]"),
        (["data.add_tokens=['']"], "data.add_tokens"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, tmp_path, capsys):
    places = {"plain": tiny_lm.finished_run() / "adapter", "added": _run(False) / "adapter"}
    given = [argument.format(**places) for argument in arguments]
    given = tiny_lm.arguments(tmp_path / "run", ADDED, *given, model=_model(False), data=_texts())
    assert tiny.call(lm.main, given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_adapter_with_some_of_the_new_rows_is_refused(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    source = _run(False) / "adapter"
    config = json.loads((source / "adapter_config.json").read_text())
    config["trainable_token_indices"] = {"embed_tokens": [SIZE, SIZE + 1], "lm_head": [SIZE + 1]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(load_file(source / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    model, base = jlora.load_base(str(_model(False)))
    with pytest.raises(jlora.JloraError, match=r"expected rows of lm_head for the 2 tokens from 258 on.*found 1"):
        with_stored_vocabulary(folder, model, base)


def test_new_rows_are_the_mean():
    _, base = jlora.load_base(str(_model(False)))
    config = _config(False)
    found = prepare_model(config, PretrainedSource(config.model), added=(SIZE, SIZE + 1))
    before, after = leaves_by_path(base), leaves_by_path(found.base)
    table, head = (before[path] for path in ("params/model/embed_tokens/embedding", "params/lm_head/kernel"))
    assert np.allclose(after["params/model/embed_tokens/embedding"][SIZE:], np.mean(table, 0), atol=1e-7)
    assert np.allclose(after["params/lm_head/kernel"][:, SIZE:], np.mean(head, 1, keepdims=True), atol=1e-7)
    assert np.array_equal(after["params/lm_head/kernel"][:, :SIZE], head)


def test_the_card_says_what_the_base_needs():
    card = (_run(True) / "adapter/README.md").read_text()
    assert f"base.resize_token_embeddings({SIZE + 2})" in card
    assert "resize" not in (_run(True) / "merged/README.md").read_text()
