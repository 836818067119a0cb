import errno

import pytest

from jlora.files.atomic_folder import whole_folder


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_come_together_and_replace_those_of_before(tmp_path):
    (tmp_path / "a").write_text("older")
    (tmp_path / "weights-1").touch()
    (tmp_path / "kept").touch()
    with whole_folder(tmp_path, stale=("weights-*",)) as partial:
        (partial / "a").write_text("newer")
        (partial / "b").touch()
        assert (tmp_path / "a").read_text() == "older"
        assert not (tmp_path / "b").exists()
    assert _names(tmp_path) == ["a", "b", "kept"]
    assert (tmp_path / "a").read_text() == "newer"


def test_those_named_last_come_last(tmp_path, monkeypatch):
    moved = []
    replace = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: (moved.append(self.name), replace(self, to)))
    with whole_folder(tmp_path / "new", last=("b",)) as partial:
        for name in "abc":
            (partial / name).touch()
    assert moved[-1] == "b"
    assert _names(tmp_path / "new") == ["a", "b", "c"]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_block_that_fails_changes_nothing(is_new, tmp_path):
    folder = tmp_path / "new" if is_new else tmp_path
    with pytest.raises(ZeroDivisionError), whole_folder(folder, stale=("*",)) as partial:  # noqa: PT012
        (partial / "a").touch()
        raise ZeroDivisionError
    assert _names(tmp_path) == []


def test_folders_are_replaced_too(tmp_path):
    for text in ("older", "newer"):
        with whole_folder(tmp_path / "new") as partial:
            (partial / "templates").mkdir()
            (partial / "templates" / text).touch()
    assert _names(tmp_path / "new" / "templates") == ["newer"]


def test_what_a_killed_process_left_is_no_part_of_the_next(tmp_path):
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "left").touch()
    with whole_folder(tmp_path) as partial:
        (partial / "a").touch()
    assert _names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no room"), Exception("No space left on device (os error 28)")]
)
def test_the_disks_errors_name_the_folder(error, tmp_path):
    with pytest.raises(OSError, match="No space left on device") as caught, whole_folder(tmp_path):
        raise error
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path)


def test_other_errors_name_their_own_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer"), whole_folder(tmp_path):
        (tmp_path / "tokenizer.json").read_text()
