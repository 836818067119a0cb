"""JSON that cannot be read is refused with what is there in its place and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from jlora.errors import FileError
from jlora.files.bounded_json import parse_json, read_json


def test_an_object_is_read(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, {"b": null}]}')
    assert read_json(tmp_path / "x.json") == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected JSON; found an empty file. Copy or download it again"),
        (b" \n", "expected JSON; found an empty file"),
        (b'{"a": ', "expected JSON; found: Expecting value: .*line 1.*. Correct it; or if the file was cut off, copy"),
        (b"version https://git-lfs.github.com/spec/v1", "expected JSON; found a pointer of Git LFS. Run `git lfs"),
        (b"<!doctype html>", "expected JSON; found a web page. Download the file itself"),
        (b"[]", r"expected a JSON object, \{...\}; found a list. Copy or download it again"),
        (b"3.5", r"expected a JSON object, \{...\}; found a number"),
        (b"null", r"expected a JSON object, \{...\}; found null"),
        (b"true", r"expected a JSON object, \{...\}; found true or false"),
        (b'{"a": 1, "a": 2}', "expected JSON; found: the key 'a' twice. Correct it"),
    ],
)
def test_what_is_not_an_object(text, message):
    with pytest.raises(FileError, match=f"^x.json: {message}"):
        parse_json(text, Path("x.json"))
