import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jlora.errors import JloraError
from tests.support.training.hub_stand_in import serve_hub
from train.classify.config import DataConfig
from train.classify.data.splits import load_data, names_from_config, read_split

SHARED = Path(__file__).parents[5] / "shared" / "data"
ROOT = Path(__file__).parents[4]


def _jsonl(path, labels):
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": v}) + "\n" for i, v in enumerate(labels)))
    return str(path)


def test_rows_know_their_file_and_number(tmp_path):
    first, second = _jsonl(tmp_path / "a.jsonl", ["x", "y"]), _jsonl(tmp_path / "b.jsonl", ["z"])
    split = read_split([first, second], DataConfig(train="unused"), "train")
    assert split.text == ["text 0", "text 1", "text 0"]
    assert split.label == ["x", "y", "z"]
    assert [split.where(i) for i in range(3)] == [f"{first}, data row {n}" for n in (1, 2)] + [f"{second}, data row 1"]


def test_pairs_and_other_column_names(tmp_path):
    (tmp_path / "a.tsv").write_text("one\ttwo\tscore\na\tb\t1\n")
    config = DataConfig(train="unused", text="one", text_pair="two", label="score")
    split = read_split(str(tmp_path / "a.tsv"), config, "train")
    assert (split.text, split.text_pair, split.label) == (["a"], ["b"], ["1"])


def test_new_text_needs_no_labels(tmp_path):
    (tmp_path / "a.csv").write_text("text\na\nb\n")
    assert read_split(str(tmp_path / "a.csv"), DataConfig(train="unused"), "test", labelled=False).label == [
        -1,
        -1,
    ]
    with pytest.raises(JloraError, match=r"expected a column 'label' \(data\.label\), found the columns text"):
        read_split(str(tmp_path / "a.csv"), DataConfig(train="unused"), "test")


@pytest.mark.parametrize("value", [None, 3, ["a"], "half \ud83d"])
def test_text_that_is_no_text_is_refused_with_its_row(value, tmp_path):
    rows = [{"text": "fine", "label": 0}, {"text": value, "label": 1}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(JloraError, match=r"a\.jsonl, data row 2, column 'text' \(data\.text\): expected text"):
        read_split(str(tmp_path / "a.jsonl"), DataConfig(train="unused"), "train")


def test_a_missing_file_offers_the_nearest(tmp_path):
    _jsonl(tmp_path / "train.jsonl", ["a"])
    with pytest.raises(JloraError, match=r"trian\.jsonl: no such file.*nearest: train\.jsonl in "):
        load_data(DataConfig(train=str(tmp_path / "trian.jsonl")), seed=0)


def test_given_splits_are_taken_as_they_are(tmp_path):
    files = {name: _jsonl(tmp_path / f"{name}.jsonl", ["a", "b"]) for name in ("train", "validation", "test")}
    data = load_data(DataConfig(**files), seed=0)
    assert {name: split.source[0] for name, split in data.splits.items()} == files
    assert (data.notes, data.label_names) == ((), None)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3), min_size=4, max_size=80), st.integers(0, 5), st.sampled_from([0.1, 0.3, 0.5]))
def test_validation_is_split_off_stratified(tmp_path, labels, seed, fraction):
    config = DataConfig(train=_jsonl(tmp_path / "a.jsonl", labels), validation_fraction=fraction)
    data = load_data(config, seed)
    train, validation = data.splits["train"], data.splits["validation"]
    assert sorted(train.row + validation.row) == list(range(1, len(labels) + 1))
    assert len(validation) == max(1, round(fraction * len(labels)))
    for label, count in Counter(labels).items():
        assert abs(validation.label.count(label) - len(validation) * count / len(labels)) <= 2
    assert data == load_data(config, seed)
    assert f"{len(validation)} of the {len(labels)} training rows split off" in data.notes[0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(1, 100), st.integers(0, 5))
def test_a_sample_is_as_balanced_as_the_classes_allow(tmp_path, labels, max_rows, seed):
    file = _jsonl(tmp_path / "a.jsonl", labels)
    data = load_data(DataConfig(train=file, validation=file, max_rows=max_rows), seed)
    for split in data.splits.values():
        assert len(split) == min(max_rows, len(labels))
        assert split.row == sorted(set(split.row))
        taken, there = Counter(split.label), Counter(labels)
        for label in there:
            assert taken[label] == there[label] or taken[label] >= max(taken.values()) - 1
    assert len(data.notes) == 2 * (max_rows < len(labels))


def test_a_large_split_keeps_the_shares_of_its_classes(tmp_path):
    file = _jsonl(tmp_path / "a.jsonl", ["a"] * 700 + ["b"] * 200 + ["c"] * 100)
    validation = load_data(DataConfig(train=file), seed=0).splits["validation"]
    assert Counter(validation.label) == {"a": 70, "b": 20, "c": 10}


def test_another_seed_is_another_sample(tmp_path):
    config = DataConfig(train=_jsonl(tmp_path / "a.jsonl", [0, 1] * 50), max_rows=10)
    rows = [load_data(config, seed).splits["train"].row for seed in (0, 1)]
    assert rows[0] != rows[1]


@pytest.mark.parametrize(("labels", "task"), [([0.5] + [1.0] * 99, None), ([0] + [1] * 99, "regression")])
def test_scores_are_not_balanced(labels, task, tmp_path):
    file = _jsonl(tmp_path / "a.jsonl", labels)
    config = DataConfig(train=file, validation=file, max_rows=2)
    picks = [load_data(config, seed, task).splits["train"].label for seed in range(5)]
    assert picks.count([labels[1], labels[1]]) >= 4


def test_too_few_rows_to_split(tmp_path):
    with pytest.raises(JloraError, match=r"1 row in all, too few to split off validation data.* data\.validation=FILE"):
        load_data(DataConfig(train=_jsonl(tmp_path / "a.jsonl", [1])), seed=0)


def test_a_mapping_names_and_drops_labels(tmp_path):
    file = _jsonl(tmp_path / "a.jsonl", [4, 0, 2, 4, "2"])
    names = {0: "negative", 4: "positive"}
    config = DataConfig(train=file, validation=file, label_names=names, drop_other_labels=True)
    data = load_data(config, seed=0)
    assert data.splits["train"].label == ["positive", "negative", "positive"]
    assert data.splits["train"].row == [1, 2, 4]
    assert data.label_names == ("negative", "positive")
    assert "train: 2 of 5 rows left out" in data.notes[0]
    with pytest.raises(JloraError, match=r"data row 3: the label 2 is not in data\.label_names.*drop_other_labels"):
        load_data(DataConfig(train=file, label_names=names), seed=0)
    with pytest.raises(JloraError, match=r"no row has a label of data\.label_names \(7\)"):
        load_data(DataConfig(train=file, label_names={7: "x"}, drop_other_labels=True), seed=0)


def test_an_unlabelled_test_split_needs_no_name_for_it(tmp_path):
    train, test = _jsonl(tmp_path / "a.jsonl", [0, 1, 0, 1]), _jsonl(tmp_path / "b.jsonl", [-1, -1])
    data = load_data(DataConfig(train=train, test=test, label_names={0: "no", 1: "yes"}), seed=0)
    assert data.splits["test"].label == ["-1", "-1"]


def test_configured_names():
    assert names_from_config(DataConfig(train="x")) is None
    assert names_from_config(DataConfig(train="x", label_names=["b", "a"])) == ("b", "a")
    assert names_from_config(DataConfig(train="x", label_names={1: "a", 2: "b", 3: "a"})) == ("a", "b")
    with pytest.raises(JloraError, match=r"data\.label_names: expected different names"):
        names_from_config(DataConfig(train="x", label_names=["a", "a"]))


def test_empty_texts_are_counted(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n,0\n  ,1\nx,1\n")
    file = str(tmp_path / "a.csv")
    notes = load_data(DataConfig(train=file, validation=file), 0).notes
    assert "validation: 2 rows have an empty text; data.skip_bad_rows=true leaves such rows out" in notes
    left = load_data(DataConfig(train=file, validation=file, skip_bad_rows=True), 0)
    assert (left.splits["train"].text, left.splits["train"].row) == (["x"], [3])
    assert "data row 1, column 'text' (data.text): the text is empty" in left.notes[0]


def test_a_column_for_each_label(tmp_path):
    """Jigsaw's layout; -1 in all of them is an unlabelled row of its test split."""
    rows = ["id,text,toxic,insult", "1,a,1,0", "2,b,0.0,True", "3,c,0,0"]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    (tmp_path / "test.csv").write_text("\n".join([*rows, "4,d,-1,-1"]))
    given = {
        "train": str(tmp_path / "a.csv"),
        "validation": str(tmp_path / "a.csv"),
        "test": str(tmp_path / "test.csv"),
    }
    data = load_data(DataConfig(**given, label=["toxic", "insult"]), 0)
    assert data.label_names == ("toxic", "insult")
    assert data.splits["train"].label == [[1, 0], [0, 1], [0, 0]]
    assert data.splits["test"].label[-1] == -1
    named = load_data(DataConfig(**given, label=["insult", "toxic"], label_names=["i", "t"]), 0)
    assert (named.label_names, named.splits["train"].label[0]) == (("i", "t"), [0, 1])
    with pytest.raises(
        JloraError, match=r"a\.csv, data row 1, column 'id' \(data\.label\): expected 0 or 1.*found '2'|row 2"
    ):
        load_data(DataConfig(**given, label=["id", "toxic"]), 0)
    with pytest.raises(JloraError, match=r"expected a column 'insults' \(data\.label\), .*nearest: insult"):
        load_data(DataConfig(**given, label=["toxic", "insults"]), 0)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"label": ["a"]}, "expected a column, or two or more different ones"),
        ({"label": ["a", "a"]}, "expected a column, or two or more different ones"),
        ({"label": ["a", "b"], "label_names": ["x"]}, "expected a name for each column of data.label"),
        ({"label": ["a", "b"], "label_names": {"a": "x"}}, "expected a name for each column of data.label"),
    ],
)
def test_several_columns_of_labels_are_checked(given, error):
    with pytest.raises(ValueError, match=error):
        DataConfig(train="x", **given)


def test_rows_without_text_may_be_left_out(tmp_path):
    file = _jsonl(tmp_path / "a.jsonl", [0, 1, 0, 1])
    with open(file, "a") as opened:
        opened.write('{"text": null, "label": 1}\n')
    data = load_data(DataConfig(train=file, validation=file, skip_bad_rows=True), 0)
    assert data.splits["train"].row == [1, 2, 3, 4]
    assert data.notes[0].startswith("train: 1 of 5 rows left out (data.skip_bad_rows):\n  ")
    assert "data row 5, column 'text'" in data.notes[0]


@pytest.mark.parametrize("bad", [None, "", "other"])
def test_rows_with_a_label_that_a_mapping_lacks_may_be_left_out(bad, tmp_path):
    file = _jsonl(tmp_path / "a.jsonl", [0, 1, bad, 0])
    config = DataConfig(train=file, validation=file, label_names={0: "no", 1: "yes"}, skip_bad_rows=True)
    data = load_data(config, seed=0)
    assert data.splits["train"].row == [1, 2, 4]
    assert "train: 1 of 4 rows left out, their labels are not in data.label_names" in data.notes[0]


@pytest.mark.parametrize(
    ("keys", "labels"),
    [((0.0, 1.0), ["0", "1"]), ((0, 1), [0.0, 1.0]), (("0.0", "1.0"), [0, 1]), ((False, True), ["False", "true"])],
    ids=["decimal keys", "decimal labels", "text keys", "truth"],
)
def test_a_mapping_names_a_value_however_it_is_written(keys, labels, tmp_path):
    file = _jsonl(tmp_path / "a.jsonl", labels * 2)
    data = load_data(
        DataConfig(train=file, validation=file, label_names=dict(zip(keys, ("no", "yes"), strict=True))), 0
    )
    assert data.splits["train"].label == ["no", "yes"] * 2


def test_two_names_for_one_value_of_a_mapping(tmp_path):
    file = _jsonl(tmp_path / "a.jsonl", [0, 1])
    with pytest.raises(JloraError, match=r"^data\.label_names: '1\.0': expected one name .*found 'b' and 'c'"):
        load_data(DataConfig(train=file, label_names={0: "a", 1: "b", "1.0": "c"}), 0)


def test_ids_that_are_written_as_decimals_are_balanced(tmp_path):
    file = _jsonl(tmp_path / "a.jsonl", [0.0] * 50 + [1.0] * 50)
    data = load_data(DataConfig(train=file, max_rows=10), 0)
    assert Counter(data.splits["train"].label) == {0.0: 5, 1.0: 5}


def test_hub_sets_are_read_then_found_in_the_cache_without_a_network(tmp_path):
    files = {
        "README.md": b"# Tiny\n",
        "train.csv": b"text,label\ngood,1\nbad,0\n",
        "validation.csv": b"text,label\nok,1\n",
    }
    with serve_hub({"datasets/me/tiny": files}) as address:
        script = ROOT / "tests" / "support" / "programs" / "read_hub_set.py"
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        }
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
            environment.pop(name, None)
        done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_files():
    data = load_data(
        DataConfig(train=str(SHARED / "sst2/train.tsv"), validation=str(SHARED / "sst2/dev.tsv"), text="sentence"),
        0,
    )
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6920, "validation": 872}
    pairs = DataConfig(train="x", text="sentence1", text_pair="sentence2")
    assert len(read_split(str(SHARED / "mrpc/train.tsv"), pairs, "train")) == 3667
    assert len(read_split(str(SHARED / "imdb_sample/train.csv"), DataConfig(train="x"), "train")) == 800
