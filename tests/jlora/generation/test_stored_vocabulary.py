"""Adapters of PEFT's that were trained after tokens were added or taken away: the tables come out of their file."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from jlora.generation.stored_vocabulary import with_stored_vocabulary
from jlora.lora.tied_embedding import needs_own_head
from jlora.models.registry import family
from jlora.peft.folder import read_lora_config
from jlora.pretrained.load import build, load_weights
from jlora.pretrained.source import PretrainedSource
from tests.support.models import decoder_cases as cases
from tests.support.models.encoder_cases import difference
from tests.support.models.tied_cases import oracle

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")

ATTENTION = {"llama": ["q_proj"], "gpt2": ["c_attn"]}
CASES = {
    "both tables whole": {"modules_to_save": ["EMBEDDING", "lm_head"]},
    "the tables as they are": {},
    "both tables adapted": {"target_modules": ["EMBEDDING", "lm_head"]},
    "rows": {"trainable_token_indices": [1, 61]},
}


def _peft_model(name, tied, rows, fields):
    """PEFT's model on a base with `rows` tokens, all that is trained random; and the base's folder."""
    peft, torch = pytest.importorskip("peft", reason="the oracle is PEFT"), pytest.importorskip("torch")
    base = copy.deepcopy(oracle(name)[0])
    if not tied:
        base.config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().flip(0).clone())
    torch.manual_seed(1)
    base.resize_token_embeddings(rows, mean_resizing=False)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=3, task_type="CAUSAL_LM", **fields)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def _fields(name, case):
    embedding = family(name).embedding.rpartition(".")[2]
    fields = {
        key: [embedding if entry == "EMBEDDING" else entry for entry in value] for key, value in CASES[case].items()
    }
    return fields | {"target_modules": ATTENTION[name] + fields.get("target_modules", [])}


def _base_folder(name, tied, folder):
    """The base as it was before tokens were added."""
    import torch

    base = copy.deepcopy(oracle(name)[0])
    if not tied:
        base.config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().flip(0).clone())
    base.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "tied", "case", "rows"),
    [("llama", tied, case, 64) for tied in (False, True) for case in CASES if not (tied and case == "rows")]
    + [("gpt2", True, "both tables whole", 64), ("llama", False, "both tables whole", 56)],
)
def test_the_logits_are_pefts(name, tied, case, rows, tmp_path):
    theirs = _peft_model(name, tied, rows, _fields(name, case))
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    folder = _base_folder(name, tied, tmp_path / "base")
    config = PretrainedSource(folder).config
    if needs_own_head(read_lora_config(tmp_path / "adapter"), family(name).embedding):
        config.tie_word_embeddings = False
    small = build(config)
    model, base = with_stored_vocabulary(tmp_path / "adapter", small, load_weights(small, PretrainedSource(folder)))
    assert model.config.vocab_size == rows

    batch = cases.random_tokens(model.config)
    adapter, _ = jlora.load_adapter(tmp_path / "adapter", base, model.apply, batch)
    merged = jlora.merge(base, adapter)
    real = np.asarray(batch["attention_mask"], bool)
    found, expected = cases.quick(model.apply)(merged, batch), cases.torch_logits(theirs, batch)
    assert difference(np.asarray(found)[real], expected[real]) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_all_new_tokens_are_as_good_as_tables(tied, tmp_path):
    """PEFT's file without tables: whatever the new rows of its base were, they are not used."""
    rows = [60, 61, 62, 63]
    indices = rows if tied else {"embed_tokens": rows, "lm_head": rows}
    theirs = _peft_model("llama", tied, 64, {"target_modules": ["q_proj"], "trainable_token_indices": indices})
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    model, base = with_stored_vocabulary(tmp_path / "adapter", *jlora.load_base(_base_folder("llama", tied, tmp_path)))
    batch = cases.random_tokens(model.config)
    adapter, _ = jlora.load_adapter(tmp_path / "adapter", base, model.apply, batch)
    real = np.asarray(batch["attention_mask"], bool)
    found = cases.quick(model.apply)(jlora.merge(base, adapter), batch)
    assert difference(np.asarray(found)[real], cases.torch_logits(theirs, batch)[real]) < 1e-5


def test_a_file_with_one_table_of_two_is_refused(tmp_path):
    _peft_model("llama", False, 64, _fields("llama", "the tables as they are")).save_pretrained(
        tmp_path / "adapter", save_embedding_layers=True
    )
    file = tmp_path / "adapter/adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "lm_head" not in key}, file)
    folder = _base_folder("llama", False, tmp_path / "base")
    model, base = jlora.load_base(folder)
    with pytest.raises(jlora.JloraError, match=r"expected lm_head\.weight for 64 tokens.*found it for 60"):
        with_stored_vocabulary(tmp_path / "adapter", model, base)


def test_a_file_without_tables_changes_nothing(tmp_path):
    _peft_model("llama", True, 60, {"target_modules": ["q_proj"]}).save_pretrained(tmp_path)
    model, base = jlora.load_base(str(oracle("llama")[1]))
    assert with_stored_vocabulary(tmp_path, model, base) == (model, base)
