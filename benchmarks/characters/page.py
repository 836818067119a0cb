"""Writes the figures of docs/characters.json into the marked parts of a page."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.characters.loaded import BASE
from benchmarks.common.marked_parts import fill_parts, table


def fill_page(page: str, results: dict[str, Any]) -> str:
    """Returns the page with its marked parts written anew; what is around them stays.

    Raises:
      ValueError: a part is missing.
    """
    parts = {"perplexity": perplexity_table(results), "training": training_table(results), "answers": answers(results)}
    return fill_parts(page, parts)


def perplexity_table(results: dict[str, Any]) -> str:
    """Returns a row for each text and a column for the base and each adapter; the lowest of a row is bold."""
    readers = [BASE, *results["perplexity"]]
    lines = []
    for text, found in results["perplexity"].items():
        lowest = min(found.values())
        cells = [f"**{found[one]:.1f}**" if found[one] == lowest else f"{found[one]:.1f}" for one in readers]
        lines.append([text, f"{results['tokens'][text]:,}", *cells])
    return table(["held-out text of", "tokens", *readers], lines)


def training_table(results: dict[str, Any]) -> str:
    """Returns a row for each character: what it was trained on, and for how long."""
    lines = []
    for name, found in results["training"].items():
        steps = found["sweep"]["ended"].rpartition(" ")[2]
        rows, tokens = found["rows"]["train"], found["learnt_tokens"]["train"]
        minutes = f"{found['times']['train'] / 60:.1f}"
        lines.append([name, f"{rows:,}", f"{tokens:,}", steps, str(found["best"]["step"]), minutes])
    return table(["character", "rows", "tokens learnt from", "steps", "best step", "minutes, of all together"], lines)


def answers(results: dict[str, Any]) -> str:
    """Returns each character's answers below a heading of its own; lines of verse stay lines."""
    sections = []
    for name, found in results["answers"].items():
        lines = [f"### {'the base, without an adapter' if name == BASE else name}", ""]
        for number, one in enumerate(found, 1):
            lines += [f"{number}. *{one['question']}*", "", *(f"    > {line}" for line in _quoted(one["answer"])), ""]
        sections.append("\n".join(lines).rstrip())
    return "\n\n".join(sections)


def _quoted(answer: str) -> list[str]:
    """Returns the answer's lines, with what Markdown would act on escaped, and a line break after each but the last."""
    lines = [re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", line.strip()) for line in answer.split("\n") if line.strip()]
    return [line + "\\" for line in lines[:-1]] + lines[-1:] if lines else ["(nothing)"]
