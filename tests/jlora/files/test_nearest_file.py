from __future__ import annotations

from jlora.files.nearest_file import nearest_file


def test_a_file_that_nothing_is_like_is_named_with_its_folder(tmp_path):
    assert nearest_file(tmp_path / "zzz") == f" in {tmp_path}"
    assert "there is no folder" in nearest_file(tmp_path / "none" / "sst2.yaml")
