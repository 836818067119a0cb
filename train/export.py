"""Merge an adapter, made here or by PEFT: python -m train.export --adapter A --base B --out C."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jlora.errors import JloraError
from train.artifacts import write_merged
from train.progress import configure_logging
from train.trained import load_adapted

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend."""
    configure_logging()
    options = _parser().parse_args(argv)
    try:
        _export(options)
    except JloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train.export", description=__doc__)
    parser.add_argument("--adapter", required=True, type=Path, help="folder of the adapter, in PEFT's format")
    parser.add_argument("--base", help="its base model: folder or hub name; default: the one the adapter names")
    parser.add_argument("--out", required=True, type=Path, help="folder to write the merged model to")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="(float32)")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")
    return parser


def _export(options: argparse.Namespace) -> None:
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())) and not options.overwrite:
        raise JloraError(f"--out: {options.out}: expected a new or empty folder; --overwrite writes into this one")
    trained = load_adapted(options.adapter, options.base)
    write_merged(options.out, trained.adapted, trained.adapted.adapter, trained.tokenizer, options.dtype)
    logger.info("merged model: %s", options.out)
    logger.info("It opens with transformers: AutoModelForSequenceClassification.from_pretrained(%r)", str(options.out))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
