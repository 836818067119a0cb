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


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_utf_16_is_recognized_by_its_mark(mark, tmp_path):
    """With latin-1, which reads every byte, the text would be junk without an error."""
    file = tmp_path / "a.csv"
    file.write_bytes(mark + "text\n".encode("utf-16-le"))
    with pytest.raises(JloraError, match=r"^a\.csv: .* mark of UTF-16 .* data\.encoding=utf-16$"):
        decode_text(file, "a.csv", "utf-8", len)


def test_an_unknown_encoding_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text")
    with pytest.raises(JloraError, match=r"data\.encoding=klingon: not a text encoding"):
        decode_text(tmp_path / "a.csv", "a.csv", "klingon", len)
