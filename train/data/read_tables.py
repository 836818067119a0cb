"""Reads tables from files, installed packages or the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jlora.errors import HubError, JloraError
from jlora.pretrained.locate import local_path
from train.data.table_files import Table, class_names, read_table, without_filled

if TYPE_CHECKING:
    from train.config.sections import DataSource


def read_tables(
    source: str | list[str],
    split: str,
    config: DataSource,
    read_file: Callable[[Path, str, str, str], Table] = read_table,
) -> list[Table]:
    """Reads the tables of a file, a hub set, or a list of them, in that order.

    A hub set is `repo`, or `repo:name` if its split is not called `split`; the name of its table is `repo:split`.

    Args:
      source: an existing file, or `package:PACKAGE/FILE` in an installed package, is a file; another name is a hub set.
      split: "train", "validation" or "test", also for the key in errors: `data.train`.
      config: its `encoding` and `separator` are for files, its `config` and `revision` for hub sets.
      read_file: read_file(path, name, encoding, separator) reads a file and returns a Table; `name` is its name in
        errors.

    Raises:
      JloraError: there is no source (None, "" or []), a name can only be a file and does not exist, `read_file` refuses
        it, or a hub set cannot be loaded (HubError).
    """
    if not source:
        raise JloraError(f"data.{split}: expected a file or a hub data set, found nothing")
    tables = []
    for name in [source] if isinstance(source, str) else source:
        path = local_path(name)
        if path is None:
            tables.append(_read_hub(name, split, config))
        else:
            tables.append(read_file(path, name, config.encoding, config.separator))
    return tables


def _read_hub(name: str, split: str, config: DataSource) -> Table:
    import datasets  # takes a second, and only hub sets need it

    repository, _, named_split = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, config.config, split=named_split or split, revision=config.revision)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        cause = str(error).strip().split("\n")[0]
        raise HubError(
            f"data.{split}={name}: cannot load this data set from the hub ({type(error).__name__}: {cause}); "
            "check its name, data.config and data.revision and the connection, or give files"
        ) from error
    columns = {column: without_filled(list(loaded[column])) for column in loaded.column_names}
    return Table(f"{repository}:{named_split or split}", columns, class_names(loaded.features.to_dict()))
