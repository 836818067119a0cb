"""Misspelt names find what was meant."""

from train.nearest import nearest, nearest_file


def test_the_nearest_name_or_none():
    assert nearest("batchsize", ["batch_size", "epochs"]) == "batch_size"
    assert nearest("zzz", ["batch_size", "epochs"]) is None


def test_the_nearest_file_of_the_folder(tmp_path):
    (tmp_path / "sst2.yaml").touch()
    assert nearest_file(tmp_path / "sst3.yaml") == f"; did you mean {tmp_path / 'sst2.yaml'}?"
    assert nearest_file(tmp_path / "zzz") == f" in {tmp_path}"
    assert "there is no folder" in nearest_file(tmp_path / "none" / "sst2.yaml")
