"""Tables with more tokens: transformers' resize, the same bits wherever the base lies."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import jlora
from jlora.pretrained.grown_tables import grown, load_grown, table_paths
from jlora.pretrained.source import PretrainedSource
from jlora.tree.leaf_paths import leaves_by_path
from tests.support.models import decoder_cases as cases
from tests.support.models.tied_cases import FAMILIES, oracle


@pytest.mark.parametrize("name", [*FAMILIES, "gptj"])
def test_it_is_transformers_resize(name, tmp_path):
    """There the new rows are drawn around the mean, 3e-5 of a standard deviation away from it."""
    theirs = copy.deepcopy(oracle(name)[0]) if name in FAMILIES else cases.torch_decoder(cases.tiny_decoder(name))
    theirs.save_pretrained(tmp_path)
    theirs.resize_token_embeddings(64)
    expected = {key: value.numpy() for key, value in theirs.state_dict().items()}
    model, base = jlora.load_base(str(tmp_path))
    model, base = grown(model, base, 64)
    assert model.config.vocab_size == 64
    leaves = leaves_by_path(base)
    for path, key in table_paths(model, base).items():
        found = np.asarray(leaves[path])
        found = found.T if path.endswith("kernel") else found
        assert np.array_equal(found[:60], expected[key][:60])
        assert np.allclose(found[60:], expected[key][60:], atol=1e-4)


def test_a_model_with_the_tokens_of_its_files_is_read_as_it_is():
    folder = str(oracle("llama")[1])
    model, base = jlora.load_base(folder)
    assert grown(model, base, 60) == (model, base)
    again = leaves_by_path(load_grown(model, PretrainedSource(folder)))
    assert all(np.array_equal(leaf, again[path]) for path, leaf in leaves_by_path(base).items())
