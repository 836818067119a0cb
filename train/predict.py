"""Label new text: jlora predict --model RUN_OR_FOLDER --input texts.csv --output labelled.csv."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from jlora.closed_pipe import end_quietly
from jlora.errors import JloraError
from jlora.files import yaml12
from jlora.files.path_checks import as_path
from jlora.files.run_folder import is_run
from jlora.pretrained.locate import settle_hub
from jlora.printable import counted
from train.classify import metrics
from train.classify.classifier import open_trained
from train.classify.config import Config, DataConfig
from train.classify.data.labels import Labels, encode_labels
from train.classify.data.splits import Split, make_split
from train.classify.data.tokens import require_fitting_length
from train.classify.evaluate import scores
from train.classify.predictions import format_prediction
from train.cli import arguments
from train.cli.exit_codes import exit_code, require_new_file, show
from train.cli.log_slow_steps import working
from train.cli.without_torch import keep_torch_from_transformers
from train.config.validate import describe_mismatch, flatten
from train.data.read_tables import read_tables
from train.data.table_files import Table
from train.devices.compilation import use_compilation_cache
from train.sources.refuse_overwrite import require_kept

logger = logging.getLogger(__name__)

_OF_THE_RUN = ("text", "text_pair", "label", "label_names", "drop_other_labels", "max_length", "separator")
_FLAGS = {name: name for name in ("text", "text_pair", "label", "max_length", "encoding", "separator")}
_FLAGS |= {"train": "input", "test": "input"}
"""{key of `data`: the flag that sets it}."""
_KEY = re.compile(rf"(?<![\w./\\-])data\.({'|'.join(_FLAGS)})(?![\w/-]|\.\w)(=?)")
"""Matches a key in a message, but not a file name such as `data.test.csv`."""


def main(argv: Sequence[str]) -> int:
    """Runs `jlora predict`; returns 0, or 2 after an error that the user can fix (printed on stderr).

    Args:
      argv: the flags of `arguments.make_predict_parser`: ["--model", "M", "--input", "in.csv", "--output", "out.csv"]
        writes out.csv with the columns of in.csv, `predicted`, and for classes the probability of each. An output that
        exists, without --overwrite, is an error. With --evaluate the metrics are printed.
    """
    use_compilation_cache()
    return exit_code(lambda: _predict(arguments.make_predict_parser().parse_args(argv)))


def _predict(options: argparse.Namespace) -> None:
    require_new_file("--output", options.output, options.overwrite)
    require_kept({"--input": options.input}, [options.output], "give another --output")
    config = _data_config(options)
    settle_hub(options.input)
    with _keys_as_flags():  # before the model, which takes longer
        tables = read_tables(options.input, "test", config)
        rows = make_split(tables, config, "test", labelled=options.evaluate)
        source = open_trained(options.model, options.base)
        require_fitting_length(config.max_length, source.tokenizer, pairs=rows.text_pair is not None)
    with working(f"reading {options.model}"):
        trained = source.load()
    # Raises for wrong labels before anything is computed.
    encoded = encode_labels(rows, trained.labels, "test") if options.evaluate else None
    with working(f"labelling {counted(len(rows), 'row')}"), _keys_as_flags():
        logits = trained.logits(rows, config.max_length, options.batch_size)
    _write(options.output, _columns(tables[0], rows), logits, trained.labels)
    logger.info("%s labelled: %s", counted(len(rows), "row"), options.output)
    if encoded is not None:
        found = scores(trained.labels.problem_type, logits, encoded)
        show("  ".join(f"{name} {value:.4f}" for name, value in found.items()) or "no row is labelled")


def _data_config(options: argparse.Namespace) -> DataConfig:
    """Takes columns and length from the command line, or else from the run that --model belongs to.

    Raises:
      JloraError: an invalid value, with its flag or its place in the run's file.
    """
    ran: dict[str, Any] = {}
    folder = as_path(options.model)
    stored = next((place / "config.yaml" for place in (folder, folder.parent) if is_run(place)), None)
    if stored is not None:
        written = flatten(yaml12.read_file(stored), Config)
        ran = {name: written[f"data.{name}"] for name in _OF_THE_RUN if f"data.{name}" in written}
    flags = {name: flag for name, flag in _FLAGS.items() if name != "test"}
    given = {name: value for name, flag in flags.items() if (value := getattr(options, flag)) is not None}
    values = ran | given
    try:
        return DataConfig(**values)
    except ValidationError as error:
        detail = error.errors()[0]
        if not detail["loc"]:  # a check across keys, whose message starts with the key
            raise JloraError(f"{stored}: {detail['ctx']['error']}") from None
        name = str(detail["loc"][0])
        place = _flag(name) if name in given else f"{stored}: data.{name}"
        raise JloraError(f"{place}: {describe_mismatch(DataConfig.model_fields[name], values[name])}") from None


@contextmanager
def _keys_as_flags() -> Iterator[None]:
    """Replaces configuration keys in errors by this command's flags."""
    try:
        yield
    except JloraError as error:
        text = _KEY.sub(lambda found: _flag(found[1]) + " " * bool(found[2]), str(error))
        raise type(error)(text) from error


def _flag(key: str) -> str:
    return f"--{_FLAGS[key].replace('_', '-')}"


def _columns(table: Table, rows: Split) -> dict[str, list[Any]]:
    """Returns {column: values} of the input for the labelled rows; lists and objects become JSON text."""
    columns = {name: [values[row - 1] for row in rows.row] for name, values in table.columns.items()}
    return {
        name: [json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else cell for cell in cells]
        for name, cells in columns.items()
    }


def _write(path: Path, columns: dict[str, list[Any]], logits: np.ndarray, labels: Labels) -> None:
    """Writes the CSV: the input's columns, then predictions. Names that the input already has get `predicted `."""
    shown = metrics.probabilities(labels.problem_type, logits)
    ours: list[str] = []
    for name in ["predicted", *([] if labels.problem_type == "regression" else labels.names)]:
        while name in columns or name in ours:
            name = f"predicted {name}"
        ours.append(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *ours])
        for row, values in enumerate(shown):
            numbers = [] if labels.problem_type == "regression" else [f"{value:.6f}" for value in values]
            writer.writerow(
                [*(column[row] for column in columns.values()), format_prediction(labels, values), *numbers]
            )


if __name__ == "__main__":
    keep_torch_from_transformers()
    sys.exit(end_quietly(lambda: main(sys.argv[1:])))
