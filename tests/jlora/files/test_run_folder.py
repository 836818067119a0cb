from jlora.files.run_folder import say_what_is_inside


def _run(folder):
    for name in ("config.yaml", "manifest.json"):
        (folder / name).write_text("{}")
    return folder


def test_the_folder_inside_a_run_is_named(tmp_path):
    merged = _run(tmp_path) / "merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    said = say_what_is_inside(tmp_path, name="merged", file="config.json")
    assert said.endswith(f"This is the folder of a run: give {merged}")


def test_a_run_that_has_not_exported_is_called_that(tmp_path):
    said = say_what_is_inside(_run(tmp_path), name="adapter", file="adapter_config.json")
    assert "has not written adapter/" in said


def test_any_other_folder_is_not_called_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    assert say_what_is_inside(tmp_path, name="merged", file="config.json") == ""
