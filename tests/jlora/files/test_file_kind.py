"""Files that are not what their names say are recognized by their first bytes."""

from __future__ import annotations

import gzip
import pickle

import pytest

from jlora.files.file_kind import file_kind, is_lfs_pointer, kind_of_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (POINTER, "a pointer of Git LFS. Run `git lfs install`"),
        (b"\n<!DOCTYPE html><html>", "a web page. Download the file itself"),
        (b"<html><body>404", "a web page"),
        (b"PK\x03\x04", "a ZIP archive, as torch.save and Excel write. Save weights"),
        (pickle.dumps({"a": 1}), "a pickle, which may run code and is never opened here. If you trust it"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes"),
        (b"GGUF\x03", "a GGUF file"),
        (b"PAR1", "a Parquet file"),
        (gzip.compress(b"x", mtime=0), "a file that is packed with gzip. Unpack it first"),
    ],
)
def test_the_first_bytes_say_what_a_file_is(start, expected, tmp_path):
    assert file_kind(start).startswith(expected)
    (tmp_path / "x").write_bytes(start)
    assert kind_of_file(tmp_path / "x") == file_kind(start)


@pytest.mark.parametrize("start", [b"", b"{}", b"text,label\n", b"version 2", b"< 3 is a heart"])
def test_other_bytes_say_nothing(start):
    assert file_kind(start) == ""


def test_pointers_of_git_lfs():
    assert is_lfs_pointer(POINTER)
    assert not is_lfs_pointer(b"version 1")
