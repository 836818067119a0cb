"""File, offline block and command line make one config, or one list of all that is wrong."""

import dataclasses
from pathlib import Path

import pytest

import train.lm.config
from jlora.errors import JloraError
from tests.support.training.shipped import CLASSIFIERS, CONFIGS, command_of
from train.classify.config import COMMAND
from train.cli import parse as command_line
from train.cli.parse import Request
from train.cli.resolve import resolve
from train.config.command import Flags
from train.config.run_config import to_yaml
from train.lm.config import LMConfig

FILE = {
    "model": "big",
    "output_dir": "runs/x",
    "data": {
        "train": "owner/set",
        "validation": "owner/set:dev",
        "test": "owner/set:test",
        "text": "sentence",
        "config": "c",
        "max_length": 99,
    },
    "train": {"learning_rate": {"lora": 3e-4, "full": 1e-5}},
    "offline": {
        "model": "package:small/model",
        "data": {
            "train": "package:corpus/rows.csv",
            "label": "sentiment",
            "encoding": "latin-1",
            "label_names": {"pos": "good", "neg": "bad"},
            "drop_other_labels": True,
            "max_rows": 5,
        },
        "train": {"epochs": 1},
    },
}


def parse(argv):
    return command_line.parse_command_line(argv, COMMAND)


def request(*arguments, values=FILE):
    return Request(COMMAND, Path("my.yaml"), values, parse(arguments).overrides, Flags())


def resolved(*arguments, offline=False, values=FILE):
    return resolve(request(*arguments, values=values), offline)


def problems(*arguments, values=FILE):
    with pytest.raises(JloraError) as caught:
        resolved(*arguments, values=values)
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_resolve_and_survive_being_written(path, tmp_path):
    command = command_of(path)
    asked = command_line.parse_command_line(["--config", str(path)], command)
    for offline in [False, True] if "offline" in asked.values else [False]:
        config = resolve(asked, offline)
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        again = command_line.parse_command_line(["--config", str(tmp_path / "config.yaml")], command)
        assert resolve(again, use_offline=False) == config
        assert config.model.startswith("package:") == offline


@pytest.mark.parametrize("path", CLASSIFIERS, ids=lambda path: path.stem)
def test_every_method_is_one_word_away(path):
    for method in ("lora", "full", "head"):
        assert resolve(parse(["--config", str(path), f"method={method}"]), use_offline=False)


def test_shipped_configs_that_must_run_without_a_hub_have_an_offline_block():
    with_block = {path.stem for path in CONFIGS if "offline" in parse(["--config", str(path)]).values}
    assert with_block >= {"sst2", "imdb", "sst2_query_output", "smollm2"}


def test_the_offline_block_is_laid_over_the_file_only_where_it_is_used():
    online, offline = resolved(), resolved(offline=True)
    assert (online.model, online.data.train, online.train.epochs) == ("big", "owner/set", 3)
    assert (offline.model, offline.data.train, offline.train.epochs) == (
        "package:small/model",
        "package:corpus/rows.csv",
        1,
    )
    assert offline.data.text == "sentence"
    assert offline.data.max_length == 99
    assert offline.train.learning_rate == {"lora": 3e-4, "full": 1e-5}


def test_the_offline_data_drops_the_splits_and_hub_keys_of_the_file():
    data = resolved(offline=True).data
    assert (data.validation, data.test, data.config) == (None, None, None)


@pytest.mark.parametrize("offline", [False, True])
def test_the_command_line_beats_both(offline):
    config = resolved("model=mine", "train.epochs=7", "data.max_length=5", offline=offline)
    assert (config.model, config.train.epochs, config.data.max_length) == ("mine", 7, 5)


@pytest.mark.parametrize("offline", [False, True])
def test_data_given_on_the_command_line_is_read_with_the_files_columns_and_nothing_of_another_source(offline):
    data = resolved("data.train=my.tsv", offline=offline).data
    expected = {"train": "my.tsv", "text": "sentence", "max_length": 99}
    assert data.model_dump(exclude_defaults=True) == expected


def test_what_is_given_with_the_data_stays():
    given = ["data.validation=dev.tsv", "data.label=score", "data.train=my.tsv", "data.encoding=latin-1"]
    for offline in (False, True):
        data = resolved(*given, offline=offline).data
        assert (data.validation, data.test) == ("dev.tsv", None)
        assert (data.label, data.encoding, data.label_names) == ("score", "latin-1", None)


def test_other_data_keys_on_the_command_line_keep_the_source():
    data = resolved("data.max_rows=3", offline=True).data
    assert (data.train, data.label, data.max_rows) == ("package:corpus/rows.csv", "sentiment", 3)


def test_one_entry_of_a_mapping():
    assert resolved("train.learning_rate.full=2e-5").train.learning_rate == {"lora": 3e-4, "full": 2e-5}
    assert resolved("train.learning_rate=0.1").train.learning_rate == 0.1
    assert resolved("lora.rank_pattern.layer.0.query=4").lora.rank_pattern == {"layer.0.query": 4}


def test_the_offline_block_can_be_changed_and_made_on_the_command_line():
    assert resolved("offline.train.epochs=9", offline=True).train.epochs == 9
    without = {key: value for key, value in FILE.items() if key != "offline"}
    assert resolved("offline.model=small", offline=True, values=without).model == "small"


def test_empty_sections_and_dotted_keys_in_a_file():
    values = {**FILE, "lora": None, "train": {}, "train.epochs": 5, "offline": None}
    assert resolved(values=values).train.epochs == 5
    assert "lora.r: given twice" in problems(values={**FILE, "lora": {"r": 1}, "lora.r": 2})


def test_no_config_file():
    config = resolve(parse(["model=m", "data.train=owner/set", "output_dir=o"]), use_offline=False)
    assert (config.model, config.data.train) == ("m", "owner/set")
    with pytest.raises(JloraError, match="3 problems") as caught:
        resolve(parse([]), use_offline=False)
    assert all(f"  {key}: missing; expected text" in str(caught.value) for key in ("model", "data.train", "output_dir"))
    assert "--config FILE" in str(caught.value)


def test_all_problems_are_listed_with_key_expected_found_and_nearest():
    values = {
        **FILE,
        "sed": 1,
        "lora": {"rr": 2, "target_module": ["query"], "r": 0},
        "train": {"dtype": "bfloat", "batch_size": "32", "remat": None, "weight_decay": [1]},
        "export": 3,
    }
    found = problems("train.epochs=-1", "data.max_len=3", values=values)
    assert found.startswith("my.yaml: 11 problems")
    for line in [
        "  sed: unknown key; did you mean seed?",
        "  lora.rr: unknown key; did you mean lora.r?",
        "  lora.target_module: unknown key; did you mean lora.target_modules?",
        "  lora.r: expected whole number >= 1 and <= 65536; found 0",
        "  train.dtype: expected auto, float32 or bfloat16; found the text 'bfloat'; nearest: bfloat16, float32",
        "  train.batch_size: expected whole number >= 1; found the text '32'",
        "  train.remat: expected true or false; found null",
        "  train.weight_decay: expected number >= 0; found the list [1]",
        "  export: expected a mapping of keys such as export.merged; found 3",
        "  train.epochs (command line): expected number > 0; found -1",
        "  data.max_len (command line): unknown key; did you mean data.max_length?",
    ]:
        assert line in found.splitlines()


def test_a_hundred_problems_fit_on_a_screen():
    values = {**FILE, "lora": {f"key{n}": "x" * 9999 for n in range(100)}}
    found = problems(values=values)
    assert found.startswith("my.yaml: 100 problems")
    assert len(found.splitlines()) <= 24
    assert "  and 80 more" in found


def test_the_offline_block_is_checked_even_where_it_is_not_used():
    values = {**FILE, "offline": {**FILE["offline"], "train": {"epoch": 1, "batch_size": 0}, "seed": "x"}}
    found = problems("offline.lora.r=0", values=values)
    assert "  offline.train.epoch: unknown key; did you mean train.epochs?" in found
    assert "  offline.train.batch_size: expected whole number >= 1; found 0" in found
    assert "  offline.seed: expected whole number >= 0 and < 4294967296; found the text 'x'" in found
    assert "  offline.lora.r (command line): expected whole number >= 1 and <= 65536; found 0" in found
    assert "offline: expected a mapping" in problems(values={**FILE, "offline": "model"})


def test_without_an_offline_block_one_screen_says_what_to_do():
    values = {key: value for key, value in FILE.items() if key != "offline"}
    with pytest.raises(JloraError) as caught:
        resolved(offline=True, values=values)
    found = str(caught.value)
    assert found.startswith("my.yaml: no `offline:` block")
    for words in [
        "big, owner/set",
        "hf download big",
        "load_dataset('owner/set', 'c')",
        "model=FOLDER data.train=FILE",
    ]:
        assert words in found
    assert len(found.splitlines()) < 20


def test_without_an_offline_block_what_is_local_needs_none(tmp_path):
    (tmp_path / "rows.tsv").touch()
    values = {key: value for key, value in FILE.items() if key != "offline"}
    local = [f"model={tmp_path}", f"data.train={tmp_path / 'rows.tsv'}"]
    assert resolved(*local, offline=True, values=values) == resolved(*local, values=values)


def test_an_offline_block_holds_no_other():
    with pytest.raises(JloraError, match=r"my\.yaml: offline\.offline: expected one offline block"):
        resolved(values={**FILE, "offline": {"offline": {"model": "m"}}})


def test_the_schema_is_that_of_the_command():
    arguments = ["model=m", "output_dir=o", "data.train=owner/chats", "quantize=nf4"]
    found = resolve(command_line.parse_command_line(arguments, train.lm.config.COMMAND), use_offline=False)
    assert (type(found), found.quantize) == (LMConfig, "nf4")
    with pytest.raises(JloraError, match="quantize: unknown key"):
        resolve(parse(arguments), use_offline=False)
    with pytest.raises(JloraError, match=r"such as configs/smollm2\.yaml"):
        resolve(command_line.parse_command_line([], train.lm.config.COMMAND), use_offline=False)


def test_chats_given_on_the_command_line_are_read_as_they_are_written():
    file = {"data": {"train": "owner/chats", "format": "messages", "sample_by": "line", "max_length": 64}}
    given = Request(train.lm.config.COMMAND, Path("my.yaml"), {**file, "model": "m", "output_dir": "o"}, {}, Flags())
    assert resolve(given, use_offline=False).data.format == "messages"
    data = resolve(dataclasses.replace(given, overrides={"data.train": "my.txt"}), use_offline=False).data
    assert (data.format, data.sample_by, data.max_length) == (None, "document", 64)
