"""What files say of a tied head goes before what the config says, as in transformers; nothing is dropped unread."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from jlora.models.registry import family
from jlora.pretrained.load import build, load_weights
from jlora.pretrained.source import PretrainedSource
from tests.support.models import decoder_cases as cases
from tests.support.models.encoder_cases import difference
from tests.support.models.tied_cases import FAMILIES, oracle

WEIGHTS = "model.safetensors"


@pytest.fixture
def stored(tmp_path):
    """A function (family, change) -> folder: the files of a tied model, its tensors changed by change(head, embedding).

    The head's key is the checkpoint's; of None nothing is stored.
    """

    def make(name, change, **config):
        folder = tmp_path / name
        shutil.copytree(oracle(name)[1], folder)
        kind, tensors = family(name), load_file(folder / WEIGHTS)
        embedding_key, head_key = f"{kind.embedding}.weight", kind.stored_names.get("lm_head.weight", "lm_head.weight")
        head, embedding = change(tensors.pop(embedding_key))
        found = {head_key: head, embedding_key: embedding}
        tensors |= {key: np.ascontiguousarray(value) for key, value in found.items() if value is not None}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        written = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(written))
        return folder

    return make


def _another(embedding):
    return embedding[::-1] * 1.5, embedding


def _loaded(folder):
    """(logits of the real tokens here, those of transformers, our model and base)."""
    name = json.loads((folder / "config.json").read_text())["model_type"]
    model, base = jlora.load_base(str(folder))
    batch = cases.random_tokens(model.config)
    real = np.asarray(batch["attention_mask"], bool)
    theirs = type(oracle(name)[0]).from_pretrained(folder).eval()
    found = np.asarray(cases.quick(model.apply)(base, batch))
    return found[real], cases.torch_logits(theirs, batch)[real], model, base


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_that_differs_from_the_embedding_is_the_head(name, stored, tmp_path, caplog):
    """The config ties them, and both are stored: logits are transformers', and what is written has both tables."""
    caplog.set_level(logging.INFO, "jlora")
    found, expected, model, base = _loaded(stored(name, _another))
    assert difference(found, expected) < 1e-5
    assert "have different values" in caplog.text
    assert not model.config.tie_word_embeddings
    jlora.save_base(tmp_path / "out", model, base)
    written, read = (load_file(folder / WEIGHTS) for folder in (tmp_path / "out", tmp_path / name))
    assert written.keys() == read.keys()
    assert all(np.array_equal(written[key], read[key]) for key in read)
    assert not PretrainedSource(tmp_path / "out").config.tie_word_embeddings


@pytest.mark.parametrize(
    "change",
    [lambda table: (table, table), lambda table: (table, None)],
    ids=["both, with the same numbers", "the head alone"],
)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_one_table_stays_one(name, change, stored):
    folder = stored(name, change)
    found, expected, model, base = _loaded(folder)
    assert difference(found, expected) < 1e-5
    assert model.config.tie_word_embeddings
    assert "lm_head" not in base["params"]


def test_a_model_that_was_built_tied_does_not_take_files_that_are_not(stored):
    folder = stored("llama", _another)
    model = build(PretrainedSource(folder).config)
    with pytest.raises(jlora.JloraError, match=r"lm_head\.weight: .*to which the model's head is tied.*=False"):
        load_weights(model, PretrainedSource(folder))


def test_a_head_that_is_lost_is_an_error_where_nothing_ties_it(stored):
    folder = stored("llama", lambda table: (None, table), tie_word_embeddings=False)
    with pytest.raises(jlora.JloraError, match=r"expected lm_head\.weight; found no such keys"):
        jlora.load_base(str(folder))


def test_keys_without_the_prefix_of_a_bare_model_are_compared_too(stored):
    folder = stored("gpt2", _another)
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert not jlora.load_base(str(folder))[0].config.tie_word_embeddings


def test_a_file_without_the_embedding_cannot_be_tied(stored):
    folder = stored("llama", lambda embedding: (embedding, None), tie_word_embeddings=False)
    with pytest.raises(jlora.JloraError, match=r"expected model\.embed_tokens\.weight; found no such keys"):
        jlora.load_base(str(folder), tie_word_embeddings=True)
