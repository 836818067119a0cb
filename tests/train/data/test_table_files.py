import json

import pyarrow
import pyarrow.parquet
import pytest

from jlora.errors import JloraError
from train.data.table_files import class_names, read_table, without_filled

ROWS = [
    {"text": 'so "called", they say', "label": "a"},
    {"text": "two\nlines", "label": "b"},
    {"text": "é", "label": "a"},
]
COLUMNS = {"text": [row["text"] for row in ROWS], "label": ["a", "b", "a"]}


def _write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _read(tmp_path, name, content, encoding="utf-8"):
    return read_table(_write(tmp_path, name, content), name, encoding)


def _csv(rows):
    return "text,label\n" + "".join('"' + row["text"].replace('"', '""') + f'",{row["label"]}\n' for row in rows)


def _parquet(tmp_path, rows):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "x.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_format_holds_the_same_rows(suffix, tmp_path):
    contents = {
        ".csv": _csv(ROWS),
        ".json": json.dumps(ROWS, indent=1),
        ".jsonl": "\n".join(map(json.dumps, ROWS)),
        ".parquet": _parquet(tmp_path, ROWS),
    }
    assert _read(tmp_path, f"a{suffix}", contents[suffix]).columns == COLUMNS


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_line_ends_and_blank_lines_do_not_matter(line_end, tmp_path):
    for name in ("a.csv", "a.tsv"):
        mark = "," if name == "a.csv" else "\t"
        lines = [f"text{mark}label", f"one{mark}1", "", f"two{mark}2", ""]
        assert _read(tmp_path, name, line_end.join(lines)).columns == {
            "text": ["one", "two"],
            "label": ["1", "2"],
        }


def test_tsv_is_read_without_quoting(tmp_path):
    table = _read(tmp_path, "a.tsv", 'text\tlabel\n"an open quote\t1\n a , b\x0b\u2028 "" \t2\n')
    assert table.columns == {"text": ['"an open quote', ' a , b\x0b\u2028 "" '], "label": ["1", "2"]}


def test_csv_quotes_by_rfc_4180(tmp_path):
    table = _read(tmp_path, "a.csv", 'text,label\r\n"a, ""b""\r\nc",1\r\n,2\r\n')
    assert table.columns == {"text": ['a, "b"\r\nc', ""], "label": ["1", "2"]}


def test_a_csv_field_may_be_long(tmp_path):
    assert _read(tmp_path, "a.csv", "text\n" + "x" * 200_000).columns == {"text": ["x" * 200_000]}


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    assert _read(tmp_path, "a.csv", b"\xef\xbb\xbftext\na\n").columns == {"text": ["a"]}


def test_other_encodings(tmp_path):
    assert _read(tmp_path, "a.csv", "text\né\n".encode("latin-1"), "latin-1").columns == {"text": ["é"]}
    assert _read(tmp_path, "a.tsv", "text\né\n".encode("utf-16"), "utf-16").columns == {"text": ["é"]}


def test_json_keeps_types_and_knows_missing_values(tmp_path):
    table = _read(tmp_path, "a.jsonl", '{"text": "a", "label": 1}\n\n{"text": null}\n{"label": [2.5]}\n')
    assert table.columns == {"text": ["a", None, None], "label": [1, None, [2.5]]}


def test_class_names_in_parquet_are_found(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names, "tags": datasets.List(names)})
    rows = {"text": ["a"], "label": [1], "tags": [[0, 1]]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet", "a.parquet")
    assert table.columns == rows
    assert table.class_names == {"label": ("no", "yes"), "tags": ("no", "yes")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv: expected rows, found an empty file"),
        ("a.csv", "text,label\n", r"a\.csv: expected data rows, found none; columns: text, label"),
        ("a.csv", "\n\n", "expected data rows, found none"),
        ("a.json", "[]", "expected data rows, found none; columns: none"),
        (
            "a.txt",
            "text",
            r"a\.txt: expected a name that ends in one of \.csv, \.tsv, \.json, \.jsonl, \.parquet; found \.txt",
        ),
        ("a.csv", "text,text\na,b\n", "expected columns of different names, found 'text' twice. Rename one"),
        (
            "a.csv",
            'text,label\na,1\n"b\nc",1,2\n',
            r"data row 2 \(line 3\): expected 2 fields \(text, label\), found 3\.",
        ),
        ("a.csv", 'text,label\n"b\nc",1\na\n', r"data row 2 \(line 4\): expected 2 fields .*, found 1\."),
        (
            "a.tsv",
            "text\tlabel\na\t1\nb\t1\t2\n",
            r"data row 2 \(line 3\): expected 2 fields .*, found 3\. A field of a \.tsv .*quotes do not help",
        ),
        (
            "a.json",
            '[{"text": "a',
            r"data row 1 \(line 1\): expected JSON, found: Unterminated .* if the file was cut off, copy it again",
        ),
        (
            "a.jsonl",
            '{"text": "a"},\n',
            r"data row 1 \(line 1\): .* found a comma after it\. Delete the commas at the ends",
        ),
        (
            "a.jsonl",
            '{\n"text": "a"\n}\n',
            r"data row 1 \(line 1\): expected a whole JSON object on one line, found \{\. ",
        ),
        ("a.xlsx", "x", r"a\.xlsx: expected .*; found \.xlsx\. Save the sheet as CSV in UTF-8$"),
        ("a.csv.gz", "x", r"expected .*; found \.gz\. Unpack it first$"),
        ("a.csv", 'text,label\na,1\n"b" c,1\n', r"data row 2 \(from line 3\): expected CSV by RFC 4180, found "),
        (
            "a.csv",
            'text,label\na,1\nb,1\n"c,1\n',
            r'data row 3 \(from line 4\): expected CSV .*, found a field that begins with " and is never closed',
        ),
        ("a.csv", '"text,label\na,1\n', r"the header \(from line 1\): expected CSV by RFC 4180, found a field"),
        (
            "a.json",
            '{"text": "a"}',
            r"expected a list of objects, \[\{\.\.\.\}, \.\.\.\], found an object with the keys text\. Save the list",
        ),
        ("a.json", '[{"text": "a"},\n{"text": }]', r"data row 2 \(line 2\): expected JSON, found: "),
        ("a.json", '{"text": "a"}\n{"text": "b"}', r"if the file has one object a line, rename it to end in \.jsonl"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": ', r"data row 2 \(line 3\): expected a JSON object, found '.*'"),
        ("a.jsonl", '{"text": "a"}\n["b"]', r"data row 2: expected an object .* found \[\"b\"\]\. A file with one"),
        ("a.jsonl", '{"text": "a"}\n"b"', r"data row 2: expected an object .* found \"b\"\. Correct the row"),
        ("a.jsonl", "<!doctype html>", r"a\.jsonl: expected text \(\.jsonl\), found a web page\. Download the file"),
        ("a.csv", b"PK\x03\x04", r"a\.csv: expected text \(\.csv\), found a ZIP archive"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid", r"found a pointer of Git LFS\. Run `git lfs"),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid",
            r"a Parquet file, found a pointer of Git LFS",
        ),
        ("a.parquet", b"text,label\n", r"expected a Parquet file, found another file\. If it is CSV or JSON"),
        ("a.parquet", b"PAR1 no, not really", r"expected a Parquet file, found a damaged one \(.*\. Copy or download"),
        ("a.tsv", "text,label\na,1\n", r"expected columns separated by tabs, found one column 'text,label'\. Rename"),
        ("a.tsv", "text;label\na;1\n", r"Rename the file to end in \.csv, and set data\.separator=;$"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(name, content, message, tmp_path):
    with pytest.raises(JloraError, match=message):
        _read(tmp_path, name, content)


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.csv", b'text,label\n"a\nb",1\ncaf\xe9,1\n', r"data row 2 \(line 4\)"),
        ("a.csv", b'text,label\na,1\n"b\n\xe9",1\n', r"data row 2 \(line 4\)"),
        ("a.csv", b"caf\xe9,label\na,1\n", r"the header \(line 1\)"),
        ("a.tsv", b"text\tlabel\na\t1\n\n\xe9\t1\n", r"data row 2 \(line 4\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"data row 2 \(line 2\)"),
        ("a.json", b'[{"text": {"deep": "{"}}, {"text": "\xe9"}]', r"data row 2 \(line 1\)"),
    ],
)
def test_text_in_another_encoding_is_refused_with_its_row(name, content, where, tmp_path):
    with pytest.raises(
        JloraError, match=rf"{name}, {where}: expected utf-8 text, found the byte 0xe9\. .*data\.encoding=latin-1"
    ):
        _read(tmp_path, name, content)


def test_an_unknown_encoding(tmp_path):
    with pytest.raises(JloraError, match=r"data\.encoding=utf-9: expected the name of a text encoding"):
        _read(tmp_path, "a.csv", "text\na\n", "utf-9")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(JloraError, match=r"expected a file of rows \(\.csv.*\), found a folder"):
        read_table(tmp_path, "data")
    for name in ("train.csv", "notes.md"):
        (tmp_path / name).touch()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors.index.json"):
        (tmp_path / name).touch()
    with pytest.raises(JloraError, match=r"found a folder\. Give one or a list of those in it: train\.csv$"):
        read_table(tmp_path, "data")


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("config.json", r"expected a file of rows .*, found the folder of a model \(it has config\.json\)$"),
        ("adapter_config.json", "found the folder of an adapter"),
        ("dataset_info.json", r"datasets\.load_from_disk\('data'\)\.to_parquet\('train\.parquet'\)$"),
        ("dataset_dict.json", r"datasets\.load_from_disk\('data'\)\['train'\]\.to_parquet"),
    ],
)
def test_a_folder_of_something_else_is_called_that(file, found, tmp_path):
    for name in (file, "tokenizer.json", "rows.json"):
        (tmp_path / name).touch()
    with pytest.raises(JloraError, match=rf"^data: .*{found}"):
        read_table(tmp_path, "data")


def test_a_missing_column_names_the_ones_there_are_and_the_nearest(tmp_path):
    table = _read(tmp_path, "a.csv", "sentence,label\na,1\n")
    message = r"expected a column 'sentense' \(data\.text\), found the columns sentence, label; nearest: sentence\. dat"
    with pytest.raises(JloraError, match=message):
        table.column("sentense", "data.text")


@pytest.mark.parametrize(
    ("column", "key", "advice"),
    [
        ("text", "data.text", "found the columns Text, label; set data.text=Text"),
        ("text", "--text", "found the columns Text, label; give --text Text"),
        ("output", "data.format=alpaca", "found the columns Text, label. Rename the columns, or leave out data.format"),
        ("xyz", "--label", "found the columns Text, label. --label names it"),
    ],
)
def test_a_missing_column_comes_with_what_to_set(column, key, advice, tmp_path):
    with pytest.raises(JloraError, match=rf"expected a column '{column}' \({key}\), {advice}$"):
        _read(tmp_path, "a.csv", "Text,label\na,1\n").column(column, key)


def test_what_arrow_filled_in_is_gone_at_every_depth(tmp_path):
    """All objects of a column have one schema there: keys that one lacks come back as None."""
    call = {"name": "get", "arguments": {"city": "Paris"}}
    other = {"name": "find", "arguments": {"fruit": "apple"}, "id": "c1"}
    rows = [{"tools": [call], "text": "a"}, {"tools": [other, call], "text": None}, {"tools": None, "text": "c"}]
    table = _read(tmp_path, "a.parquet", _parquet(tmp_path, rows))
    assert table.columns == {"tools": [[call], [other, call], None], "text": ["a", None, "c"]}
    assert without_filled({"a": [None, {"b": None}]}) == {"a": [None, {}]}


def test_other_separators_of_csv(tmp_path):
    path = _write(tmp_path, "a.csv", 'text;label\n"a, b;c";1\n')
    assert read_table(path, "a.csv", separator=";").columns == {"text": ["a, b;c"], "label": ["1"]}


@pytest.mark.parametrize("mark", [";", "|"])
def test_a_csv_of_another_separator_is_refused_with_the_key_that_reads_it(mark, tmp_path):
    path = _write(tmp_path, "a.csv", f"text{mark}label\na, b{mark}1\n")
    with pytest.raises(JloraError, match=r"separated by ',' .*; found one column") as refused:
        read_table(path, "a.csv")
    assert str(refused.value).endswith(f"set data.separator={mark!r}")
    assert read_table(path, "a.csv", separator=mark).columns["label"] == ["1"]


def test_a_csv_of_tabs_is_refused_with_the_suffix_that_reads_it(tmp_path):
    with pytest.raises(JloraError, match=r"found one column 'text\\tlabel': rename the file to end in \.tsv"):
        _read(tmp_path, "a.csv", "text\tlabel\na\t1\n")


DEEP, LONG = "[" * 100_000, "9" * 5000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}', r"data row 2 \(line 2\): .* \(the key 'c' twice\)"),
        (
            "a.json",
            '[{"a": 1}, {"a": 1, "a": 2}]',
            "data row 2: expected JSON that can be read, found: the key 'a' twice",
        ),
        ("a.json", DEEP, "expected JSON that can be read, found: maximum recursion"),
        ("a.json", f'[{{"text": {LONG}}}]', "expected JSON that can be read, found: Exceeds the limit"),
        (
            "a.jsonl",
            f'{{"text": {DEEP}}}',
            r"data row 1 \(line 1\): expected a JSON object, found '.*' \(maximum recursion",
        ),
        (
            "a.jsonl",
            f'{{"text": "a"}}\n{{"text": {LONG}}}',
            r"data row 2 \(line 2\): expected a JSON object, found '.*' \(Exceeds the limit",
        ),
        (
            "a.jsonl",
            '[\n{"text": "a"}\n]',
            r"data row 1 \(line 1\): expected .*, found '\['\. A file with one list of objects must end in \.json$",
        ),
        (
            "a.jsonl",
            '[{"text": "a"}, {"text": "b"}]',
            r"data row 1: expected an object .*\. A file with one list of objects must end in \.json$",
        ),
    ],
)
def test_json_that_python_cannot_read_is_refused(name, content, message, tmp_path):
    with pytest.raises(JloraError, match=rf"^{name}.*{message}"):
        _read(tmp_path, name, content)


@pytest.mark.parametrize("encoding", ["undefined", "hex", "rot13", "a\0b", ""])
def test_what_is_no_encoding_of_text(encoding, tmp_path):
    with pytest.raises(JloraError, match=r"^data\.encoding=.*: expected the name of a text encoding"):
        _read(tmp_path, "a.csv", "text\na\n", encoding)


@pytest.mark.parametrize(
    "metadata", ["", "{", "[]", "3", "null", '{"info": []}', '{"info": {"features": [1]}}', DEEP, LONG]
)
def test_metadata_of_parquet_that_datasets_did_not_write_is_refused(metadata, tmp_path):
    table = pyarrow.table({"text": ["a"]}).replace_schema_metadata({"huggingface": metadata})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    if metadata == "":
        assert read_table(tmp_path / "a.parquet", "a.parquet").columns == {"text": ["a"]}
        return
    with pytest.raises(JloraError, match=r"^a\.parquet: expected metadata .huggingface. as datasets writes it"):
        read_table(tmp_path / "a.parquet", "a.parquet")


def test_names_of_classes_are_text():
    found = class_names(
        {"a": {"names": ["x"]}, "b": {"names": 3}, "c": {"names": [1]}, "d": 1, "e": {"feature": {"names": ["y"]}}}
    )
    assert found == {"a": ("x",), "e": ("y",)}


def test_a_time_in_parquet_that_python_cannot_hold(tmp_path):
    cells = pyarrow.array([10**16], pyarrow.timestamp("ms"))
    pyarrow.parquet.write_table(pyarrow.table({"when": cells}), tmp_path / "a.parquet")
    with pytest.raises(JloraError, match=r"^a\.parquet, column 'when': a value of type timestamp\[ms\] cannot be read"):
        read_table(tmp_path / "a.parquet", "a.parquet")
