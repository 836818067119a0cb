"""What a language model's run is told where it does not fit: the figures of a step, and what lowers them."""

import jax
import pytest

from jlora.pretrained.source import PretrainedSource
from jlora.sharding.mesh import make_mesh
from tests.support.training import tiny_lm
from train.lm import memory_advice
from train.lm.config import LMConfig
from train.lm.memory_advice import offers, training_help
from train.lm.model import abstract_model
from train.lm.objective import causal_loss
from train.loop.assemble import training_of


def _config(**changes):
    sections = {"data": {"train": "t", "max_length": 32}, "train": {}, **changes}
    sections["train"] = {"dtype": "bfloat16", **sections["train"]}
    return LMConfig.model_validate({"model": str(tiny_lm.model_folder()), "output_dir": "o", **sections})


def _help(config, mesh=None):
    adapted = abstract_model(config, PretrainedSource(config.model))
    with jax.numpy_dtype_promotion("standard"):  # optax.adamw raises a float to an integer's power
        return training_help(
            config, adapted, training_of(config, causal_loss(adapted.model, model_dropout=True), 1), mesh
        )


def test_figures_come_before_what_lowers_them():
    said = _help(_config())
    assert said.startswith("A training step takes:\n")
    assert said.index("activations") < said.index("quantize=nf4")


def test_figures_that_cannot_be_had_leave_the_advice(monkeypatch):
    def fails(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: in the compiler")

    monkeypatch.setattr(memory_advice, "step_memory", fails)
    assert _help(_config()) == offers(_config(), None)


def test_on_a_mesh_it_says_how_to_have_them():
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    assert "--dry-run --mesh data=1,fsdp=1,tensor=1" in _help(_config(), mesh)


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"quantize": "int8"}, True),
        ({"quantize": "nf4"}, False),
        ({"method": "full"}, False),
        ({"lora": {"init_lora_weights": "pissa"}}, False),
    ],
)
def test_nf4_is_offered_where_the_config_takes_it(changes, may):
    assert ("quantize=nf4" in offers(_config(**changes), None)) == may
