"""Generation: transformers' tokens, one by one and in a batch, and few compilations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.generation import generator
from jlora.generation.generate import generate, stream
from jlora.generation.sampling import filter_logits
from tests.support.adapters.lora_cases import random_adapter
from tests.support.models import decoder_cases as cases

_LENGTHS = (9, 4, 7)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def setting(request, tmp_path_factory):
    """(PyTorch's model, ours, base, a batch padded on the left)."""
    oracle = cases.torch_decoder(cases.tiny_decoder(request.param))
    model, base = cases.load_saved(oracle, tmp_path_factory.mktemp(request.param))
    width = max(_LENGTHS)
    mask = jnp.asarray([[0] * (width - n) + [1] * n for n in _LENGTHS])
    ids = cases.random_tokens(model.config, rows=3, length=width)["input_ids"]
    return oracle, model, base, jnp.where(mask == 1, ids + 1, 0), mask


def _theirs(oracle, ids, mask, **options):
    torch = pytest.importorskip("torch", reason="the oracle is transformers' PyTorch model")
    given = {"input_ids": ids, "attention_mask": mask}
    tensors = {name: torch.tensor(np.asarray(value), dtype=torch.long) for name, value in given.items()}
    with torch.no_grad():
        return oracle.generate(**tensors, do_sample=False, pad_token_id=0, **options)[:, ids.shape[1] :].numpy()


def test_greedy_tokens_are_transformers(setting):
    oracle, model, base, ids, mask = setting
    expected = _theirs(oracle, ids, mask, max_new_tokens=12, eos_token_id=None)
    found = generate(model, base, None, ids, mask, max_new_tokens=12, pad_id=0)
    assert found.dtype == jnp.int32
    assert (found == expected).all()
    # A token that comes early in one row alone ends that row, and padding follows it.
    stop = int(expected[1, 2])
    expected = _theirs(oracle, ids, mask, max_new_tokens=12, eos_token_id=[stop, 59])
    found = generate(model, base, None, ids, mask, max_new_tokens=12, pad_id=0, stop_ids=(stop, 59))
    assert (found[:, : expected.shape[1]] == expected).all()
    assert (found[:, expected.shape[1] :] == 0).all()
    assert (found[1, 3:] == 0).all()


def test_a_stream_is_generate_token_by_token(setting):
    _, model, base, ids, mask = setting
    adapter = random_adapter(
        model.apply, base, {"input_ids": ids, "attention_mask": mask}, targets=r".*(v_proj|c_attn)"
    )
    for entries in (None, adapter):
        expected = generate(model, base, entries, ids, mask, max_new_tokens=12, pad_id=0)
        for row, length in enumerate(_LENGTHS):
            found = stream(model, base, entries, np.asarray(ids[row, -length:]), max_new_tokens=12)
            assert list(found) == expected[row].tolist()
    assert expected.tolist() != generate(model, base, None, ids, mask, max_new_tokens=12, pad_id=0).tolist()
    merged = generate(model, jlora.merge(base, adapter), None, ids, mask, max_new_tokens=12, pad_id=0)
    assert (merged == expected).all()
    stop = expected[0].tolist()[5]
    found = list(stream(model, base, adapter, np.asarray(ids[0]), max_new_tokens=12, stop_ids=[stop]))
    assert found == expected[0].tolist()[: expected[0].tolist().index(stop)]


@pytest.fixture(scope="module")
def tiny():
    """(model, base) of a Llama whose context is 150 tokens."""
    model = jlora.pretrained.load.build(cases.tiny_decoder("llama", max_position_embeddings=150))
    return model, jax.jit(model.init)(jax.random.key(0), cases.random_tokens(model.config))


@pytest.mark.parametrize("length", [3, 6])
def test_positions_that_go_by_the_rows_length_go_by_its_end_from_the_first_token_on(length, tmp_path):
    """Of 10 positions that were trained; prompt and completion are 9 tokens, or 12, whatever the slots are."""
    switches = {"original_max_position_embeddings": 10, "rope_parameters": cases.LONGROPE}
    oracle = cases.torch_decoder(cases.tiny_decoder("phi3", **switches))
    model, base = cases.load_saved(oracle, tmp_path)
    ids, new = [7, 3, 9, 4, 8, 5][:length], 6
    whole = generate(model, base, None, np.array([ids]), np.ones((1, length)), max_new_tokens=new, pad_id=0)
    assert list(stream(model, base, None, ids, max_new_tokens=new)) == whole[0].tolist()
    # Without a cache, prompt and completion in one.
    tokens = np.array([[*ids, *whole[0].tolist()]], np.int32)
    batch = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    logits = model.apply(base, batch)[0, length - 1 : -1]
    assert logits.argmax(-1).tolist() == whole[0].tolist()


def test_prompts_of_all_lengths_share_a_few_compilations(tiny):
    model, base = tiny
    before = generator._extended._cache_size()
    for length in (1, 40, 64, 65, 128, 129, 140):
        tokens = stream(model, base, None, [7] * length, max_new_tokens=10)
        assert len(list(tokens)) == 10
    prompts, caches = (64, 128, 150), (128, 256)
    assert generator._extended._cache_size() - before == len(prompts) + len(caches)
    before = generator._generate._cache_size()
    for first in (3, 4):
        ids = jnp.full((2, 6), first)
        generate(model, base, None, ids, jnp.ones_like(ids), max_new_tokens=4, pad_id=0, key=jax.random.key(first))
    assert generator._generate._cache_size() - before == 1


def test_a_seed_gives_one_completion(tiny):
    model, base = tiny
    options = {"max_new_tokens": 20, "temperature": 0.7, "top_p": 0.95, "top_k": 50}
    found = [list(stream(model, base, None, [7, 8], key=jax.random.key(seed), **options)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_draws_follow_the_softmax(tiny):
    """Many rows of one prompt: the frequencies of the first token are the probabilities that are left."""
    model, base = tiny
    ids = jnp.full((4000, 3), 9)
    options = {"temperature": 0.5, "top_k": 12, "top_p": 0.8}
    drawn = generate(
        model, base, None, ids, jnp.ones_like(ids), max_new_tokens=1, pad_id=0, key=jax.random.key(5), **options
    )
    logits = model.apply(base, {"input_ids": ids[:1], "attention_mask": jnp.ones((1, 3), jnp.int32)})[:, -1]
    expected = np.asarray(jax.nn.softmax(filter_logits(logits / 0.5, top_k=12, top_p=0.8)))[0]
    found = np.bincount(np.asarray(drawn)[:, 0], minlength=expected.size) / drawn.size
    assert 1 < (expected > 0).sum() <= 12
    assert (found[expected == 0] == 0).all()
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / drawn.size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected more than 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 148}, "at most 150 tokens together with max_new_tokens = 148"),
    ],
)
def test_numbers_out_of_their_range_are_refused(options, message, tiny):
    model, base = tiny
    ids = [5, 6, 7]
    options = {"max_new_tokens": 4, **options}
    with pytest.raises(jlora.JloraError, match=message):
        stream(model, base, None, ids, **options)
    with pytest.raises(jlora.JloraError, match=message):
        generate(model, base, None, np.asarray([ids]), np.ones((1, 3)), pad_id=0, **options)


def test_a_prompt_has_a_token(tiny):
    with pytest.raises(jlora.JloraError, match="one token at least"):
        stream(*tiny, None, [], max_new_tokens=4)
