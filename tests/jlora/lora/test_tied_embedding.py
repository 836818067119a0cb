"""Tied tables as PEFT has them: an adapter's logits are PEFT's, whichever of embedding and head it names, both ways."""

from __future__ import annotations

import copy
import functools
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jlora
from jlora.lora.tied_embedding import is_tied_in_peft, means, needs_own_head
from jlora.models.registry import default_targets, family
from jlora.peft.folder import read_lora_config
from jlora.pretrained.load import build, load_weights
from jlora.pretrained.source import PretrainedSource
from jlora.tree.output_heads import HEAD
from tests.support.models import decoder_cases as cases
from tests.support.models.encoder_cases import difference
from tests.support.models.tied_cases import FAMILIES, oracle

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")

E, H = "EMBEDDING", HEAD
CASES = {
    "the embedding whole": {"modules_to_save": [E]},
    "the embedding whole, tied": {"modules_to_save": [E], "ensure_weight_tying": True},
    "the head whole": {"modules_to_save": [H]},
    "the head whole, tied": {"modules_to_save": [H], "ensure_weight_tying": True},
    "both whole": {"modules_to_save": [E, H]},
    "both whole, tied": {"modules_to_save": [E, H], "ensure_weight_tying": True},
    "the embedding adapted": {"target_modules": [E]},
    "the embedding adapted, tied": {"target_modules": [E], "ensure_weight_tying": True},
    "the head adapted": {"target_modules": [H]},
    "the head adapted, tied": {"target_modules": [H], "ensure_weight_tying": True},
    "both adapted": {"target_modules": [E, H]},
    "both adapted, tied": {"target_modules": [E, H], "ensure_weight_tying": True},
    "both adapted by an expression, tied": {"target_modules": rf".*{E}|{H}", "ensure_weight_tying": True},
    "the head adapted, the embedding whole": {"target_modules": [H], "modules_to_save": [E]},
    "rows": {"trainable_token_indices": [7, 9]},
    "rows of both": {"trainable_token_indices": {E: [7, 9], H: [7, 9]}},
}
IN_ALL_FAMILIES = ("both whole", "both adapted, tied")
PAIRS = [(name, case) for name in FAMILIES[:2] for case in CASES]
PAIRS += [(name, case) for name in FAMILIES[2:] for case in IN_ALL_FAMILIES]


@functools.cache
def _ours(name, own_head):
    """(model, base, its logits as a compiled function), the head tied or a table of its own."""
    model, base = jlora.load_base(str(oracle(name)[1]), **({"tie_word_embeddings": False} if own_head else {}))
    return model, base, cases.quick(model.apply)


def _fields(name, case):
    """A configuration of PEFT's in which the family's embedding and attention have their names."""
    embedding = family(name).embedding.rpartition(".")[2]
    fields = {key: _named(value, embedding) for key, value in CASES[case].items()}
    attention, given = list(default_targets(name)), fields.get("target_modules", [])
    targets = f".*({'|'.join(attention)})|{given}" if isinstance(given, str) else attention + given
    return fields | {"target_modules": targets, "r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM"}


def _named(value, embedding):
    if isinstance(value, dict):
        return {_named(name, embedding): ids for name, ids in value.items()}
    if isinstance(value, list):
        return [embedding if entry == E else entry for entry in value]
    return value.replace(E, embedding) if isinstance(value, str) else value


def _peft_model(name, fields):
    """PEFT's model, every trained tensor random; what is tied stays so."""
    peft, torch = pytest.importorskip("peft", reason="the oracle is PEFT"), pytest.importorskip("torch")

    model = peft.get_peft_model(copy.deepcopy(oracle(name)[0]), peft.LoraConfig(**fields)).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def _opened(name, folder):
    """PEFT's model of an adapter's folder, which lacks no tensor."""
    import peft

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(copy.deepcopy(oracle(name)[0]), folder).eval()
    assert not [warning for warning in caught if "missing" in str(warning.message)]
    return model


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_the_logits_are_pefts_there_and_back(name, case, tmp_path):
    theirs = _peft_model(name, _fields(name, case))
    theirs.save_pretrained(tmp_path / "peft")
    lora = read_lora_config(tmp_path / "peft")
    model, base, logits = _ours(name, needs_own_head(lora, family(name).embedding))
    batch = cases.random_tokens(model.config)
    real = np.asarray(batch["attention_mask"], bool)
    expected = cases.torch_logits(theirs, batch)[real]
    assert difference(cases.torch_logits(oracle(name)[0], batch)[real], expected) > 1e-2

    adapter, config = jlora.load_adapter(tmp_path / "peft", base, model.apply, batch)
    assert difference(np.asarray(logits(jlora.merge(base, adapter), batch))[real], expected) < 1e-5
    jlora.save_adapter(tmp_path / "ours", adapter, config)
    assert difference(cases.torch_logits(_opened(name, tmp_path / "ours"), batch)[real], expected) < 1e-5
    again, _ = jlora.load_adapter(tmp_path / "ours", base, model.apply, batch)
    assert jax.tree.structure(again) == jax.tree.structure(adapter)


@pytest.mark.parametrize("case", ["the embedding whole", "the embedding adapted", "the embedding whole, tied"])
@pytest.mark.parametrize("name", FAMILIES[:2])
def test_an_embedding_of_which_the_lookups_alone_change_needs_no_second_table(name, case, tmp_path):
    theirs = _peft_model(name, _fields(name, case))
    theirs.save_pretrained(tmp_path)
    model, base, _ = _ours(name, False)
    batch = cases.random_tokens(model.config)
    adapter, _ = jlora.load_adapter(tmp_path, base, model.apply, batch)
    found = cases.quick(jlora.adapt(model.apply))(base, adapter, batch)
    real = np.asarray(batch["attention_mask"], bool)
    assert difference(np.asarray(found)[real], cases.torch_logits(theirs, batch)[real]) < 1e-5
    if not read_lora_config(tmp_path).ensure_weight_tying:
        with pytest.raises(jlora.JloraError, match=r"for the lookup alone.*tie_word_embeddings=False"):
            jlora.merge(base, adapter)


@pytest.mark.parametrize("fields", [{"target_modules": ["q_proj", H]}, {"modules_to_save": [H]}])
def test_a_tied_head_of_its_own_says_how_it_gets_a_table(fields):
    model, base, _ = _ours("llama", False)
    config = jlora.LoraConfig(**{"target_modules": ["q_proj"], **fields})
    with pytest.raises(jlora.JloraError, match=r"lm_head: .*tied to params/.*tie_word_embeddings=False.*ensure_weight"):
        jlora.init(jax.random.key(0), config, base, model.apply, cases.random_tokens(model.config))


def test_an_adapter_on_a_head_of_its_own_is_merged_untied(tmp_path):
    """The merged checkpoint has both tables, says so, and transformers computes the same."""
    model, base, logits = _ours("gpt2", True)
    batch = cases.random_tokens(model.config)
    config = jlora.LoraConfig(r=2, target_modules=["wte", H], init_lora_weights=False)
    merged = jlora.merge(base, jlora.init(jax.random.key(0), config, base, model.apply, batch))
    jlora.save_base(tmp_path, model, merged)
    assert {"lm_head.weight", "transformer.wte.weight"} <= load_file(tmp_path / "model.safetensors").keys()
    opened = type(oracle("gpt2")[0]).from_pretrained(tmp_path).eval()
    assert not opened.config.tie_word_embeddings
    real = np.asarray(batch["attention_mask"], bool)
    assert difference(cases.torch_logits(opened, batch)[real], np.asarray(logits(merged, batch))[real]) < 1e-5


def test_ensured_by_a_name_that_peft_does_not_tie():
    """What is tied here is tied by PEFT too: beside an embedding called wte the file names the head."""
    config = jlora.LoraConfig(target_modules=["wte"], ensure_weight_tying=True)
    assert not is_tied_in_peft(config, ["base_model.model.transformer.wte.lora_embedding_A"])
    assert is_tied_in_peft(config, ["base_model.model.lm_head.lora_A.weight"])
    assert is_tied_in_peft(jlora.LoraConfig(target_modules=".*(q_proj|embed_tokens)", ensure_weight_tying=True), [])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target_modules": "all-linear"}, False),
        ({"target_modules": ["q_proj"]}, False),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1]}, False),
        ({"target_modules": ["embed_tokens"]}, True),
        ({"target_modules": ["embed_tokens"], "exclude_modules": ["model.embed_tokens"]}, False),
        ({"target_modules": "all-linear", "modules_to_save": [H]}, True),
        ({"target_modules": [H], "ensure_weight_tying": True}, False),
    ],
)
def test_which_configurations_need_a_head_of_its_own(fields, expected):
    config = jlora.LoraConfig(**fields)
    assert needs_own_head(config, "model.embed_tokens") == expected
    assert not means(config, "model.norm")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_that_the_files_tie_starts_as_the_embedding(name):
    folder = str(oracle(name)[1])
    model = build(PretrainedSource(folder).config_with(tie_word_embeddings=False))
    params = load_weights(model, PretrainedSource(folder))["params"]
    table = functools.reduce(lambda tree, part: tree[part], family(name).embedding.split("."), params)["embedding"]
    np.testing.assert_array_equal(params[HEAD]["kernel"], table.T)
