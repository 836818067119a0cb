"""`python -m serve --config FILE`: a server for one base model and many adapters."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jlora.closed_pipe import end_quietly
from jlora.errors import JloraError
from jlora.files.run_folder import find_adapter

if TYPE_CHECKING:
    import socket

    from serve.config import ServeConfig

logger = logging.getLogger(__package__)

_EXTRA = ("starlette", "uvicorn", "prometheus_client")

_OTHER_CONNECTIONS = 256
"""Connections besides those of requests that run or wait: of clients that ask now and then, and of the page."""


def make_serve_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="jlora serve",
        description="Answers with one base model and many adapters: OpenAI's routes, and a page at /.",
        epilog="python -m serve --config configs/serve.yaml --adapter alice=runs/alice",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the server's YAML, such as configs/serve.yaml")
    parser.add_argument("--model", help="replaces the key `model`")
    parser.add_argument("--host", help="replaces the key `host`")
    parser.add_argument("--port", type=int, help="replaces the key `port`; 0 takes a free one")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="one more adapter: a folder in PEFT's format, or a run folder; may be given several times",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the server until a signal ends it; returns 0, or 2 if it could not start."""
    flags = make_serve_parser().parse_args(argv)
    _configure_logging()
    try:
        _serve(flags)
    except JloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _require_extra() -> None:
    """Raises JloraError if a package of the extra `serve` is missing."""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise JloraError(
            f"jlora serve: expected the packages of the extra `serve`, found no {', '.join(missing)}; install them:"
            " pip install 'jlora[serve]', or in a checkout pip install '.[serve]'"
        )


def _serve(flags: argparse.Namespace) -> None:
    _require_extra()
    # Here, so that --help and a wrong key need no second.
    from serve.config import read_serve_config

    changes = {key: getattr(flags, key) for key in ("model", "host", "port") if getattr(flags, key) is not None}
    config = read_serve_config(flags.config, changes)

    from serve.engine.adapters import find_folders
    from serve.listening.server import bind

    named = {name: _require_adapter(folder) for name, folder in (config.adapters | _given(flags.adapter)).items()}
    folders = find_folders(named, config.adapter_folders)
    _require_names(folders, config.base_name)
    with bind(config.host, config.port) as listener:  # before what takes minutes
        _answer(config, folders, listener)


def _answer(config: ServeConfig, folders: dict[str, Path], listener: socket.socket) -> None:
    """Loads the model and answers whoever connects to the listener, until a signal."""
    from serve.engine.open_engine import open_engine
    from serve.http.app import make_app
    from serve.http.settings import HttpSettings
    from serve.listening.server import Server

    logger.info("loading %s; %d adapters can be asked for", config.model, len(folders))
    opened, begin = open_engine(config, folders), time.monotonic()
    logger.info("compiling")
    opened.engine.start()
    logger.info("compiled in %.0f s", time.monotonic() - begin)
    settings = HttpSettings(
        token=config.token,
        admin_token=config.admin_token,
        adapter_folders=tuple(config.adapter_folders),
        stop_ids=frozenset(opened.stop_ids),
    )
    most = config.waiting + config.rows + _OTHER_CONNECTIONS
    options: dict[str, Any] = {"end_seconds": config.seconds_to_finish, "most_connections": most}
    server = Server(make_app(opened.engine, opened.tokenizer, settings), listener, log_level="warning", **options)
    _say_where(config, listener.getsockname()[1], folders)
    server.run()
    opened.engine.stop(0)
    logger.info("ended")


def _configure_logging() -> None:
    """Sends our messages from INFO on to stderr, and those of other packages from WARNING on.

    transformers' advice that PyTorch is missing is silenced: the server does not use it.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("jlora", __package__):
        logging.getLogger(name).setLevel(logging.INFO)


def _require_names(folders: dict[str, Path], base: str) -> None:
    """Raises JloraError for a name that no request can have, or that the base has."""
    from serve.config import ADAPTER_NAME, EXPECTED_NAME

    for name, folder in folders.items():
        if not re.fullmatch(ADAPTER_NAME, name):
            raise JloraError(f"{folder}: expected a name of {EXPECTED_NAME}; found {name!r}")
        if name == base:
            raise JloraError(f"{folder}: the base is called {name!r} too; give it another name with the key `name`")


def _given(adapters: Sequence[str]) -> dict[str, Path]:
    """Returns {name: folder} of the flags --adapter."""
    found: dict[str, Path] = {}
    for text in adapters:
        name, is_there, folder = text.partition("=")
        if not is_there or not name or not folder:
            raise JloraError(f"--adapter: expected NAME=FOLDER, found {text!r}")
        if name in found:
            raise JloraError(f"--adapter: expected one folder for {name!r}, found {found[name]} and {folder}")
        found[name] = Path(folder)
    return found


def _require_adapter(folder: Path) -> Path:
    """Returns the folder of the adapter in an adapter or run folder; raises JloraError if it holds none."""
    if (place := find_adapter(folder)) is not None:
        return place
    found = "one without adapter_config.json" if folder.is_dir() else "no such folder"
    raise JloraError(f"{folder}: expected an adapter folder or a run folder, found {found}")


def _say_where(config: ServeConfig, port: int, folders: dict[str, Path]) -> None:
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"http://{host}:{port}"
    logger.info(
        "%s and %d adapters at %s (a page), %s/v1 (OpenAI's API)", config.base_name, len(folders), address, address
    )
    if folders:
        logger.info("%s", ", ".join(sorted(folders)[:20]) + (", ..." if len(folders) > 20 else ""))


if __name__ == "__main__":
    sys.exit(end_quietly(lambda: main(sys.argv[1:])))
