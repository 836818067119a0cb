"""An epoch of SST-2, from process start to the merged model: python -m benchmarks.epoch [--dropout] [--data FOLDER].

`train.classify` with nothing cached is compared with a script as PEFT's users write it
(benchmarks.classify.peft_script): the same
base, rows, recipe and outputs. A run of each takes minutes, so the default is a single round.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.commands import timed_command
from benchmarks.common.timing import take_turns
from benchmarks.common.work import FOLDER, Work
from benchmarks.steps import make_inputs

ROWS = {"train": 6920, "validation": 872}
"""The numbers of rows of SST-2, as in the Stanford release."""
DATA = FOLDER / "data"
"""Where `make_data` writes."""
_WORK = Work("minilm", 32, 64)


def main(argv: Sequence[str]) -> int:
    """Runs the command and prints its result as JSON; 0 is success."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epoch", description=__doc__)
    parser.add_argument("--dropout", action="store_true", help="of model and adapter")
    parser.add_argument("--rounds", metavar="N", type=int, default=1, help="(default 1)")
    parser.add_argument("--data", metavar="FOLDER", type=Path, help="default: offline data")
    flags = parser.parse_args(argv)
    print(json.dumps(run(flags.dropout, flags.rounds, flags.data)))
    return 0


def run(dropout: bool, rounds: int, data: Path | None = None) -> dict[str, Any]:
    """{"dropout", "rows", "sides": {side: [{"seconds", "cpu_seconds", "peak_bytes", "first_step"}, one a round]}}.

    Args:
      data: a folder with train.jsonl and validation.jsonl, rows of {"sentence", "label"}; None: offline data.
    """
    make_inputs(_WORK)
    if data is None:
        make_data()
    folder = data or DATA
    sides = {
        "jlora": partial(_jlora, dropout, "float32", folder),
        "peft": partial(_peft, dropout, folder),
        "jlora:bfloat16": partial(_jlora, dropout, "bfloat16", folder),
    }
    turns = take_turns(sides, rounds)
    return {
        "dropout": dropout,
        "rows": {split: len(_data_file(folder, split).read_bytes().splitlines()) for split in ROWS},
        "sides": {side: [result for _, result in found] for side, found in turns.items()},
    }


def make_data() -> None:
    """Writes {"sentence", "label"} rows of the recipe's offline data to DATA, as many as SST-2 has."""
    if all(_data_file(DATA, split).exists() for split in ROWS):
        return
    from benchmarks.classify.setup import read_config  # loads PyTorch, needed only here
    from train.classify.data.splits import load_data
    from train.data.random_streams import Stream, permutation

    config = read_config(None, None)
    source = config.data.model_copy(update={"validation": None, "max_rows": 8800, "test_fraction": None})
    splits = load_data(source, 0, config.task).splits
    names = sorted(set(splits["train"].label))
    for split, number in ROWS.items():
        order = permutation(len(splits[split]), Stream.BENCHMARK_ROWS, 0)  # the rows are sorted by class
        found = splits[split].take(order[:number])
        rows = zip(found.text, found.label, strict=True)
        lines = [json.dumps({"sentence": text, "label": names.index(label)}) for text, label in rows]
        DATA.mkdir(parents=True, exist_ok=True)
        _data_file(DATA, split).write_text("\n".join(lines) + "\n")


def _data_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.jsonl"


def training_command(folder: str, dropout: bool, dtype: str, data: Path = DATA) -> list[str]:
    """Python's arguments for our command, which writes its run to `folder`. `dtype` is a value of train.dtype."""
    given = [f"model={_WORK.base}", f"data.train={_data_file(data, 'train')}"]
    given += [f"data.validation={_data_file(data, 'validation')}"]
    given += [
        f"train.dtype={dtype}",
        "data.max_length=64",
        "train.epochs=1",
        "train.learning_rate=1e-3",
        "train.eval_on_start=false",  # the script does not either
        f"output_dir={folder}/run",
    ]
    given += [f"train.dropout={str(dropout).lower()}", f"lora.lora_dropout={0.1 if dropout else 0.0}"]
    return ["-m", "train.classify", "--config", "configs/sst2.yaml", *given]


def script_command(folder: str, dropout: bool, data: Path = DATA) -> list[str]:
    """Python's arguments for the PEFT user's script, which writes to `folder`."""
    given = ["--model", str(_WORK.base), "--train", str(_data_file(data, "train"))]
    given += ["--validation", str(_data_file(data, "validation")), "--out", folder]
    return ["-m", "benchmarks.classify.peft_script", *given, *["--dropout"] * dropout]


def _jlora(dropout: bool, dtype: str, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = timed_command(training_command(folder, dropout, dtype, data), {"XDG_CACHE_HOME": folder})
        report = json.loads(Path(folder, "run", "report.json").read_text())
    return {**found, "metrics": report["metrics"], "times": report["times"]}


def _peft(dropout: bool, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return timed_command(script_command(folder, dropout, data))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
