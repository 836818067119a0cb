"""A book is read as it was downloaded: any encoding, any line ends, with or without a licence."""

from __future__ import annotations

import pytest

from jlora.errors import JloraError
from train.books.read_book import paragraphs, read_book, strip_licence

NEW = """The Project Gutenberg eBook of A Tale

This eBook is for the use of anyone anywhere.

*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***

Produced by Somebody
and Others

{book}

*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***

Section 1. General Terms of Use
"""
OLD = """*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*

{book}

End of Project Gutenberg's A Tale
"""
LONG_TITLE = (
    "*** START OF THIS PROJECT GUTENBERG EBOOK A TALE\nOF TWO LINES ***\n{book}\n*** END OF THIS PROJECT GUTENBERG\n"
)


def _read(tmp_path, data):
    path = tmp_path / "book.txt"
    path.write_bytes(data)
    return read_book(path, "book.txt")


@pytest.mark.parametrize("licence", [NEW, OLD, LONG_TITLE, "{book}"])
def test_the_licence_is_left_out(licence):
    text = strip_licence(licence.format(book="Once upon a time.\n\nThe end."))
    assert paragraphs(text) == ["Once upon a time.", "The end."]


def test_a_text_that_only_mentions_gutenberg_is_whole():
    text = "He read a Project Gutenberg book.\n\nThe START OF it was good."
    assert strip_licence(text) == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, line_end):
    text = line_end.join(["“Café,” she said.", "", "“No.”", ""])
    assert _read(tmp_path, text.encode(encoding)) == "“Café,” she said.\n\n“No.”\n"


def test_latin_1_is_read(tmp_path):
    assert _read(tmp_path, "Café".encode("latin-1")) == "Café"


def test_marks_of_emphasis_pictures_and_dashes(tmp_path):
    data = b"[Illustration: Alice]\n\n_Very_ snake_case_name--really\nI am _so\nglad_. ----"
    assert _read(tmp_path, data).strip() == "Very snake_case_name—really\nI am so\nglad. ----"


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"", "an empty file"), (b"\xef\xbb\xbf \r\n", "an empty file"), (bytes(range(256)) * 8, "a binary file")],
)
def test_a_file_without_text_is_refused(tmp_path, data, found):
    with pytest.raises(JloraError, match=f"book.txt: expected the text of a book, found {found}"):
        _read(tmp_path, data)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(JloraError, match="is a folder; expected a text file"):
        read_book(tmp_path, "books")


def test_paragraphs_are_parted_by_blank_lines_or_else_by_lines():
    assert paragraphs("\n one\n two \n \t\n\n\nthree\n") == ["one\ntwo", "three"]
    assert paragraphs("one\ntwo\n") == ["one", "two"]
    assert paragraphs(" \n\n") == []
