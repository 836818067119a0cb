import os
import stat

import pytest

from jlora.files.replace_file import replace_file, write_folder_to_disk


@pytest.fixture
def done(monkeypatch):
    """What is written to the disk, in order, with "renamed" where a name changes."""
    events, synced, replace = [], os.fsync, os.replace

    def fsync(descriptor):
        found = os.fstat(descriptor)
        events.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("renamed"), replace(*paths)))
    return events


def test_the_data_is_on_the_disk_before_the_name_and_the_name_after(done, tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "new").write_text("newer")
    replace_file(tmp_path / "new", tmp_path / "a")
    assert done == [5, "renamed", "folder"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "newer"


def test_a_folder_is_written_with_all_that_is_in_it(done, tmp_path):
    (tmp_path / "new" / "in").mkdir(parents=True)
    (tmp_path / "new" / "in" / "b").write_text("xyz")
    replace_file(tmp_path / "new", tmp_path / "a")
    assert done == ["folder", 3, "folder", "renamed", "folder"]
    assert (tmp_path / "a" / "in" / "b").read_text() == "xyz"


def test_a_disk_that_cannot_hold_the_data_keeps_the_old_file(monkeypatch, tmp_path):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("old")
    (tmp_path / "new").write_text("newer")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "new", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    write_folder_to_disk(tmp_path)  # a filesystem that cannot do it for folders is no error
