"""Class names come from labels.json, or are transformers' own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jlora.errors import FileError
from serve.engine.labels import read_labels


def _folder(path, outputs):
    key = "base_model.model.classifier.weight" if outputs else "base_model.model.x.lora_A.weight"
    save_file({key: np.zeros((outputs or 1, 4), np.float32)}, path / "adapter_model.safetensors")
    return path


def test_names_are_in_the_order_of_the_outputs(tmp_path):
    folder = _folder(tmp_path, 2)
    assert read_labels(folder) == (("LABEL_0", "LABEL_1"), None)
    labels = {"id2label": {"1": "good", "0": "bad"}, "problem_type": "single_label_classification"}
    (folder / "labels.json").write_text(json.dumps(labels))
    assert read_labels(folder) == (("bad", "good"), "single_label_classification")


@pytest.mark.parametrize("names", [{"0": "a"}, {"0": "a", "2": "b"}, ["a", "b"], None])
def test_names_that_are_not_the_heads_are_refused(tmp_path, names):
    folder = _folder(tmp_path, 2)
    (folder / "labels.json").write_text(json.dumps({"id2label": names}))
    with pytest.raises(FileError, match=r"labels.json: id2label: expected a name for each of the head's 2 outputs"):
        read_labels(folder)


def test_an_adapter_without_a_head_is_refused(tmp_path):
    with pytest.raises(FileError, match="a classification head, found none"):
        read_labels(_folder(tmp_path, 0))
