"""GET /health and GET /metrics."""

from __future__ import annotations

from anyio.to_thread import run_sync
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from serve.engine.requests import Engine, EngineStoppedError


async def report_health(request: HttpRequest) -> JSONResponse:
    """Answers 200 while requests are taken, and 503 once the server is ending, or the engine has failed."""
    if request.app.state.ending:
        return JSONResponse({"status": "ending"}, 503)
    if not await run_sync(_is_running, request.app.state.engine):
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ready"})


async def report_metrics(request: HttpRequest) -> Response:
    """Answers with all metrics in Prometheus' text format."""
    text = await run_sync(generate_latest, request.app.state.metrics.registry)  # which asks the engine
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _is_running(engine: Engine) -> bool:
    try:
        engine.counts()
    except EngineStoppedError:
        return False
    return True
