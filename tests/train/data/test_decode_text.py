import codecs

import pytest

from jlora.errors import JloraError
from train.data.decode_text import decode_text


@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE)])
def test_a_byte_order_mark_is_left_out(encoding, mark, tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(mark + "größe\n".encode(encoding))
    assert decode_text(file, "a.txt", encoding, len) == "größe\n"


def test_a_byte_of_another_encoding_is_named_with_its_row(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b"text\none\ntw\xf6\n")
    with pytest.raises(JloraError, match=r"a.csv, data row 2 \(line 3\): the byte 0xf6 is not utf-8 text.*latin-1"):
        decode_text(file, "a.csv", "utf-8", lambda before: before.count("\n"))


def test_an_unknown_encoding_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text")
    with pytest.raises(JloraError, match=r"data\.encoding=klingon: not a text encoding"):
        decode_text(tmp_path / "a.csv", "a.csv", "klingon", len)
