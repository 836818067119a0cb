import logging

import jax
import numpy as np
import pytest
from transformers import LlamaConfig

import jlora
from jlora.errors import JloraError
from jlora.pretrained.load import example_batch
from jlora.pretrained.source import PretrainedSource
from jlora.tree.leaf_paths import leaves_by_path
from tests.support.training import tiny
from train.classify import model as prepare
from train.classify.config import Config
from train.classify.data.labels import Labels
from train.classify.data.splits import load_data
from train.classify.model import abstract_model, build_model, prepare_model, prepare_splits
from train.task.check_tokens import require_tokens_fit

_LABELS = Labels("single_label_classification", ("no", "yes"))


def _config(model="bert", *, head=False, data=None, **sections):
    data = {"train": str(tiny.data_file(24)), "max_length": 8, **(data or {})}
    model = str(tiny.model_folder(model, head=head))
    return Config(model=model, output_dir="o", data=data, train={"dtype": "float32"}, **sections)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _prepared(config):
    return prepare_model(config, PretrainedSource(config.model), _LABELS)


def _planned(config):
    return abstract_model(config, PretrainedSource(config.model))


def _splits(config):
    return prepare_splits(config, load_data(config.data, 0), PretrainedSource(config.model).tokenizer)


def test_splits_are_tokenized_and_labelled(caplog):
    labels, splits = _splits(_config())
    assert len(labels) == 2
    assert {name: len(split.tokens) for name, split in splits.items()} == {"train": 22, "validation": 2}
    assert all(split.pad_id == 1 for split in splits.values())
    assert max(split.tokens.lengths.max() for split in splits.values()) == 8
    cut = splits["train"].tokens.cut
    assert cut > 0
    assert f"train: {cut} of 22 rows cut at data.max_length=8 tokens" in caplog.text


def test_any_id_fills_rows_where_the_tokenizer_has_no_padding_token():
    config = _config()
    tokenizer = PretrainedSource(config.model).tokenizer
    tokenizer.pad_token = None
    _, splits = prepare_splits(config, load_data(config.data, 0), tokenizer)
    assert [split.pad_id for split in splits.values()] == [0, 0]


def test_a_wrong_label_is_known_before_anything_is_tokenized(tmp_path, monkeypatch):
    (tmp_path / "dev.csv").write_text("text,label\na,9\n")
    monkeypatch.setattr(prepare, "tokenize", lambda *_: pytest.fail("tokenized"))
    with pytest.raises(JloraError, match=r"dev\.csv, data row 1"):
        _splits(_config(data={"validation": str(tmp_path / "dev.csv")}))


def test_what_the_labels_are_taken_for_is_logged_for_every_split(caplog):
    with caplog.at_level(logging.INFO, "train"):
        _splits(_config())
    assert "train: 22 rows, single_label_classification, because the labels are whole numbers" in caplog.text
    assert "validation: 2 rows, single_label_classification, 2 classes: LABEL_0 1, LABEL_1 1" in caplog.text


@pytest.mark.parametrize("bad", ["a,", "a,NA", "a,9"])
def test_rows_with_labels_that_do_not_fit_may_be_left_out(bad, tmp_path, caplog):
    (tmp_path / "dev.csv").write_text(f"text,label\na,1\nb,0\n{bad}\n")
    files = {"train": str(tmp_path / "dev.csv"), "validation": str(tmp_path / "dev.csv"), "skip_bad_rows": True}
    files |= {"label_names": ["no", "yes"]} if bad == "a,9" else {}
    with caplog.at_level(logging.INFO, "train"):
        splits = _splits(_config(data=files))[1]
    assert [len(split.tokens) for split in splits.values()] == [2, 2]
    assert [split.labels.tolist() for split in splits.values()] == [[1, 0], [1, 0]]
    assert "train: 1 of 3 rows left out (data.skip_bad_rows):" in caplog.text


def test_near_equal_classes_are_warned_of(tmp_path, caplog):
    (tmp_path / "dev.csv").write_text("text,label\na,pos\nb,Pos\nc,neg\n")
    file = str(tmp_path / "dev.csv")
    _splits(_config(data={"train": file, "validation": file}))
    assert "classes: 'Pos', 'pos' differ only in case" in caplog.text


@pytest.mark.parametrize(("family", "targets"), [("bert", "query"), ("roberta", "query"), ("distilbert", "q_lin")])
def test_targets_that_are_not_given_are_the_familys(family, targets):
    adapted = _prepared(_config(family))
    low_rank = [path for path, entry in adapted.adapter.items() if isinstance(entry, jlora.LowRank)]
    assert len(low_rank) == 2
    assert any(path.endswith(f"/{targets}/kernel") for path in low_rank)


@pytest.mark.parametrize("method", ["lora", "full", "head"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_dry_run_has_the_shapes_of_the_real_thing(family, method):
    config = _config(family, method=method)
    real, abstract = _prepared(config), _planned(config)
    for one, other in ((real.base, abstract.base), (real.adapter, abstract.adapter)):
        shapes = [{path: leaf.shape for path, leaf in leaves_by_path(tree).items()} for tree in (one, other)]
        assert shapes[0] == shapes[1]
    assert jlora.count_parameters(real.base, real.adapter) == jlora.count_parameters(abstract.base, abstract.adapter)


def test_a_dry_run_counts_the_classes_that_the_config_names():
    named = _planned(_config(method="head", data={"label_names": {"a": "x", "b": "y", "c": "x", "d": "z"}}))
    assert named.adapter["params/classifier/bias"].value.shape == (3,)
    scores = _planned(_config(method="head", task="regression"))
    assert scores.adapter["params/classifier/bias"].value.shape == (1,)
    columns = _planned(_config(method="head", data={"label": ["toxic", "insult", "threat"]}))
    assert columns.adapter["params/classifier/bias"].value.shape == (3,)


def test_full_trains_every_leaf_and_head_the_head_and_both_own_their_arrays():
    full, head = (_prepared(_config("distilbert", method=method)) for method in ("full", "head"))
    assert full.adapter.keys() == leaves_by_path(full.base).keys()
    assert {path.split("/")[1] for path in head.adapter} == {"pre_classifier", "classifier"}
    for adapted in (full, head):
        for path, leaf in leaves_by_path(adapted.base).items():
            if path in adapted.adapter:
                value = adapted.adapter[path].value
                assert np.array_equal(value, leaf)
                value.delete()  # a donated step does so
                assert np.isfinite(leaf).all()


def test_one_seed_one_start_and_the_head_does_not_depend_on_the_method():
    first, again, other = (_prepared(_config(seed=seed)) for seed in (1, 1, 2))
    for tree in ("base", "adapter"):
        one, same = (jax.tree.leaves(getattr(adapted, tree)) for adapted in (first, again))
        assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    kernel = "params/bert/encoder/layer/attention/self/query/kernel"
    assert not np.array_equal(first.adapter[kernel].a, other.adapter[kernel].a)
    heads = [_prepared(_config(seed=1, method=method)).base["params"]["classifier"]["kernel"]
             for method in ("lora", "full")]  # fmt: skip
    assert np.array_equal(*heads)


def test_label_names_go_into_the_models_config():
    config = _prepared(_config()).model.config
    assert config.id2label == {0: "no", 1: "yes"}
    assert config.label2id == {"no": 0, "yes": 1}
    assert config.problem_type == "single_label_classification"


def test_a_warm_start_keeps_the_adapters_settings_but_the_configs_dropout(tmp_path, caplog):
    first = _prepared(_config(lora={"r": 4, "lora_alpha": 12, "init_lora_weights": False}))
    jlora.save_adapter(tmp_path / "a", first.adapter, first.lora)
    with caplog.at_level(logging.INFO, "train"):
        second = _prepared(
            _config(
                seed=9,
                lora={"r": 2, "lora_dropout": 0.3, "from": str(tmp_path / "a"), "target_modules": ["query", "dense"]},
            )
        )
    assert "lora.from: the stored adapter's r=4 is used; the config's 2 is ignored" in caplog.text
    assert "the stored adapter's target_modules=['query', 'value'] is used" in caplog.text
    assert "exclude_modules" not in caplog.text
    assert (second.lora.r, second.lora.lora_alpha, second.lora.lora_dropout) == (4, 12, 0.3)
    for path, entry in second.adapter.items():
        if isinstance(entry, jlora.LowRank):
            assert entry.dropout == 0.3
            assert np.array_equal(entry.a, first.adapter[path].a)
        else:
            assert np.array_equal(entry.value, first.adapter[path].value)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_a_start_out_of_the_weights_leaves_the_function_as_it_is(start):
    """Residual base and adapter are the base; without the start the adapter is nothing on the original base."""
    starts = (True, start, start)
    plain, split, again = (_prepared(_config(seed=3, lora={"init_lora_weights": i})) for i in starts)
    for one, other in zip(
        jax.tree.leaves((split.base, split.adapter)), jax.tree.leaves((again.base, again.adapter)), strict=True
    ):
        assert np.array_equal(one, other)  # so that a resumed run goes on from its checkpoint
    assert plain.initial is None
    merged, base = (leaves_by_path(tree) for tree in (jlora.merge(split.base, split.adapter), plain.base))
    for path, leaf in base.items():
        assert np.allclose(merged[path], leaf, atol=1e-5), path
    query = "params/bert/encoder/layer/attention/self/query/kernel"
    assert not np.allclose(leaves_by_path(split.base)[query], base[query], atol=1e-2)
    assert np.array_equal(split.initial[query].a, split.adapter[query].a)
    split.adapter[query].a.delete()  # a donated step does so
    assert np.isfinite(split.initial[query].a).all()


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"lora": {"modules_to_save": []}}, "adapter/ does not hold them"),
        ({"lora": {"modules_to_save": ["pooler"]}}, "adapter/ does not hold them"),
        ({"lora": {"modules_to_save": ["classifier"]}}, None),
        ({}, None),
        ({"method": "head"}, None),
        ({"method": "full"}, None),
    ],
)
def test_a_random_frozen_head_is_warned_of(settings, warned, caplog):
    _prepared(_config(**settings))
    if warned:
        assert "newly initialised, and frozen: classifier.bias, classifier.weight" in caplog.text
        assert warned in caplog.text
    else:
        assert "frozen" not in caplog.text


@pytest.mark.parametrize(
    ("head", "lora", "trained"),
    [
        (False, {}, True),
        (False, {"modules_to_save": ["classifier"]}, True),
        (False, {"modules_to_save": []}, False),
        (True, {}, False),
        (True, {"modules_to_save": ["classifier"]}, True),
    ],
)
def test_the_head_that_a_stored_adapter_lacks_is_trained_where_new_or_named(head, lora, trained, tmp_path, caplog):
    """As of an adapter that was made by masked language modelling: no random head stays frozen unasked."""
    caplog.set_level(logging.INFO, "train")
    model, base = jlora.load_base(str(tiny.model_folder(head=True)))
    stored = jlora.LoraConfig(r=4, lora_alpha=8, target_modules=["query"], init_lora_weights=False)
    adapter = jlora.init(jax.random.key(0), stored, base, model.apply, example_batch(model.config))
    jlora.save_adapter(tmp_path, adapter, stored)
    config = _config(head=head, lora={"from": str(tmp_path), **lora})
    found = _prepared(config)
    paths = {"params/classifier/kernel", "params/classifier/bias"}
    assert paths & found.adapter.keys() == (paths if trained else set())
    assert ("trained whole" in caplog.text) == trained
    assert ("frozen" in caplog.text) == (not trained and not head)
    assert jax.tree.structure(_planned(config).adapter) == jax.tree.structure(found.adapter)
    jlora.save_adapter(tmp_path / "again", found.adapter, found.lora)
    again, _ = jlora.load_adapter(tmp_path / "again", found.base, found.model.apply, example_batch(found.model.config))
    assert again.keys() == found.adapter.keys()


def test_a_head_for_another_number_of_classes_starts_anew_where_that_is_asked_for(caplog):
    folder = tiny.model_folder(head=True, num_labels=3)
    with pytest.raises(JloraError, match=r"classifier\.\w+: expected shape .*new_head=true replaces it"):
        _prepared(_config().model_copy(update={"model": str(folder)}))
    adapted = _prepared(_config().model_copy(update={"model": str(folder), "new_head": True}))
    assert adapted.adapter["params/classifier/kernel"].value.shape[1] == 2
    assert "newly initialised: classifier.bias, classifier.weight; this replaces" in caplog.text


def test_a_frozen_head_that_the_model_has_is_no_news(caplog):
    _prepared(_config(head=True, lora={"modules_to_save": []}))
    assert "frozen" not in caplog.text


def test_tokens_must_fit_the_model():
    config = _config()
    labels, splits = _splits(config)
    model, ids = (
        build_model(config, PretrainedSource(config.model), **labels.config_entries()),
        {name: split.tokens.ids for name, split in splits.items()},
    )
    require_tokens_fit(model, ids, 24)
    with pytest.raises(JloraError, match=r"at most 24 tokens a row.*found 25.*data\.max_length"):
        require_tokens_fit(model, ids, 25)
    ids["train"][0] = 60
    with pytest.raises(JloraError, match=r"train: expected token ids below .* vocab_size 60, found 60"):
        require_tokens_fit(model, ids, 24)


def test_a_model_that_does_not_classify_is_refused(tmp_path):
    LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path)
    config = _config().model_copy(update={"model": str(tmp_path)})
    with pytest.raises(JloraError, match=r"a model that classifies \(bert, distilbert, roberta\), found 'llama'"):
        _planned(config)
