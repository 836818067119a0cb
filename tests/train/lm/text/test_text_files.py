import pytest

from jlora.errors import JloraError
from tests.support.training.lm_data import section
from train.lm.text.text_files import read_text, read_text_or_table

TEXT = b"\xef\xbb\xbfone\r\n two\r\n\r\n   \r\n\r\n  three\r\n"


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("document", ["one\n two\n\n   \n\n  three\n"]),
        ("paragraph", ["one\n two", "  three"]),
        ("line", ["one", " two", "  three"]),
    ],
)
def test_a_document_is_a_file_a_paragraph_or_a_line(sample_by, expected, tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT)
    table = read_text(tmp_path / "a.txt", "a.txt", "utf-8", sample_by, "words")
    assert table.columns == {"words": expected}


def test_a_file_of_nothing_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(JloraError, match=r"^a\.txt: expected text; found an empty file"):
        read_text(tmp_path / "a.txt", "a.txt", "utf-8", "document", "text")


def test_another_encoding_is_refused_with_its_row(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\n\nth\xe9\n")
    with pytest.raises(JloraError, match=r"a\.txt, data row 3 \(line 5\): expected utf-8 text, found the byte 0xe9"):
        read_text(tmp_path / "a.txt", "a.txt", "utf-8", "line", "text")
    table = read_text(tmp_path / "a.txt", "a.txt", "latin-1", "line", "text")
    assert table.columns["text"] == ["one", "two", "thé"]


def test_other_files_are_tables(tmp_path):
    read = read_text_or_table(section(sample_by="line", text="words"))
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "a.TXT").write_text("x\ny\n")
    assert read(tmp_path / "a.csv", "a.csv", "utf-8", ",").columns == {"text": ["x"]}
    assert read(tmp_path / "a.TXT", "a.TXT", "utf-8", ",").columns == {"words": ["x", "y"]}
    with pytest.raises(JloraError, match=r"\(\.txt, \.csv, .*\), found a folder"):
        read(tmp_path, "folder", "utf-8", ",")
    (tmp_path / "a.pdf").write_text("%PDF")
    with pytest.raises(JloraError, match=r"a name that ends in one of \.txt, \.csv, .*; found \.pdf\. Convert it"):
        read(tmp_path / "a.pdf", "a.pdf", "utf-8", ",")
