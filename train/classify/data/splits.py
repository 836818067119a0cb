"""Reads the splits of a data set from files or the hub, names their labels, splits rows off and samples them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jlora.errors import JloraError
from jlora.printable import counted
from train.classify.data.label_values import are_class_ids, as_key, is_yes, label_kind, parse_lists, to_class_id
from train.data.bad_rows import note_left_out, read_each
from train.data.random_streams import SAMPLE_STREAMS, SPLIT_STREAMS, Stream, permutation
from train.data.read_tables import read_tables
from train.data.table_files import Table

if TYPE_CHECKING:
    from train.classify.config import DataConfig

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """The rows of one split, as lists of equal length.

    Attributes:
      text: the texts.
      text_pair: the second texts of pairs; None if there are no pairs.
      label: the raw values, or the class names if `data.label_names` is a mapping.
      source: the file or hub set of each row.
      row: the number of the data row in its source, from 1; the header and blank lines are not counted.
    """

    text: list[str]
    text_pair: list[str] | None
    label: list[Any]
    row: list[int]
    source: list[str]

    def __len__(self) -> int:
        return len(self.text)

    def take(self, indices: Sequence[int] | np.ndarray) -> Split:
        """Returns the rows at `indices`, in that order."""
        columns = {name: values and [values[i] for i in indices] for name, values in vars(self).items()}
        return Split(**columns)

    def where(self, index: int) -> str:
        """Returns the name of the row at `index` for errors: `file, data row 7`."""
        return f"{self.source[index]}, data row {self.row[index]}"


@dataclass(frozen=True)
class Data:
    """The result of `load_data`.

    Attributes:
      splits: the available ones of train, validation and test.
      label_names: the class names, if the config or the data set gives them.
      notes: for the user: rows that were left out, sampled, split off, or have no text.
    """

    splits: dict[str, Split]
    label_names: tuple[str, ...] | None
    notes: tuple[str, ...]


def load_data(config: DataConfig, seed: int, task: str | None = None) -> Data:
    """Loads all configured splits; the same `seed` gives the same rows on every machine.

    If no validation data is given, `validation_fraction` of train is split off (rounded, at least one row), stratified
    by label, and so is `test_fraction` if it is set and no test data is given. Then `max_rows` takes a class-balanced
    sample of each split. Regressions and lists of labels are neither stratified nor balanced. Rows keep the order of
    the file.

    Args:
      task: the config's key; None means that the labels say whether they are classes.

    Raises:
      JloraError: a source or one of its rows cannot be read (with `data.skip_bad_rows` such rows are left out); a label
        is not in the mapping `data.label_names` (with `data.drop_other_labels` they are left out); there are too few
        rows to split off.
    """
    notes: list[str] = []
    splits, found_names = {}, None
    for name in _SPLITS:
        if (source := getattr(config, name)) is not None:
            split, names = _read(source, config, name, notes)
            found_names = found_names or names
            splits[name] = _name_labels(split, config, name, notes)
    if "validation" not in splits:
        splits = _split_off(splits, "validation", config.validation_fraction, seed, task, notes)
    if "test" not in splits and config.test_fraction is not None:
        splits = _split_off(splits, "test", config.test_fraction, seed, task, notes)
    for name, split in splits.items():
        splits[name] = _sample(split, config.max_rows, seed, task, name, notes)
        empty = sum(not text.strip() for text in splits[name].text)
        if empty:
            rows = "1 row has" if empty == 1 else f"{empty:,} rows have"
            notes.append(f"{name}: {rows} an empty text; data.skip_bad_rows=true leaves such rows out")
    return Data(splits, names_from_config(config) or found_names, tuple(notes))


def read_split(source: str | list[str], config: DataConfig, split: str, labelled: bool = True) -> Split:
    """Reads one split from a file, a hub set, or a list of them, which are joined in order.

    Of the config it reads the columns (`text`, `text_pair`, `label`), `label_names` and how files are read. Labels are
    raw values; several columns give a list of 0 and 1; a mapping `label_names` replaces them by names. Rows that cannot
    be read are never left out; rows whose label is not in the mapping are if `config.drop_other_labels` or
    `config.skip_bad_rows`.

    Args:
      source: a hub set is `repo`, or `repo:name` if its split is not called `split`.
      split: "train", "validation" or "test"; only in the last one -1, an unlabelled row, may be missing in a mapping.
      labelled: if false, no label column is needed and every label is -1.

    Raises:
      JloraError: a source or one of its rows cannot be read, a column is missing, or a label is not in the mapping and
        may not be left out.
    """
    return make_split(read_tables(source, split, config), config, split, labelled)


def names_from_config(config: DataConfig) -> tuple[str, ...] | None:
    """Returns the class names of `data.label_names` in the order of their ids (a mapping's order), or None.

    Names that are equal count once in a mapping; in a list they raise JloraError.
    """
    if isinstance(config.label_names, dict):
        return tuple(dict.fromkeys(config.label_names.values()))
    if config.label_names is None:
        return None
    if len(set(config.label_names)) < len(config.label_names):
        raise JloraError(f"data.label_names: expected different names, found {', '.join(config.label_names)}")
    return tuple(config.label_names)


def make_split(tables: Sequence[Table], config: DataConfig, split: str, labelled: bool = True) -> Split:
    """Makes a Split from tables that were already read, joined in order.

    Args:
      config: names the columns (`text`, `text_pair`, `label`: several columns give a list of 0 and 1). If its
        `label_names` is a mapping, its names replace the values, and rows with other values are left out if
        `config.drop_other_labels` or `config.skip_bad_rows`.
      split: "train", "validation" or "test"; only in the last one -1, an unlabelled row, may be missing in the mapping.
      labelled: if false, no label column is needed and every label is -1.

    Raises:
      JloraError: a column is missing, a text is not text (even with `config.skip_bad_rows`), or a label is not in the
        mapping and may not be left out.
    """
    rows = _join_tables(tables, config, split, None, [], labelled)
    return _name_labels(rows, config, split, []) if labelled else rows


def _read(
    source: str | list[str], config: DataConfig, split: str, notes: list[str]
) -> tuple[Split, tuple[str, ...] | None]:
    """Returns (the rows of a split, the names of their classes if the source gives them)."""
    tables = read_tables(source, split, config)
    if isinstance(config.label, list):
        return _join_tables(tables, config, split, config.skip_bad_rows, notes), tuple(config.label)
    names = {table.class_names.get(config.label) for table in tables}
    if len(names) > 1:
        raise JloraError(f"data.{split}: the parts name their classes differently: {names}")
    return _join_tables(tables, config, split, config.skip_bad_rows, notes), names.pop()


def _join_tables(
    tables: Sequence[Table],
    config: DataConfig,
    split: str,
    skip: bool | None,
    notes: list[str],
    labelled: bool = True,
) -> Split:
    parts = [_to_split(table, config, split, skip, notes, labelled) for table in tables]
    return Split(
        text=[text for part in parts for text in part.text],
        text_pair=[text for part in parts for text in part.text_pair or []] if config.text_pair else None,
        label=parse_lists([label for part in parts for label in part.label]),
        row=[row for part in parts for row in part.row],
        source=[name for part in parts for name in part.source],
    )


def _to_split(
    table: Table, config: DataConfig, split: str, skip: bool | None, notes: list[str], labelled: bool
) -> Split:
    text = table.texts_by_row(config.text, "data.text")
    pair = table.texts_by_row(config.text_pair, "data.text_pair") if config.text_pair else None
    label = _labels(table, config.label) if labelled else lambda row: -1
    count = len(table.columns[config.text])

    def read(row: int) -> tuple[str, str | None, Any]:
        found = text(row)
        if skip and not found.strip():
            raise JloraError(f"{table.where(row)}, column {config.text!r} (data.text): the text is empty")
        return found, pair(row) if pair else None, label(row)

    found, errors = read_each(range(count), read, skip)
    notes += note_left_out(split, errors, count)
    texts, pairs, labels = (list(column) for column in zip(*found.values(), strict=True))
    return Split(texts, pairs if pair else None, labels, [row + 1 for row in found], [table.name] * len(found))


def _labels(table: Table, column: str | list[str]) -> Callable[[int], Any]:
    """Returns a function that gives a row's label: a cell, or a list of 0 and 1 from several columns.

    If all of several columns hold -1, the label is -1, an unlabelled row.
    """
    if isinstance(column, str):
        values = table.column(column, "data.label")
        return lambda row: values[row]
    columns = {name: table.column(name, "data.label") for name in column}

    def read(row: int) -> Any:
        cells = {name: values[row] for name, values in columns.items()}
        if all(to_class_id(cell) == -1 for cell in cells.values()):
            return -1
        for name, cell in cells.items():
            if is_yes(cell) is None:
                place = f"{table.where(row)}, column {name!r} (data.label)"
                raise JloraError(f"{place}: expected 0 or 1, as data.label has a column for each class; found {cell!r}")
        return [int(bool(is_yes(cell))) for cell in cells.values()]

    return read


def _name_labels(split: Split, config: DataConfig, name: str, notes: list[str]) -> Split:
    """Replaces labels by the class names of a mapping in `data.label_names`.

    Rows with other labels are left out if the config says so; otherwise they are an error.
    """
    if not isinstance(config.label_names, dict):
        return split
    names = _by_key(config.label_names)
    if name == "test":
        names.setdefault("-1", "-1")
    keys = [as_key(value) for value in split.label]
    known = [index for index, key in enumerate(keys) if key in names]
    others = Counter(str(value) for value, key in zip(split.label, keys, strict=True) if key not in names)
    if others and not (config.drop_other_labels or config.skip_bad_rows):
        index = next(i for i, key in enumerate(keys) if key not in names)
        raise JloraError(
            f"{split.where(index)}: the label {split.label[index]!r} is not in data.label_names "
            f"({', '.join(names)}); data.drop_other_labels=true leaves such rows out"
        )
    if not known:
        there, found = ", ".join(names), ", ".join(value for value, _ in others.most_common(5))
        raise JloraError(
            f"{split.source[0]}: no row has a label of data.label_names ({there}); found {found}. Its keys are the"
            " values as they are in the file"
        )
    if others:
        kinds = ", ".join(f"{value} {count}" for value, count in others.most_common(5))
        share = f"{others.total()} of {len(split)} rows"
        notes.append(f"{name}: {share} left out, their labels are not in data.label_names: {kinds}")
    return replace(split.take(known), label=[names[keys[index]] for index in known])


def _by_key(names: Mapping[Any, str]) -> dict[str, str]:
    """Converts the keys of `data.label_names` to the form in which labels are compared with them.

    Raises:
      JloraError: two keys are the same value (1 and "1.0") but have different names.
    """
    found: dict[str, str] = {}
    for value, name in names.items():
        if found.setdefault(as_key(value), name) != name:
            raise JloraError(
                f"data.label_names: {value!r}: expected one name for a value however it is written, found"
                f" {found[as_key(value)]!r} and {name!r}"
            )
    return found


def _split_off(
    splits: dict[str, Split], name: str, fraction: float, seed: int, task: str | None, notes: list[str]
) -> dict[str, Split]:
    """Takes a stratified share of train as the split `name` that was not given."""
    train = splits["train"]
    count = max(1, round(fraction * len(train)))
    if count >= len(train):
        raise JloraError(
            f"{train.source[0]}: {counted(len(train), 'row')} in all, too few to split off {name} data. Add rows, or"
            f" give data.{name}=FILE"
        )
    ranks, sizes = _ranks_within_class(_classes(train, task), SPLIT_STREAMS[name], seed)
    by_share = np.argsort((ranks + 0.5) / sizes, kind="stable")
    notes.append(
        f"no {name} data: {count} of the {len(train)} training rows split off "
        f"(data.{name}_fraction={fraction}, seed {seed})"
    )
    rest, held_out = train.take(np.sort(by_share[count:])), train.take(np.sort(by_share[:count]))
    return {**splits, "train": rest, name: held_out}


def _sample(split: Split, max_rows: int | None, seed: int, task: str | None, name: str, notes: list[str]) -> Split:
    if max_rows is None or len(split) <= max_rows:
        return split
    classes = _classes(split, task)
    ranks, _ = _ranks_within_class(classes, SAMPLE_STREAMS[name], seed)
    balanced = np.lexsort((permutation(len(split), Stream.SAMPLE_TIES, seed, SAMPLE_STREAMS[name]), ranks))[:max_rows]
    how = ", balanced by class" if len(set(classes)) > 1 else ""
    notes.append(f"{name}: a sample of {max_rows:,} of {len(split):,} rows{how} (data.max_rows, seed {seed})")
    return split.take(np.sort(balanced))


def _classes(split: Split, task: str | None) -> list[Hashable]:
    """Returns the classes by which rows are balanced: their labels, or None for regression and lists of labels."""
    several_or_scores = {"list", "decimal number"} & {label_kind(value) for value in split.label}
    if several_or_scores == {"decimal number"} and are_class_ids(split.label):
        several_or_scores = set()
    if task == "single_label_classification" or (task is None and not several_or_scores):
        return [str(value) for value in split.label]
    return [None] * len(split)


def _ranks_within_class(classes: list[Hashable], stream: Stream, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each row's place in the seeded shuffle of its class, and the size of its class; both int64 (n,)."""
    sizes = Counter(classes)
    seen: Counter[Hashable] = Counter()
    ranks = np.zeros(len(classes), np.int64)
    for index in permutation(len(classes), stream, seed):
        ranks[index] = seen[classes[index]]
        seen[classes[index]] += 1
    return ranks, np.array([sizes[value] for value in classes])
