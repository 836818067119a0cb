import os

import pytest

from jlora.files.drop_oldest import drop_oldest


def _make_files(folder, used):
    (folder / "a folder").mkdir()
    for name, seconds in used.items():
        (folder / name).write_bytes(b"x" * 10)
        os.utime(folder / name, (seconds, 0))


def _names(folder):
    return {path.name for path in folder.iterdir()} - {"a folder"}


@pytest.mark.parametrize(("most_bytes", "most_files"), [(39, 9), (99, 3)])
def test_the_files_used_longest_ago_are_deleted(most_bytes, most_files, tmp_path):
    _make_files(tmp_path, {"a": 4, "b": 1, "c": 3, "d": 2})
    drop_oldest(tmp_path, most_bytes, most_files)
    assert _names(tmp_path) == {"a", "c"}
    assert (tmp_path / "a folder").is_dir()


def test_the_newest_stays_whatever_its_size(tmp_path):
    _make_files(tmp_path, {"a": 2, "b": 1})
    drop_oldest(tmp_path, 1, 1)
    assert _names(tmp_path) == {"a"}


def test_files_that_fit_stay(tmp_path):
    _make_files(tmp_path, {"a": 4, "b": 1})
    drop_oldest(tmp_path, 20, 2)
    drop_oldest(tmp_path / "none", 0, 0)
    assert _names(tmp_path) == {"a", "b"}
