"""Label new text: python -m train.predict --model RUN_OR_FOLDER --input texts.csv --output labelled.csv."""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jlora.errors import JloraError
from train import yaml_text
from train.classify import metrics
from train.classify.config import Config, DataConfig
from train.classify.data import Split, rows_of
from train.classify.evaluate import scores
from train.classify.finish import predicted
from train.classify.labels import Labels, encode
from train.classify.trained import load_trained
from train.compilation import use_compilation_cache
from train.entry import exit_code, whole_number
from train.read import read_tables
from train.sources import settle_hub
from train.tables import Table
from train.validation import flatten
from train.without_torch import keep_torch_from_transformers

logger = logging.getLogger(__name__)

_OF_THE_RUN = ("text", "text_pair", "label", "label_names", "drop_other_labels", "max_length")


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend."""
    use_compilation_cache()
    return exit_code(lambda: _predict(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train.predict", description=__doc__)
    parser.add_argument("--model", required=True, help="run folder, merged/ or adapter/ folder (PEFT's too)")
    parser.add_argument("--base", help="base model of an adapter; default: the one that the adapter names")
    parser.add_argument("--input", required=True, help="texts: .csv .tsv .json .jsonl .parquet")
    parser.add_argument(
        "--output", required=True, type=Path, help="CSV to write: the input's columns, predicted, probabilities"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --output where it exists")
    parser.add_argument("--evaluate", action="store_true", help="also report metrics; needs the label column")
    for name, meaning in (
        ("text", "column of the text"),
        ("text-pair", "column of the second text"),
        ("label", "column of the label, for --evaluate"),
        ("encoding", "encoding of the input file"),
    ):
        parser.add_argument(f"--{name}", help=f"{meaning}; default: as the run had it, or data.{name}'s default")
    parser.add_argument("--separator", choices=(",", ";", "|"), help="what separates the fields of a .csv input")
    parser.add_argument("--max-length", type=whole_number(4), help="tokens a row; default: as the run had it, or 128")
    parser.add_argument("--batch-size", type=whole_number(1), default=64, help="rows a batch (64)")
    return parser


def _predict(options: argparse.Namespace) -> None:
    if options.output.exists() and not options.overwrite:
        raise JloraError(f"--output: {options.output}: exists; name another file, or give --overwrite")
    config = _data_config(options)
    settle_hub(options.input)
    tables = read_tables(options.input, "test", config)
    rows = rows_of(tables, config, "test", labelled=options.evaluate)
    trained = load_trained(options.model, options.base)
    # Wrong labels are said before anything is computed.
    encoded = encode(rows, trained.labels, "test") if options.evaluate else None
    logits = trained.logits(rows, config.max_length, options.batch_size)
    _write(options.output, rows, logits, trained.labels, _others(tables[0], rows, config))
    logger.info("%d rows labelled: %s", len(rows), options.output)
    if encoded is not None:
        found = scores(trained.labels.problem_type, logits, encoded)
        print("  ".join(f"{name} {value:.4f}" for name, value in found.items()) or "no row is labelled")


def _data_config(options: argparse.Namespace) -> DataConfig:
    """Columns and length: the command line's, or else those of the run that --model is (a folder of)."""
    values: dict[str, Any] = {"train": options.input}
    folder = Path(options.model).expanduser()
    stored = next((f for f in (folder / "config.yaml", folder.parent / "config.yaml") if f.is_file()), None)
    if stored is not None:
        ran = flatten(yaml_text.read_file(stored), Config)
        values |= {name: ran[f"data.{name}"] for name in _OF_THE_RUN if f"data.{name}" in ran}
    given = {
        name: getattr(options, name) for name in ("text", "text_pair", "label", "max_length", "encoding", "separator")
    }
    return DataConfig(**(values | {name: value for name, value in given.items() if value is not None}))


def _others(table: Table, rows: Split, config: DataConfig) -> dict[str, list[Any]]:
    """The input's other columns, such as an id: {name: values}."""
    names = [name for name in table.columns if name not in (config.text, config.text_pair)]
    return {name: [table.columns[name][row - 1] for row in rows.row] for name in names}


def _write(path: Path, rows: Split, logits: np.ndarray, labels: Labels, others: dict[str, list[Any]]) -> None:
    """The CSV: the input's other columns, the texts, what is predicted. A name that is taken is left out, and said."""
    shown = metrics.probabilities(labels.problem_type, logits)
    pairs = [] if rows.text_pair is None else ["text_pair"]
    ours = ["text", *pairs, "predicted", *([] if labels.problem_type == "regression" else labels.names)]
    if taken := [name for name in others if name in ours]:
        logger.warning("columns of the input that are not kept, as the output has its own: %s", ", ".join(taken))
    kept = [values for name, values in others.items() if name not in ours]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([*(name for name in others if name not in ours), *ours])
        for row, values in enumerate(shown):
            texts = [rows.text[row]] + ([rows.text_pair[row]] if rows.text_pair is not None else [])
            numbers = [] if labels.problem_type == "regression" else [f"{value:.6f}" for value in values]
            writer.writerow([*(column[row] for column in kept), *texts, predicted(labels, values), *numbers])


if __name__ == "__main__":
    keep_torch_from_transformers()
    sys.exit(main(sys.argv[1:]))
