"""What is there in place of the weights is named, with what to do about it."""

from __future__ import annotations

import pytest

from jlora.errors import FileError
from jlora.pretrained.absent_weights import say_what_is_instead, say_what_the_file_is
from jlora.pretrained.folder import open_tensors


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            ["pytorch_model.bin"],
            "pytorch_model.bin, which may run code and is never opened here; if you trust it, conv",
        ),
        (
            ["model-00001-of-00002.safetensors"],
            "parts of the weights alone (model-00001-of-00002.safetensors). Copy or",
        ),
        (["weights.safetensors"], "weights.safetensors. If that is the model, rename it to model.safetensors"),
        (["q4.gguf"], "neither, but q4.gguf. Give that file: "),
        (["global_step10"], "neither, but a checkpoint in parts (global_step10). Join them first: "),
        (["tf_model.h5"], "tf_model.h5, which is not read: it is another program's. Download the model's safetensors"),
        (["flax_model.msgpack", "model.onnx"], "flax_model.msgpack, model.onnx, which is not read"),
        ([f"{i}.pt" for i in range(7)], "0.pt, 1.pt, 2.pt, 3.pt, 4.pt and 2 more, which may run code"),
        (["README.md"], "neither. Copy or download the weights, too"),
    ],
)
def test_a_folder_without_weights(files, expected, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    assert say_what_is_instead(tmp_path).startswith(expected)
    with pytest.raises(FileError, match=r"expected model\.safetensors or model\.safetensors\.index\.json; found "):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("name", "start", "expected"),
    [
        ("model.onnx", b"\x08\x07", "an ONNX file. Give the folder of the model that it was made from"),
        ("model.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes. Save the weights as safetensors, and give"),
        ("w.bin", b"\x80\x04", "a pickle, which may run code and is never opened here. If you trust it"),
        ("q4", b"GGUF", "a GGUF file. Give it a name that ends in .gguf"),
        ("notes", b"hello", "a file that is not GGUF. Give the folder of the model's files"),
    ],
)
def test_a_file_in_place_of_a_folder(name, start, expected, tmp_path):
    (tmp_path / name).write_bytes(start)
    assert say_what_the_file_is(tmp_path / name).startswith(expected)


def test_a_file_of_a_model_names_its_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert say_what_the_file_is(tmp_path / "config.json") == f"a file. Give the folder that it is in: {tmp_path}"
