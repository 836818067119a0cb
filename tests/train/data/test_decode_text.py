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
    with pytest.raises(
        JloraError, match=r"a.csv, data row 2 \(line 3\): expected utf-8 text, found the byte 0xf6\. .*latin-1"
    ):
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
    with pytest.raises(JloraError, match=r"data\.encoding=klingon: expected the name of a text encoding"):
        decode_text(tmp_path / "a.csv", "a.csv", "klingon", len)


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf_16_without_a_mark_is_recognized(order, tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\n".encode(f"utf-16-{order}"))
    with pytest.raises(JloraError, match=rf"^a\.csv: .* zero bytes .* set data\.encoding=utf-16-{order}$"):
        decode_text(tmp_path / "a.csv", "a.csv", "utf-8", len)
    assert decode_text(tmp_path / "a.csv", "a.csv", f"utf-16-{order}", len) == "text,label\n"


@pytest.mark.parametrize("encoding", ["utf-16", "UTF_16_LE", "utf-32"])
def test_utf_8_is_not_read_as_utf_16(encoding, tmp_path):
    """Two letters each would become one of another script, without an error."""
    (tmp_path / "a.csv").write_bytes(b"text,label\ngood film,1\n")
    with pytest.raises(JloraError, match=r"^a\.csv: .* one letter each, as UTF-8 has\. Leave out data\.encoding$"):
        decode_text(tmp_path / "a.csv", "a.csv", encoding, len)


def test_a_pointer_of_git_lfs_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n")
    with pytest.raises(JloraError, match=r"^a\.txt: expected the rows; found a pointer of Git LFS\. Run"):
        decode_text(tmp_path / "a.txt", "a.txt", "utf-8", len)
