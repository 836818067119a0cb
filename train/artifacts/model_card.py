"""Writes the model card (README.md) of an exported folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCardData

from jlora.lora.named_initializations import is_residual
from jlora.printable import printable

ExportKind = Literal["merged", "adapter"]

_HUB_METRICS = {
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "f1_micro": "f1",
    "f1_macro": "f1",
    "token_accuracy": "accuracy",
}
"""{our name of a metric: the hub's}, if the two differ."""

_METHODS = {
    "lora": "LoRA: low-rank updates of the frozen base model",
    "full": "full fine-tuning: every parameter was trained",
    "head": "the classification head on the frozen base model",
}
_PROMPT = "What is the capital of France?"
_DORA = "DoRA: low-rank updates of the frozen base model's weights, and their norms"


@dataclass(frozen=True)
class Facts:
    """The facts about a run that its model card states.

    Attributes:
      name: the model's name.
      where: the name to load it by: `owner/name` on the hub, or the folder.
      method: `lora`, `full` or `head`.
      problem_type: transformers' name of a classifier's task; None for a language model.
      base_model, dataset: their names in the config.
      base_model_id, dataset_id: their names on the hub, None if they are not there; only these are in the metadata.
      labels: class names in the order of their ids; empty for regression.
      results: {split: {metric: value}} of the exported step.
      command: the shell command that made it.
      lora: the adapter's settings by PEFT's names; empty for other methods.
      versions: {package: version}.
      chat: whether a language model is used through its tokenizer's chat template.
      pair: the two columns of a classifier that labels pairs of texts; None for others.
      tokens: the number of tokens that the adapter needs in the base; None: the base is used unchanged.
    """

    name: str
    where: str
    method: Literal["lora", "full", "head"]
    problem_type: str | None
    base_model: str
    dataset: str
    labels: Sequence[str]
    results: Mapping[str, Mapping[str, float]]
    command: str
    base_model_id: str | None = None
    dataset_id: str | None = None
    lora: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    chat: bool = False
    pair: tuple[str, str] | None = None
    tokens: int | None = None

    @property
    def task(self) -> str:
        """The hub's name of the task."""
        return "text-generation" if self.problem_type is None else "text-classification"


def model_card(facts: Facts, kind: ExportKind) -> str:
    """Returns the text of README.md: YAML front matter for the hub, then Markdown.

    The Markdown has the name as its title, what the model is, a table of results (four decimals), code that loads it, a
    command that uses it, the command that made it, and, if there are any, the LoRA settings and versions. Paths of this
    machine appear only in code, which needs them to run; elsewhere only their last part appears.

    Args:
      facts: what the card states.
      kind: `merged` for a complete checkpoint that transformers opens, `adapter` for PEFT's format.
    """
    sections = [
        f"---\n{_front_matter(facts, kind)}\n---",
        f"# {facts.name}",
        _what(facts, kind),
        f"## Results\n\n{_results_table(facts)}",
        f"## How to load it\n\n```python\n{_loading_code(facts, kind)}\n```",
        f"From the command line, in JAX:\n\n```bash\n{_command(facts)}\n```",
        f"## How it was made\n\n```bash\n{shlex.join(map(without_folder, shlex.split(facts.command)))}\n```",
    ]
    if facts.lora:
        settings = yaml.safe_dump(dict(facts.lora), sort_keys=True).strip()
        sections.append(f"LoRA settings, in PEFT's words:\n\n```yaml\n{settings}\n```")
    if facts.versions:
        sections.append("Versions: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".")
    return printable("\n\n".join(sections)) + "\n"


def _front_matter(facts: Facts, kind: ExportKind) -> str:
    names = {_HUB_METRICS.get(name, name) for values in facts.results.values() for name in values}
    data = ModelCardData(
        base_model=facts.base_model_id,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag=facts.task,
        tags=["lora", "jlora"] if facts.method == "lora" else ["jlora"],
        metrics=sorted(names - {"loss"}) or None,
        model_name=facts.name,
        eval_results=_eval_results(facts) or None,
    )
    return data.to_yaml()


def _eval_results(facts: Facts) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=facts.task,
            dataset_type=facts.dataset_id or "local",
            dataset_name=without_folder(facts.dataset),
            dataset_split=split,
            metric_type=_HUB_METRICS.get(metric, metric),
            metric_name=metric,
            metric_value=value,
        )
        for split, values in facts.results.items()
        for metric, value in values.items()
    ]


def _what(facts: Facts, kind: ExportKind) -> str:
    subject = "An adapter in PEFT's format for" if kind == "adapter" else "A fine-tuned copy of"
    method = _DORA if facts.lora.get("use_dora") else _METHODS[facts.method]
    method += ", merged into it" if facts.method == "lora" and kind == "merged" else ""
    base, dataset = without_folder(facts.base_model), without_folder(facts.dataset)
    lines = [f"{subject} `{base}`, trained on `{dataset}`.", "", f"- Method: {method}"]
    lines.append(f"- Task: {(facts.problem_type or facts.task).replace('_', ' ').replace('-', ' ')}")
    start = str(facts.lora.get("init_lora_weights"))
    if kind == "adapter" and is_residual(start):
        lines.append(f"- Rank: twice the r of the training; {start} took its start out of the base, which is put back")
    if facts.labels:
        lines.append("- Labels: " + ", ".join(f"{index} = {label}" for index, label in enumerate(facts.labels)))
    return "\n".join(lines)


def _results_table(facts: Facts) -> str:
    rows = ["| split | metric | value |", "|---|---|---|"]
    rows += [
        f"| {split} | {metric} | {value:.4f} |"
        for split, values in facts.results.items()
        for metric, value in values.items()
    ]
    return "\n".join(rows)


def _command(facts: Facts) -> str:
    model = shlex.quote(facts.where)
    if facts.problem_type is not None:
        columns = shlex.join(["--text", facts.pair[0], "--text-pair", facts.pair[1]]) + " " if facts.pair else ""
        return f"jlora predict --model {model} --input texts.csv {columns}--output labelled.csv"
    return f'jlora generate --model {model} {"--chat " if facts.chat else ""}--prompt "{_PROMPT}"'


def without_folder(names: str) -> str:
    """Shortens each path in a comma-separated list that begins with `/` or `~` to its last part.

    "/home/me/a.csv, ~/b/c.tsv,org/set" -> "a.csv, c.tsv,org/set"
    """
    return re.sub(r"(^|[\[,=]\s*)[~/][^,\]]*/(?=[^,\]])", r"\1", names)


def _loading_code(facts: Facts, kind: ExportKind) -> str:
    if facts.problem_type is None:
        return _generating_code(facts, kind)
    if kind == "merged":
        text = '{"text": "A sentence.", "text_pair": "Another one."}' if facts.pair else '"A sentence to label."'
        return (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("text-classification", model={facts.where!r})\n'
            f"print(classify({text}))"
        )
    text = '"A sentence.", "Another one."' if facts.pair else '"A sentence to label."'
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f"labels = {dict(enumerate(facts.labels)) or {0: 'LABEL_0'}}\n"
        f"base = AutoModelForSequenceClassification.from_pretrained({facts.base_model!r}, id2label=labels)\n"
        f"model = PeftModel.from_pretrained(base, {facts.where!r}).eval()\n"
        f"tokenizer = AutoTokenizer.from_pretrained({facts.where!r})\n"
        f'logits = model(**tokenizer({text}, return_tensors="pt")).logits'
    )


def _generating_code(facts: Facts, kind: ExportKind) -> str:
    merged = kind == "merged"
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines = lines if merged else ["from peft import PeftModel", *lines]
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({facts.where!r})")
    if merged:
        lines.append(f"model = AutoModelForCausalLM.from_pretrained({facts.where!r}).eval()")
    else:
        lines.append(f"base = AutoModelForCausalLM.from_pretrained({_base_arguments(facts.base_model)})")
        if facts.tokens is not None:
            lines.append(f"base.resize_token_embeddings({facts.tokens})  # tokens were added before training")
        lines.append(f"model = PeftModel.from_pretrained(base, {facts.where!r}).eval()")
    text = f'"{_PROMPT}"'
    if facts.chat:
        lines.append(f'chat = [{{"role": "user", "content": {text}}}]')
        lines.append("text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)")
        lines.append('inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")')
    else:
        lines.append(f'inputs = tokenizer({text}, return_tensors="pt")')
    lines.append("print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0], skip_special_tokens=True))")
    return "\n".join(lines)


def _base_arguments(base_model: str) -> str:
    """Returns the arguments of `from_pretrained` as code: for a GGUF file, its folder and `gguf_file`."""
    folder, slash, file = base_model.rpartition("/")
    return f"{folder + slash!r}, gguf_file={file!r}" if file.endswith(".gguf") else repr(base_model)
