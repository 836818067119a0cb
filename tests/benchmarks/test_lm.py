"""The benchmarks of language models on a tiny one: PEFT's training ends where ours does, and every figure is there."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the benchmark compares with PyTorch")
pytest.importorskip("peft", reason="the benchmark compares with PEFT")

import jax

from benchmarks.lm import __main__ as lm
from benchmarks.lm import perplexity
from benchmarks.lm import setup as lm_setup
from tests.support.training import tiny_lm
from train.cli.parse import parse_command_line
from train.cli.resolve import resolve
from train.lm.config import COMMAND


def _config(tmp_path, *more):
    telling = ["train.learning_rate=1e-2", "train.max_steps=6", "train.dropout=false", "lora.lora_alpha=16"]
    arguments = tiny_lm.arguments(tmp_path / "run", *telling, *more)
    return resolve(parse_command_line(arguments, COMMAND), use_offline=False)


@pytest.mark.parametrize(
    "more", [["quantize=nf4"], ["data.completion_only_loss=true", "train.gradient_accumulation_steps=2"]]
)
def test_training_ends_where_pefts_ends(more, tmp_path):
    """From PEFT's own A and B over the same batches; what transformers reads of merged/ is the same model."""
    data = [f"data.train={tiny_lm.chats_file()}"] if len(more) > 1 else []
    with jax.numpy_dtype_promotion("standard"):  # optax.adamw raises a float to an integer's power
        found = perplexity.run(_config(tmp_path, *more, *data), tmp_path)
    assert found["jlora / peft"] == pytest.approx(1, abs=1e-4)
    assert found["merged / jlora"] == pytest.approx(1, abs=1e-5)
    assert found["jlora"] < 0.98 * found["before"]
    if "quantize=nf4" in more:
        assert found["jlora, nf4"] == pytest.approx(found["peft, nf4"], rel=1e-4)
        assert found["jlora, nf4"] != pytest.approx(found["jlora"], rel=1e-4)


def test_a_step_is_measured_on_both_sides(tmp_path):
    with jax.numpy_dtype_promotion("standard"):
        config = _config(tmp_path)
        setup = lm_setup.prepare(config, tmp_path)
        found = lm.run(setup, rounds=1) | {"compile_seconds": lm.compile_seconds(config)}
    assert set(found["tokens_per_second"]) >= {"jlora", "peft"}
    assert set(found["compile_seconds"]) == {"2 layers", "4 layers"}
    assert 0 < found["share_of_matrix_rate"] < 1
    # A LoRA step is 4 FLOPs a weight and token, and a little for A, B and attention.
    weights = sum(leaf.size for leaf in jax.tree.leaves(setup.adapted.base)) * 4 * 4 * 32
    assert 0.5 * weights < found["matrix_flops_a_step"] < 2 * weights
