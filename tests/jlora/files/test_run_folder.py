import pytest

from jlora.files.run_folder import find_adapter, say_what_is_inside


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
    assert said == ". This is the folder of a run without adapter/, which it writes at its end: finish it with --resume"


def test_a_run_without_a_merged_model_names_its_adapter(tmp_path):
    adapter = _run(tmp_path) / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    said = say_what_is_inside(tmp_path, name="merged", file="config.json")
    assert "export.merged was false. It has adapter/" in said
    assert said.endswith(f"give {adapter} as the adapter, with its base")


@pytest.mark.parametrize(
    ("there", "expected", "file"),
    [
        ("config.json", ". It has config.json: this is a model; give it as the base (--base)", "adapter_config.json"),
        ("adapter_config.json", ". It has adapter_config.json: this is an adapter; give the model that", "config.json"),
        (
            "adapter_model.safetensors",
            ". It has adapter_model.safetensors: copy adapter_config.json",
            "adapter_config.json",
        ),
        ("checkpoint-5/config.json", ". There is one in checkpoint-5: give ", "config.json"),
        ("", ". It is empty", "config.json"),
    ],
)
def test_what_else_a_folder_is(there, expected, file, tmp_path):
    if there:
        (tmp_path / there).parent.mkdir(exist_ok=True)
        (tmp_path / there).write_text('{"base_model_name_or_path": "org/m"}')
    said = say_what_is_inside(tmp_path, name="merged", file=file)
    assert said.startswith(expected)
    assert there != "adapter_config.json" or said.endswith(", org/m")


def test_any_other_folder_is_not_called_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")  # without manifest.json
    assert say_what_is_inside(tmp_path, name="merged", file="config.json") == ""


def test_the_adapter_is_in_the_folder_or_in_that_of_a_run(tmp_path):
    assert find_adapter(tmp_path / "none") is None
    for there in (tmp_path / "run" / "adapter", tmp_path / "plain"):
        there.mkdir(parents=True)
        (there / "adapter_config.json").write_text("{}")
    assert find_adapter(tmp_path / "run") == tmp_path / "run" / "adapter"
    assert find_adapter(tmp_path / "plain") == tmp_path / "plain"
