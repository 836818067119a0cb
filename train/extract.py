"""Make an adapter of a fully fine-tuned model: jlora extract --tuned FOLDER --base FOLDER --out FOLDER."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

import jlora
from jlora.algebra.extract import extract, outside
from jlora.closed_pipe import end_quietly
from jlora.errors import FileError, JloraError
from jlora.generation.open_model import causal_config
from jlora.lora.adapted_model import Adapted
from jlora.lora.matrices import layer_ranks
from jlora.models.registry import family
from jlora.pretrained.load import abstract_base, build, example_batch, load_weights
from jlora.pretrained.locate import settle_hub
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.weights import new_heads
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from jlora.tree.module_names import module_names
from jlora.tree.output_heads import HEAD_NAMES
from train.artifacts import spectrum
from train.artifacts.merge_for_export import write_adapter
from train.artifacts.spectrum import Spectrum
from train.classify.data.labels import labels_of_config
from train.classify.model import classifier_config
from train.cli import arguments
from train.cli.exit_codes import exit_code, require_new, show
from train.cli.log_slow_steps import working
from train.cli.without_torch import keep_torch_from_transformers
from train.planning.parameter_table import align

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_WORTH_SAYING = 1e-4
"""If at least this share of the change is outside of the adapter, the log suggests flags that would include it."""
_NO_PART_OF_THE_FUNCTION = re.compile(
    "_name_or_path|architectures|dtype|torch_dtype|transformers_version|id2label|label2id|num_labels|problem_type"
    "|finetuning_task|initializer_range|.*dropout.*|output_.*|return_dict|use_cache|gradient_checkpointing|.*_token_id"
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models of one architecture.

    Attributes:
      model: their linen module.
      tuned, base: their trees of weights.
      task: PEFT's task type; None for an encoder without a head.
    """

    model: Any
    tuned: Any
    base: Any
    task: Literal["SEQ_CLS", "CAUSAL_LM"] | None


def main(argv: Sequence[str]) -> int:
    """Runs `jlora extract`; returns 0, or 2 after an error that the user can fix (printed on stderr).

    Args:
      argv: the flags of `arguments.make_extract_parser`: ["--tuned", "T", "--base", "B", "--out", "O"] writes
        O/adapter, O/spectrum.csv and O/spectrum.png, and prints a table. Models of two architectures are an error, and
        so is an O that is not empty, without --overwrite.
    """
    return exit_code(lambda: _extract(arguments.make_extract_parser().parse_args(argv)))


def _extract(options: argparse.Namespace) -> None:
    require_new(options.out, options.overwrite)
    tuned, base = PretrainedSource(options.tuned), PretrainedSource(options.base)
    with working(f"reading {tuned.name} and {base.name}"):
        pair = _load(tuned, base)
    tokenizer = _tokenizer(tuned, base)
    config = _config(options, pair.task)
    batch = example_batch(pair.model.config)
    with working("decomposing the change of each module"):
        adapter, values = extract(pair.tuned, pair.base, config, pair.model.apply, batch, energy=options.energy)
    ranks = [rank for entry in adapter.values() if isinstance(entry, jlora.LowRank) for rank in layer_ranks(entry)]
    spectra = spectrum.by_module(values, [rank for rank in ranks if rank])
    adapted = Adapted(pair.model, pair.base, adapter, config)
    is_hub_name = base.place == base.name and not Path(base.name).exists()
    base_model = base.name if is_hub_name else str(Path(base.place).resolve())
    write_adapter(options.out / "adapter", adapted, adapter, tokenizer, _labels(pair), base_model)
    spectrum.write_csv(options.out / "spectrum.csv", spectra)
    title = f"What changed from {_short(base.name)} to {_short(tuned.name)}"
    spectrum.plot_spectrum(spectra, options.out / "spectrum.png", title)
    show(_table(spectra))
    _say_outside(outside(pair.tuned, pair.base, adapter))
    _say_where(options.out, pair.task)


def _load(tuned: PretrainedSource, base: PretrainedSource) -> Pair:
    """Loads both models as one class."""
    for source in (tuned, base):
        settle_hub(source.name)
    if family(tuned.config.model_type).task == "SEQ_CLS":
        return _load_classifiers(tuned, base)
    model, base_model = (build(causal_config(source)) for source in (tuned, base))
    _require_same_architecture(model, base_model)
    tuned_tree, base_tree = (load_weights(model, source) for source in (tuned, base))
    return Pair(model, tuned_tree, base_tree, "CAUSAL_LM")


def _load_classifiers(tuned: PretrainedSource, base: PretrainedSource) -> Pair:
    """Loads two classifiers; a head that the base lacks is copied from the tuned model and counts as unchanged."""
    config = classifier_config(tuned)
    labels = {"id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type}
    model, base_model = build(config), build(classifier_config(base, **labels))
    _require_same_architecture(model, base_model)
    tuned_lacks, base_lacks = (new_heads(model, source) for source in (tuned, base))
    tuned_tree, base_tree = (load_weights(model, source, key=jax.random.key(0)) for source in (tuned, base))
    tuned_leaves = leaves_by_path(tuned_tree)
    base_tree = replace_leaves(base_tree, {path: tuned_leaves[path] for path in base_lacks})
    if tuned_lacks:
        kept = type(model).__name__
        logger.info("%s: has no classification head; the adapter's names are those of %s without one", tuned.name, kept)
    return Pair(model, tuned_tree, base_tree, None if tuned_lacks else "SEQ_CLS")


def _require_same_architecture(tuned: Any, base: Any) -> None:
    """Raises JloraError, which names the differing keys of config.json, if the models' weights have other shapes."""
    found = _differing(tuned.config, base.config)
    shapes = [{path: leaf.shape for path, leaf in leaves_by_path(abstract_base(m)).items()} for m in (tuned, base)]
    lines = [f"{key}: {one!r} in the tuned model, {other!r} in the base" for key, (one, other) in found.items()]
    if tuned.config.model_type != base.config.model_type or shapes[0] != shapes[1]:
        hint = "\nAn adapter cannot make the vocabulary larger; see docs/extract.md" * ("vocab_size" in found)
        raise JloraError(
            "--base: expected the model that --tuned was tuned from, found one of another architecture or size:\n  "
            + "\n  ".join(lines)
            + hint
        )
    if lines:
        logger.warning("config.json differs; the adapter holds weights alone: %s", "; ".join(lines))


def _differing(tuned: PreTrainedConfig, base: PreTrainedConfig) -> dict[str, tuple[Any, Any]]:
    if tuned.model_type != base.model_type:
        return {"model_type": (tuned.model_type, base.model_type)}
    one, other = tuned.to_dict(), base.to_dict()
    keys = [key for key in one | other if not _NO_PART_OF_THE_FUNCTION.fullmatch(key)]
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _tokenizer(tuned: PretrainedSource, base: PretrainedSource) -> PreTrainedTokenizerBase:
    try:
        return tuned.tokenizer
    except FileError:
        return base.tokenizer


def _labels(pair: Pair) -> dict[str, Any] | None:
    """Returns the content of labels.json; None for a language model."""
    if pair.task == "CAUSAL_LM":
        return None
    return labels_of_config(pair.model.config.id2label, pair.model.config.problem_type).config_entries()


def _config(options: argparse.Namespace, task: str | None) -> jlora.LoraConfig:
    given = options.targets or ["all-linear"]
    targets: Any = "all-linear" if [name.lower() for name in given] == ["all-linear"] else given
    heads = list(HEAD_NAMES) if task == "SEQ_CLS" else []
    return jlora.LoraConfig(
        r=options.rank,
        lora_alpha=options.rank,
        target_modules=targets,
        exclude_modules=None if task else rf".*({'|'.join(HEAD_NAMES)}).*",
        modules_to_save=[*heads, *(name for name in options.modules_to_save if name not in heads)],
        bias=options.bias,
        ensure_weight_tying=True,  # the change of a tied table is also that of its head
        task_type=task,
    )


def _short(name: str) -> str:
    """Returns the last two parts of a folder's path, or a hub name."""
    return "/".join(Path(name).parts[-2:])


def _table(spectra: Sequence[Spectrum]) -> str:
    """Makes a table with a line for each module over all layers: ranges of ranks, and shares of all layers together."""
    groups: dict[str, list[Spectrum]] = {}
    for found in spectra:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", found.module), []).append(found)
    head = ("module", "modules", "full rank", "rank kept", "energy kept", "rank for 50 %", "90 %", "99 %")
    lines: list[tuple[str, ...]] = [head]
    lines += [_line(name, group) for name, group in groups.items()]
    if len(groups) > 1:
        lines.append(_line("all", spectra))
    return align(lines, right=range(1, 8))


def _line(name: str, group: Sequence[Spectrum]) -> tuple[str, ...]:
    needed = zip(*(found.ranks_needed() for found in group), strict=True)
    columns = [[len(found.values) for found in group], [found.rank for found in group], *needed]
    ends = [(min(column), max(column)) for column in columns]
    full, rank, *ranks = (str(low) if low == high else f"{low}-{high}" for low, high in ends)
    return (name, str(len(group)), full, rank, f"{100 * spectrum.total_kept(group):.2f} %", *ranks)


def _say_outside(left: Mapping[str, float]) -> None:
    """Shows what changed outside of the adapter, by kind, and logs the flags that would include it."""
    kinds: dict[str, float] = {}
    for path, share in left.items():
        kinds[_kind(path)] = kinds.get(_kind(path), 0.0) + share
    total = sum(kinds.values())
    parts = ", ".join(f"{kind} {100 * share:.2f} %" for kind, share in sorted(kinds.items(), key=lambda k: -k[1]))
    show(f"\noutside of the adapter: {100 * total:.2f} % of the squared change" + (f": {parts}" if parts else ""))
    if total >= _WORTH_SAYING:
        logger.info("To take it in: %s", _flags(left))


def _kind(path: str) -> str:
    kinds = {"bias": "biases", "scale": "layer norms", "embedding": "embeddings"}
    return kinds.get(path.rsplit("/", 1)[-1], "other weights")


def _flags(left: Mapping[str, float]) -> str:
    ends: dict[str, list[str]] = {}
    for path in left:
        end = module_names(path, None)[0].rsplit(".", 1)[-1]
        ends.setdefault(_kind(path), []).append(end)
    flags = ["--bias all"] if "biases" in ends else []
    whole = dict.fromkeys([*ends.get("layer norms", []), *ends.get("embeddings", [])])
    flags += [f"--modules-to-save {','.join(whole)}"] if whole else []
    others = dict.fromkeys(ends.get("other weights", []))
    flags += [f"--targets with {','.join(others)}"] if others else []
    return "  ".join(flags)


def _say_where(folder: Path, task: str | None) -> None:
    logger.info("In %s:", folder)
    logger.info("  adapter/      opens with PEFT")
    logger.info("  spectrum.csv  spectrum.png: what each rank keeps of each module's change")
    logger.info("Merge it:    jlora export --adapter %s --out MERGED", folder / "adapter")
    command = "lm" if task == "CAUSAL_LM" else "classify"
    logger.info("Train on:    jlora %s --config FILE lora.from=%s", command, folder / "adapter")


if __name__ == "__main__":
    keep_torch_from_transformers()
    sys.exit(end_quietly(lambda: main(sys.argv[1:])))
