"""Flags, and overrides with their values."""

import pytest

import train.lm.config
from jlora.errors import JloraError
from train.classify.config import COMMAND
from train.cli import parse as command_line
from train.cli.parse import Request
from train.config.command import Flags


def parse(argv):
    return command_line.parse_command_line(argv, COMMAND)


def value_of(argument):
    (value,) = parse([argument]).overrides.values()
    return value


def test_file_overrides_and_flags_in_any_order(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("lora: {r: 8}")
    request = parse(["lora.r=4", "--config", str(path), "--dry-run", "seed=1", "--offline", "seed=2"])
    expected = Flags(offline=True, dry_run=True)
    assert request == Request(COMMAND, path, {"lora": {"r": 8}}, {"lora.r": 4, "seed": 2}, expected)


def test_nothing_is_on_unless_given():
    assert parse([]) == Request(COMMAND, None, {}, {}, Flags(False, False, False, False, False, False))


@pytest.mark.parametrize("name", ["offline", "resume", "overwrite", "dry_run", "verbose"])
def test_each_flag_sets_its_own_switch(name):
    assert parse([f"--{name.replace('_', '-')}"]).flags == Flags(**{name: True})


def test_a_flag_of_another_command_is_unknown():
    assert command_line.parse_command_line(["--preview"], train.lm.config.COMMAND).flags == Flags(preview=True)
    with pytest.raises(JloraError, match="unknown flag --preview"):
        parse(["--preview"])


def test_flags_with_values():
    assert parse(["--coordinator=node0:1234", "--process", "1", "--processes", "4"]).flags == Flags(
        coordinator="node0:1234", process=1, processes=4
    )
    planned = command_line.parse_command_line(
        ["--dry-run", "--mesh", "data=2,fsdp=4", "--chip=h100"], train.lm.config.COMMAND
    )
    assert planned.flags == Flags(dry_run=True, mesh="data=2,fsdp=4", chip="h100")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mesh=data=2"], "expected with --dry-run; a run takes mesh.data=N"),
        (["--dry-run", "--chip=h100"], "expected with --mesh"),
    ],
)
def test_a_plan_is_a_dry_run_with_a_mesh(flags, message):
    with pytest.raises(JloraError, match=message):
        command_line.parse_command_line(flags, train.lm.config.COMMAND)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("train.learning_rate=1e-3", 1e-3),
        ("train.learning_rate={lora: 1e-3}", {"lora": 1e-3}),
        ("train.learning_rate.full=5e-5", 5e-5),
        ("lora.rank_pattern.layer.0=4", 4),
        ("train.remat=true", True),
        ("train.max_steps=null", None),
        ("train.max_steps=", None),
        ("train.epochs=many", "many"),
        ("lora.init_lora_weights=false", False),
        ("lora.init_lora_weights=gaussian", "gaussian"),
        # text is taken as it stands
        ("data.label=1", "1"),
        ("data.revision=12e4567", "12e4567"),
        ("data.text='1'", "1"),
        ("model=a: b", "a: b"),
        ("data.train=a=b.csv", "a=b.csv"),
        # lists
        ("lora.target_modules=q_proj,v_proj", ["q_proj", "v_proj"]),
        ("lora.target_modules=query,output.dense", ["query", "output.dense"]),
        ("lora.target_modules=[query, output.dense]", ["query", "output.dense"]),
        ("lora.target_modules=[]", []),
        ("lora.target_modules=all-linear", "all-linear"),
        ("lora.target_modules=query", "query"),
        (r"lora.target_modules=.*\.[0-9]{1,2}\.(q|k,v)", r".*\.[0-9]{1,2}\.(q|k,v)"),
        ("lora.target_modules=null", None),
        ("lora.modules_to_save=classifier", ["classifier"]),
        ("lora.modules_to_save=[]", []),
        ("lora.trainable_token_indices=5,7", [5, 7]),
        ("lora.init_lora_weights=pissa_niter_4", "pissa_niter_4"),
        ("lora.layers_to_transform=3", 3),
        ("lora.layers_to_transform=0,3", [0, 3]),
        ("data.label_names=0,1", ["0", "1"]),
        ("data.label_names={0: bad, 1: good}", {0: "bad", 1: "good"}),
        ("data.train=a.csv, b.csv", ["a.csv", "b.csv"]),
        ("data.train=a.csv", "a.csv"),
        # the offline block's keys have the same types, unknown keys are YAML
        ("offline.data.label=1", "1"),
        ("no.such.key=1", 1),
    ],
)
def test_values(argument, value):
    found = value_of(argument)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lora.r"], "expected key=value, such as lora.r=4, found 'lora.r'"),
        (["=4"], "expected key=value"),
        (["--lora.r=4"], "did you mean lora.r=4, without dashes?"),
        (["--ofline"], "; nearest: --offline"),
        (["--resum"], "; nearest: --resume"),
        (["--config"], "argument --config: expected one argument"),
        (["--process", "first"], "argument --process: invalid int value: 'first'"),
        (["--resume=yes"], "argument --resume: ignored explicit argument"),
        (["lora.target_modules=[a"], "command line, lora.target_modules=[a, line 1"),
        (["--config", "no/such.yaml"], "no/such.yaml: expected a YAML file, found no such file"),
    ],
)
def test_what_cannot_be_read_is_refused(arguments, message):
    with pytest.raises(JloraError) as caught:
        parse(arguments)
    assert message in str(caught.value)
