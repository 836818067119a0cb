"""The benchmark on a tiny model and 64 rows: both sides start from the same numbers, and every figure is there."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support.models import encoder_cases as cases

pytest.importorskip("torch", reason="the benchmark compares with PyTorch")
pytest.importorskip("peft", reason="the benchmark compares with PEFT")

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import jlora
from benchmarks import compile as compile_benchmark
from benchmarks.classify import __main__ as classify
from benchmarks.classify import measure
from benchmarks.classify.setup import Setup, prepare, read_config
from benchmarks.common import timing
from benchmarks.sides import by_hand

RUNS = {"jlora lora", "jlora full", "peft lora", "torch full"}


def write_model(folder: Path) -> None:
    """A random BERT without a head for it, and a tokenizer of 50 words."""
    model = cases.torch_classifier(cases.tiny_config("bert"), head="")
    model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(50))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, model_max_length=24)
    fast.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    folder = tmp_path_factory.mktemp("bench")
    write_model(folder / "model")
    rng = np.random.default_rng(0)
    rows = [" ".join(f"w{word}" for word in rng.integers(0, 50, rng.integers(2, 20))) for _ in range(64)]
    lines = ["sentence\tlabel", *(f"{row}\t{index % 2}" for index, row in enumerate(rows))]
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    config = read_config(str(folder / "train.tsv"), str(folder / "model"))
    # One bucket: a compilation less.
    sections = {"data": {"max_length": 24}, "train": {"bucket_count": 1}}
    changed = {name: getattr(config, name).model_copy(update=update) for name, update in sections.items()}
    config = config.model_copy(update=changed)
    return prepare(config, folder / "weights")


@pytest.fixture(autouse=True)
def compilation_cache_as_it_was():
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


@pytest.fixture(scope="module")
def step(setup) -> dict:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as the trainer runs
        return measure.steps(setup, 4, 8, 4, dropout=False)


@pytest.fixture(scope="module")
def epoch(setup) -> dict:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return measure.epoch(setup, 2, dropout=True)


def test_every_row_of_the_file_is_in_the_epoch(setup):
    assert len(setup.split.tokens) == 64
    assert (setup.config.lora.r, setup.config.lora.lora_alpha) == (8, 16)


def test_both_sides_start_from_the_same_loss(step):
    first = {run: losses[0] for run, losses in step["losses"].items()}
    assert first.keys() == RUNS
    assert max(first.values()) - min(first.values()) < 1e-4


def test_both_sides_take_the_same_full_steps(step):
    ours, theirs = (np.array(step["losses"][run]) for run in ("jlora full", "torch full"))
    assert np.abs(ours - theirs).max() < 1e-4
    assert abs(ours[-1] - ours[0]) > 1e-3


def test_both_sides_train_the_same_parameters(step):
    assert step["trainable"]["jlora lora"] == step["trainable"]["peft lora"]
    assert step["trainable"]["jlora full"] == step["trainable"]["torch full"]


def test_figures_of_the_step(step):
    assert {len(seconds) for seconds in step["seconds"].values()} == {4}
    assert step["spread"].keys() == RUNS
    assert step["compile_seconds"].keys() == {"jlora lora", "jlora full"}
    for found in step["spread"].values():
        assert 0 < found["min"] <= found["q1"] <= found["median"] <= found["q3"]


def test_figures_of_the_epoch(epoch, setup):
    lengths = setup.split.tokens.lengths
    assert epoch["real_tokens"] == lengths.sum()
    assert epoch["tokens"]["jlora"] == 64 * setup.buckets[0]
    assert lengths.sum() <= epoch["tokens"]["peft"] <= 64 * lengths.max()
    assert math.isclose(sum(epoch["seconds"]["jlora"]), epoch["total"]["jlora"])
    assert math.isclose(
        epoch["with_compilation"]["jlora"] - epoch["total"]["jlora"], epoch["compile_seconds"][str(setup.buckets[0])]
    )
    assert epoch["with_compilation"]["peft"] == epoch["total"]["peft"]


def test_the_command_prints_a_table_and_writes_json(setup, step, epoch, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(classify, "prepare", lambda config, folder: setup)
    monkeypatch.setattr(measure, "steps", lambda setup, rows, length, rounds, dropout: step)
    monkeypatch.setattr(measure, "epoch", lambda setup, chunks, dropout: epoch)
    assert classify.main(["--epoch", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found.keys() == {"environment", "recipe", "shape", "step", "epoch"}
    assert found["step"].keys() == found["epoch"].keys() == {"dropout on", "dropout off"}
    assert found["environment"]["command"]
    assert {"torch", "peft", "jax"} <= found["environment"]["versions"].keys()
    lines = capsys.readouterr().out.split("\n")
    assert sum("jlora lora / jlora full" in line for line in lines) == 2
    assert sum("one epoch of 64 rows" in line for line in lines) == 2
    assert max(map(len, lines)) <= 90


def test_the_command_names_a_missing_file(tmp_path, capsys):
    assert classify.main(["--train", str(tmp_path / "absent.tsv")]) == 2
    assert "absent.tsv" in capsys.readouterr().err


def test_turns_rotate():
    order: list[str] = []

    def call(name: str) -> str:
        order.append(name)
        return name

    found = timing.take_turns({name: partial(call, name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert {name: [result for _, result in calls] for name, calls in found.items()} == {n: [n] * 3 for n in "abc"}


def test_ratios_are_taken_within_rounds():
    assert timing.ratio([1.0, 10.0, 3.0], [2.0, 20.0, 6.0]) == {"min": 0.5, "q1": 0.5, "median": 0.5, "q3": 0.5}


def test_the_hand_written_encoder_computes_what_the_adapted_one_does():
    config, apply, base, adapter, batch = compile_benchmark.prepare(2, 64)
    assert len(adapter) == 6
    with jax.numpy_rank_promotion("allow"):
        found = by_hand.logits(config, base, adapter, batch)
    expected = jlora.adapt(apply)(base, adapter, batch)
    assert cases.difference(found, expected) < 1e-5
    assert cases.difference(found, apply(base, batch)) > 1e-4


def test_figures_of_the_compilation(monkeypatch, tmp_path, capsys):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        results = {side: compile_benchmark.measure(side, 1, 64) for side in compile_benchmark.SIDES}
    # Not in processes of their own, which is slow and the same.
    monkeypatch.setattr(compile_benchmark, "_in_a_fresh_process", lambda side, layers, hidden: results[side])
    assert compile_benchmark.main(["--layers", "1", "--hidden", "64", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert {len(values) for phases in found["seconds"].values() for values in phases.values()} == {5}
    assert found["seconds"].keys() == set(compile_benchmark.SIDES)
    assert found["ratio"]["total"]["median"] > 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("adapted / by hand" in line for line in lines) == 3
    assert max(map(len, lines)) <= 90


def test_sides_that_compute_something_else_are_refused(monkeypatch):
    figures = dict.fromkeys(compile_benchmark.PHASES, 1.0)
    losses = {"adapted": [0.5, 0.4], "by hand": [0.5, 0.3]}
    monkeypatch.setattr(
        compile_benchmark, "_in_a_fresh_process", lambda side, layers, hidden: figures | {"losses": losses[side]}
    )
    with pytest.raises(jlora.JloraError, match=r"expected the same losses.*0\.3"):
        compile_benchmark.run(1, 64, 1)
