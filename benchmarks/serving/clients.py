"""Clients that each ask again as soon as they have an answer, and what they see."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import httpx
import numpy as np

_PROMPTS = (
    "Tell me about the sea.",
    "What did you do this morning, and whom did you meet on the way?",
    "Write a short letter to a friend who has moved to another town, and ask how the new house is.",
    "Explain to a child why the moon changes its shape.",
)


class Seen(NamedTuple):
    """One answer: when it was asked for and each of its tokens came (time.monotonic), or what went wrong."""

    model: str
    asked: float
    tokens: list[float]
    error: str | None


async def ask_again(url: str, pick: Callable[[int], str], clients: int, seconds: float, max_tokens: int) -> list[Seen]:
    """Runs `clients` clients for `seconds`; `pick(number)` is the model of the n-th request of all."""
    seen: list[Seen] = []
    end, started = time.monotonic() + seconds, iter(range(10**9))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:

        async def client() -> None:
            while time.monotonic() < end:
                number = next(started)
                prompt = _PROMPTS[number % len(_PROMPTS)]
                seen.append(await ask(http, pick(number), prompt, max_tokens, seed=number))

        await asyncio.gather(*(client() for _ in range(clients)))
    return seen


async def ask(http: httpx.AsyncClient, model: str, prompt: str, max_tokens: int, seed: int) -> Seen:
    """Asks one question and reads the answer as it comes."""
    asked, tokens = time.monotonic(), []
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "seed": seed, "stream": True, "stop": None}
    try:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                return Seen(model, asked, tokens, f"{answer.status_code}: {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        return Seen(model, asked, tokens, json.dumps(event["error"]))
                    tokens.append(time.monotonic())
    except httpx.HTTPError as error:
        return Seen(model, asked, tokens, repr(error))
    return Seen(model, asked, tokens, None if tokens else "no token came")


def summarize(seen: list[Seen], begin: float, end: float) -> dict[str, float]:
    """Returns figures of what was seen between two times: rates a second, and times in ms.

    "answers" and "errors" are those of the whole time. Tokens are counted by events; the last event of an answer, which
    says why it ended, may hold none, so that the count may be one too high for each answer.
    """
    came = np.asarray([at for one in seen for at in one.tokens if begin <= at < end])
    first = [1000 * (one.tokens[0] - one.asked) for one in seen if one.tokens and begin <= one.tokens[0] < end]
    between = [1000 * gap for one in seen for gap in np.diff(one.tokens[:-1])]
    return {
        "answers": sum(one.error is None for one in seen),
        "errors": sum(one.error is not None for one in seen),
        "tokens a second": float(len(came) / (end - begin)),
        **_quantiles("first token, ms", first),
        **_quantiles("between tokens, ms", between),
    }


def _quantiles(name: str, values: list[float]) -> dict[str, float]:
    return {f"{name} p{share}": float(np.percentile(values, share)) if values else float("nan") for share in (50, 99)}
