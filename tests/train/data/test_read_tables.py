import importlib.util

import pytest

from jlora.errors import JloraError
from tests.support.training.tiny import data_file
from train.classify.config import DataConfig
from train.data.read_tables import read_tables
from train.data.table_files import Table

CONFIG = DataConfig(train="unused")


def test_files_are_read_in_order_under_the_names_that_were_given(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "b.jsonl").write_text('{"text": "y"}\n')
    names = [str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")]
    assert read_tables(names, "train", CONFIG) == [Table(names[0], {"text": ["x"]}), Table(names[1], {"text": ["y"]})]
    assert read_tables(names[1], "train", CONFIG)[0].name == names[1]


def test_a_package_may_hold_the_file():
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    table = read_tables("package:sklearn/datasets/data/iris.csv", "train", CONFIG)[0]
    assert len(table.columns["setosa"]) == 150


def test_the_caller_may_read_files_otherwise():
    seen = []

    def read(path, name, encoding, separator):
        seen.append((path, name, encoding, separator))
        return Table(name, {"text": ["x"]})

    file = data_file()
    assert read_tables(str(file), "train", DataConfig(train="unused", encoding="latin-1", separator=";"), read)[
        0
    ].columns["text"]
    assert seen == [(file, str(file), "latin-1", ";")]


def test_nothing_to_read_is_refused():
    with pytest.raises(JloraError, match=r"^data\.validation: expected a file or a hub data set, found nothing"):
        read_tables([], "validation", CONFIG)
