"""The container of GGUF files: as llama.cpp's own package reads it, or refused."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from jlora.errors import JloraError
from jlora.gguf import reader
from jlora.gguf.reader import read_gguf
from tests.support.models import gguf_cases

VALUES = {
    "bool": (True, gguf.GGUFValueType.BOOL),
    "float": (0.1, gguf.GGUFValueType.FLOAT32),
    "double": (0.1, gguf.GGUFValueType.FLOAT64),
    "negative": (-3, gguf.GGUFValueType.INT16),
    "large": (2**60, gguf.GGUFValueType.UINT64),
    "byte": (255, gguf.GGUFValueType.UINT8),
    "text": ("straße\n", gguf.GGUFValueType.STRING),
}
LISTS = {"texts": ["a", "", "ü"], "numbers": [1, 2, 3], "bools": [True, False], "floats": [0.5, 0.25]}
WEIGHT = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)


@pytest.fixture
def file(tmp_path):
    """A file with a value of each kind and a tensor of each of some types."""
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for key, (value, kind) in VALUES.items():
        writer.add_key_value(f"x.{key}", value, kind)
    for key, values in LISTS.items():
        writer.add_array(f"x.{key}", values)
    writer.add_tensor("plain", WEIGHT)
    writer.add_tensor("half", WEIGHT.astype(np.float16))
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.BF16):
        writer.add_tensor(kind.name, gguf.quantize(WEIGHT, kind), raw_dtype=kind)
    writer.add_tensor("vector", WEIGHT[0])
    gguf_cases.close(writer)
    return tmp_path / "x.gguf"


def test_metadata_is_what_the_package_reads(file):
    expected = {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}
    found = read_gguf(file).fields
    assert found == {key: value for key, value in expected.items() if not key.startswith("GGUF.")}
    assert (found["x.bool"], found["x.bools"], found["x.text"]) == (True, [True, False], "straße\n")


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_tensors_are_what_the_package_dequantizes_however_many_rows_at_a_time(file, rows, monkeypatch):
    monkeypatch.setattr(reader, "_AT_ONCE", rows * 64)
    found, expected = read_gguf(file).tensors, gguf.GGUFReader(file).tensors
    assert list(found) == [tensor.name for tensor in expected]
    for tensor in expected:
        value = found[tensor.name].read(np.float32)
        np.testing.assert_array_equal(value, gguf.dequantize(tensor.data, tensor.tensor_type))
        assert value.shape == (WEIGHT.shape if tensor.name != "vector" else (64,))


def test_the_alignment_that_a_file_says_is_kept(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(128)
    writer.add_tensor("a", WEIGHT[:1])
    writer.add_tensor("b", WEIGHT)
    gguf_cases.close(writer)
    np.testing.assert_array_equal(read_gguf(tmp_path / "x.gguf").tensors["b"].read(np.float32), WEIGHT)


def _require_whole(file):
    for tensor in read_gguf(file).tensors.values():
        tensor.require_readable()


def test_a_file_that_ends_early_is_an_error_wherever_it_ends(file):
    whole = file.read_bytes()
    metadata = len(whole) - sum(-(-tensor.n_bytes // 32) * 32 for tensor in gguf.GGUFReader(file).tensors)
    for kept in [*range(0, metadata - 32, 37), len(whole) - 32 * 12]:
        file.write_bytes(whole[:kept])
        with pytest.raises(JloraError, match=r"x\.gguf: .*expected a whole GGUF file"):
            _require_whole(file)


@pytest.mark.parametrize(
    ("place", "changed", "message"),
    [
        (0, b"GGML", "no GGUF at its start"),
        (
            0,
            b"version https://git-lfs.github.com/spec/v1\n",
            "whole GGUF file; found a pointer of Git LFS. Run `git lfs",
        ),
        (0, b"<!doctype html>", "whole GGUF file; found a web page. Download the file itself"),
        (4, b"\x01\0\0\0", "version 1, where 2 and 3 are known"),
        (4, b"\0\0\0\x03", "version 50331648"),
        (16, b"\xff" * 8, "x.gguf: expected a whole GGUF file"),
    ],
)
def test_other_files_are_errors(file, place, changed, message):
    whole = file.read_bytes()
    file.write_bytes(whole[:place] + changed + whole[place + len(changed) :])
    with pytest.raises(JloraError, match=message):
        read_gguf(file)


def test_an_empty_file_is_an_error(file):
    file.write_bytes(b"")
    with pytest.raises(JloraError, match="expected a whole GGUF file; found an empty one; download or copy it again"):
        read_gguf(file)


def test_a_part_of_a_model_is_an_error(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x-00001-of-00003.gguf", "llama")
    writer.add_uint16("split.count", 3)
    gguf_cases.close(writer)
    with pytest.raises(JloraError, match="found: one of 3 parts; join them"):
        read_gguf(tmp_path / "x-00001-of-00003.gguf")


def test_a_type_that_nobody_knows_is_an_error(file):
    tensor = read_gguf(file).tensors["plain"]
    with pytest.raises(JloraError, match="plain: expected a type that gguf dequantizes; found type 99"):
        reader.StoredBlocks(tensor.file, tensor.name, tensor.shape, 99, tensor.start).require_readable()
