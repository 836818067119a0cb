"""Trained rows of tables of tokens: an embedding's, and those of an output head with a table of its own."""

from __future__ import annotations

import copy

import jax
import numpy as np
import pytest

import jlora
from jlora.tree.leaf_paths import leaves_by_path
from tests.support.adapters.lora_cases import normal
from tests.support.models import decoder_cases as cases
from tests.support.models.encoder_cases import difference
from tests.support.models.tied_cases import oracle

HEAD, EMBEDDING = "params/lm_head/kernel", "params/model/embed_tokens/embedding"
FIELDS = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
ROWS = {"embed_tokens": [7, 9], "lm_head": [9, 3, 5]}


def _untied(name, folder):
    """(PyTorch's model with a head of its own, our model, our base)."""
    import torch

    model = copy.deepcopy(oracle(name)[0])
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    return model, *cases.load_saved(model, folder)


@pytest.mark.parametrize("rows", [ROWS, {"lm_head": [3]}], ids=["both tables", "the head"])
def test_rows_of_a_head_are_pefts_there_and_back(rows, tmp_path):
    peft, torch = pytest.importorskip("peft", reason="the oracle is PEFT"), pytest.importorskip("torch")
    theirs, model, base = _untied("llama", tmp_path / "base")
    opened = copy.deepcopy(theirs)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(**FIELDS, trainable_token_indices=rows)).eval()
    torch.manual_seed(1)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "peft")
    batch = cases.random_tokens(model.config)
    expected, real = cases.torch_logits(theirs, batch), np.asarray(batch["attention_mask"], bool)

    adapter, config = jlora.load_adapter(tmp_path / "peft", base, model.apply, batch)
    assert (adapter[HEAD].indices, adapter[HEAD].axis) == (tuple(rows["lm_head"]), 1)
    merged = cases.quick(model.apply)(jlora.merge(base, adapter), batch)
    assert difference(np.asarray(merged)[real], expected[real]) < 1e-5
    adapted = cases.quick(jlora.adapt(model.apply))(base, adapter, batch)
    assert difference(np.asarray(adapted)[real], expected[real]) < 1e-5
    jlora.save_adapter(tmp_path / "ours", adapter, config)
    again = peft.PeftModel.from_pretrained(opened, tmp_path / "ours").eval()
    assert difference(cases.torch_logits(again, batch)[real], expected[real]) < 1e-5


def _fresh():
    model = jlora.pretrained.load.build(cases.tiny_decoder("llama", num_hidden_layers=1))
    base, batch = cases.random_base(model), cases.random_tokens(model.config)
    config = jlora.LoraConfig(**FIELDS, trainable_token_indices=ROWS)
    return model, base, batch, config


def test_a_fresh_adapter_changes_nothing_and_learns_only_its_rows():
    model, base, batch, config = _fresh()
    adapter = jlora.init(jax.random.key(0), config, base, model.apply, batch)
    leaves = leaves_by_path(base)
    assert np.array_equal(adapter[HEAD].value, leaves[HEAD][:, np.array([9, 3, 5])].T)
    apply = jlora.adapt(model.apply)
    before, found = model.apply(base, batch), apply(base, adapter, batch)
    assert difference(np.asarray(found), np.asarray(before)) < 1e-6

    def loss(adapter):
        return (apply(base, adapter, batch) ** 2).sum()

    def merged_loss(adapter):
        return (model.apply(jlora.merge(base, adapter), batch) ** 2).sum()

    ours, expected = (jax.jit(jax.grad(fn))(adapter) for fn in (loss, merged_loss))
    for path in (HEAD, EMBEDDING):
        assert difference(np.asarray(ours[path].value), np.asarray(expected[path].value)) < 1e-4


def test_algebra_knows_a_heads_rows():
    model, base, batch, config = _fresh()
    adapter = jlora.init(jax.random.key(0), config, base, model.apply, batch)
    rows = [jlora.Rows(normal(seed, 3, 32), (9, 3, 5), axis=1) for seed in (1, 2)]
    several = [adapter | {HEAD: entry} for entry in rows]
    stacked = jlora.stack(several)
    for found, expected in zip(jlora.unstack(stacked), several, strict=True):
        assert np.array_equal(found[HEAD].value, expected[HEAD].value)
    logits = jax.vmap(lambda one: jlora.adapt(model.apply)(base, one, batch))(stacked)
    alone = jlora.adapt(model.apply)(base, several[1], batch)
    assert difference(np.asarray(logits[1]), np.asarray(alone)) < 1e-5
    tuned = jlora.merge(base, several[0] | {p: e for p, e in adapter.items() if isinstance(e, jlora.LowRank)})
    changed = leaves_by_path(tuned)[HEAD] - leaves_by_path(base)[HEAD]
    assert set(np.flatnonzero(np.abs(changed).sum(0))) == {9, 3, 5}
    assert jlora.count_parameters(base, {HEAD: rows[0]})[1] == 3 * 32


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"lm_head": [60]}, r"lm_head/kernel: expected one or more different ids from 0 to 59 .*, found \(60,\)"),
        ({"lm_hed": [1]}, r"expected the end of the name of one embedding or head, found 'lm_hed'"),
        ({"q_proj": [1]}, r"found 'q_proj', which matches 0"),
    ],
)
def test_what_is_no_row_of_a_table_is_refused(rows, message):
    model, base, batch, _ = _fresh()
    config = jlora.LoraConfig(**FIELDS, trainable_token_indices=rows)
    with pytest.raises(jlora.JloraError, match=message):
        jlora.init(jax.random.key(0), config, base, model.apply, batch)


def test_a_head_with_a_bias_is_refused():
    """PEFT's module of a head's rows leaves the bias out."""
    model = jlora.pretrained.load.build(cases.tiny_decoder("gptj"))
    base, batch = cases.random_base(model), cases.random_tokens(model.config)
    config = jlora.LoraConfig(**FIELDS, trainable_token_indices={"lm_head": [3]})
    with pytest.raises(jlora.JloraError, match=r"expected a head without a bias"):
        jlora.init(jax.random.key(0), config, base, model.apply, batch)
