"""YAML: numbers of YAML 1.2, exact round trips, and errors that say where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jlora.errors import JloraError
from jlora.files import yaml12

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc.1-"), inner, max_size=3)
)


@given(values)
def test_what_is_dumped_is_parsed_back(value):
    parsed = yaml12.parse(yaml12.dump({"key": value}), "test")
    assert parsed == {"key": value}
    assert type(parsed["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("5E4", 5e4), ("-.5", -0.5), ("1.", 1.0), ("3", 3), ("12_000", 12000), ("-0", 0),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("[a, 1]", ["a", 1]),
        ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("007", "007"),
        ("0x1f", "0x1f"), (".*query", ".*query"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_scalars(text, value):
    parsed = yaml12.parse(text, "test")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("model: a\ntrain: b: c\n", "line 2, column 9", "mapping values"),
        ("lora:\n\tr: 3\n", "line 2, column 1", "cannot start any token"),
        ("lora:\n  r: 1\n  r: 2\n", "line 3, column 3", "the key 'r' is given twice, first in line 2"),
        ("lora: {r: 1, r: 2}\n", "line 1, column 14", "the key 'r' is given twice"),
        ("model: !!python/object:os.system x\n", "line 1, column 8", "could not determine a constructor"),
        ("a: [1\n", "line 2, column 1", "expected ',' or ']'"),
        ("- a\n- b\n", "", "expected `key: value` lines, found '- a'"),
    ],
)
def test_what_is_wrong_is_located(tmp_path, text, where, what):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(JloraError) as caught:
        yaml12.read_file(path)
    assert str(caught.value).startswith(str(path))
    assert where in str(caught.value)
    assert what in str(caught.value)


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert yaml12.read_file(tmp_path / "a.yaml") == {}


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "sst2.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(JloraError, match=r"nearest: sst2\.yaml in "):
        yaml12.read_file(tmp_path / "sst.yaml")
    with pytest.raises(JloraError, match=r"there is no folder .*none"):
        yaml12.read_file(tmp_path / "none" / "sst.yaml")
    with pytest.raises(JloraError, match="expected UTF-8, found byte 0xe9 at 10"):
        yaml12.read_file(tmp_path / "sst2.yaml")


_NINE = ", ".join(["*a{}"] * 9)
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{_NINE.replace('{}', str(i - 1))}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        *((f"a: !!{tag} {value}", "line 1, column 4", f"expected a value that fits {tag}") for tag, value in [
            ("int", "abc"), ("int", "''"), ("float", "x"), ("float", "''"), ("bool", "maybe"), ("timestamp", "99"),
        ]),
        ("a: !!map x", "line 1, column 4", "expected a mapping node"),
        ("a: !!set [1]", "line 1, column 4", "expected a mapping node"),
        ("a: " + "9" * 5000, "line 1, column 4", "Exceeds the limit"),
        ("[" * 5000, "", "nested too deeply"),
        ("- " * 5000, "", "nested too deeply"),
        (f"{LAUGHS}seed: *a11", "line 6, column 5", "expected at most 20000 values after aliases are expanded"),
        ("a: &a [*a]", "line 1, column 4", "an alias inside its own value"),
        ("a: &a {b: *a}", "line 1, column 4", "an alias inside its own value"),
        ("a: \x1b[2J", "position 3", "#x001b"),
    ],
)  # fmt: skip
def test_whatever_pyyaml_makes_of_a_text_is_one_message(text, where, what):
    with pytest.raises(JloraError) as caught:
        yaml12.parse(text, "a.yaml")
    assert str(caught.value).startswith("a.yaml")
    assert where in str(caught.value)
    assert what in str(caught.value)


def test_aliases_are_taken_where_they_are_few():
    assert yaml12.parse("a: &a [1]\nb: *a\nc: [*a, *a]", "test") == {"a": [1], "b": [1], "c": [[1], [1]]}


def test_a_file_larger_than_any_config_is_not_parsed(tmp_path):
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(JloraError, match=r"a\.yaml: expected at most 1048576 bytes of YAML; found 1099511627776"):
        yaml12.read_file(tmp_path / "a.yaml")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(JloraError, match=rf"^--config {tmp_path}: expected a YAML file, found a folder; give a file$"):
        yaml12.read_file(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(JloraError, match=rf"found a folder: give {tmp_path}/config\.yaml$"):
        yaml12.read_file(tmp_path)
