"""All sides of a step start from the same loss and train the same parameters, on tiny models."""

from __future__ import annotations

import dataclasses

import jax
import pytest

pytest.importorskip("torch", reason="the benchmark compares with PyTorch")
pytest.importorskip("peft", reason="the benchmark compares with PEFT")

from benchmarks import roofline, steps
from benchmarks.common import work
from benchmarks.common.work import Work
from benchmarks.sides import jax_side, make_inputs, torch_side

SHAPES = {
    "bert-base": {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 64,
                  "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
    "smollm2-3-layers": work.SHAPES["smollm2-3-layers"] | {"hidden_size": 72, "intermediate_size": 96,
                                                           "num_hidden_layers": 2, "vocab_size": 30000},
}  # fmt: skip
ENCODER, DECODER = Work("bert-base", 4, 16), Work("smollm2-3-layers", 2, 16)


@pytest.fixture(autouse=True)
def tiny(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(make_inputs, "SHAPES", SHAPES)
    tokenizer = pytest.importorskip("transformers").BertTokenizer()
    monkeypatch.setattr(make_inputs.PretrainedSource, "tokenizer", tokenizer)
    monkeypatch.setattr(work, "FOLDER", tmp_path_factory.getbasetemp() / "benchmark-inputs")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as the trainer runs
        yield


def _first_losses(side, given):
    make_inputs.make(given)
    if side == "qwix":
        pytest.importorskip("qwix")
    module = jax_side if side in steps.IN_JAX else torch_side
    step, facts = module.start(given, steps.IN_PYTORCH.get(side, side))
    return step(), facts["trainable"]


@pytest.mark.parametrize(
    ("given", "side"),
    [(ENCODER, side) for side in ("peft", "qwix", "dense", "by hand")]
    + [(DECODER, side) for side in ("peft", "qwix", "dense")],
    ids=lambda value: value if isinstance(value, str) else value.model,
)
def test_sides_start_from_the_same_loss(given, side):
    ours, theirs = (_first_losses(name, given) for name in ("lora", side))
    assert theirs[0] == pytest.approx(ours[0], rel=1e-5)
    assert theirs[1] == ours[1]


@pytest.mark.parametrize("given", [ENCODER, DECODER], ids=lambda given: given.model)
def test_full_fine_tuning_starts_from_the_same_loss(given):
    ours, theirs = (_first_losses(name, given) for name in ("full", "torch full"))
    assert theirs == pytest.approx(ours, rel=1e-5)


def test_a_works_flags_are_read_back():
    for given in (ENCODER, DECODER, dataclasses.replace(DECODER, quantize="nf4", targets=("q_proj",), dropout=True)):
        command = steps.command(given, "lora:bfloat16")
        assert jax_side.side_and_work(command[2:], jax_side.SIDES) == (
            "lora", dataclasses.replace(given, dtype="bfloat16"),
        )  # fmt: skip


@pytest.mark.parametrize("given", [ENCODER, DECODER], ids=lambda given: given.model)
def test_the_flops_that_a_step_must_do_are_near_those_of_its_program(given):
    from train.planning.flops import matrix_flops

    make_inputs.make(given)
    step, *arguments = jax_side.parts(given, "lora")
    traced = matrix_flops(step.trace(*arguments, jax_side.batch_of(given), jax.random.key(0)).jaxpr)
    assert 0.6 < roofline.step(given)["flops"] / traced < 1.1
