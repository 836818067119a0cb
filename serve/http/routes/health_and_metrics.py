"""GET /health and GET /metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response


async def report_health(request: HttpRequest) -> JSONResponse:
    """Answers 200 while requests are taken, and 503 once the server is ending."""
    ending = request.app.state.ending
    return JSONResponse({"status": "ending" if ending else "ready"}, 503 if ending else 200)


async def report_metrics(request: HttpRequest) -> Response:
    """Answers with all metrics in Prometheus' text format."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
