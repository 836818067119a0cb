"""What Prometheus reads: requests, tokens, times, and the engine's own counts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.errors import GONE

_NOW = {"running", "waiting", "slots", "slots_used"}
"""The engine's numbers that may go down, which are gauges; all others are counters."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one server, in a registry of its own.

    Attributes:
      registry: what `/metrics` writes.
      first_token, between_tokens: times as a client sees them, in seconds.
    """

    def __init__(self, counts: Callable[[], dict[str, float]]) -> None:
        """`counts`: the engine's, which is called when the metrics are read."""
        self.registry = CollectorRegistry()
        self.first_token = Histogram(
            "jlora_time_to_first_token_seconds", "From a request to its answer's first token", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.between_tokens = Histogram(
            "jlora_time_between_tokens_seconds", "Between two tokens of an answer", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        # `model` is empty where the name is unknown: names that strangers make up must not fill the memory.
        self.requests = Counter("jlora_requests", "Requests", ("route", "status", "model"), registry=self.registry)
        self._tokens = Counter("jlora_tokens", "Tokens", ("kind",), registry=self.registry)
        self.registry.register(_EngineCounts(counts))

    def count_tokens(self, prompt: int, answer: int) -> None:
        """Counts the tokens of a request that has ended."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("answer").inc(answer)

    def keep_models(self, names: Collection[str]) -> None:
        """Drops the counts of all models but these: a thousand adapters that were unloaded would stay."""
        counted = {sample.labels["model"] for metric in self.requests.collect() for sample in metric.samples}
        for name in counted.difference(names, [""]):
            self.requests.remove_by_labels({"model": name})


class _EngineCounts(Collector):
    """Reads the engine's counts when it is asked for them."""

    def __init__(self, counts: Callable[[], dict[str, float]]) -> None:
        self.counts = counts

    def collect(self) -> Iterator[Metric]:
        for name, value in sorted(self.counts().items()):
            kind = GaugeMetricFamily if name in _NOW else CounterMetricFamily
            yield kind(f"jlora_engine_{name}", f"The engine's {name.replace('_', ' ')}", value=value)


class RequestCounter:
    """Middleware that counts each answered request by its route, status and model.

    A route sets `scope["jlora.model"]` once it knows the name to be that of an adapter or of the base.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Mapping[Callable[..., Any], str]) -> None:
        """`paths`: {endpoint: its route's path}."""
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = GONE

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            route = self.paths.get(scope["endpoint"], "none") if "endpoint" in scope else "none"
            self.metrics.requests.labels(route, str(status), scope.get("jlora.model", "")).inc()
        return None
