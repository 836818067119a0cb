"""GET /v1/models: the base, then the adapters."""

from __future__ import annotations

from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from serve.engine.requests import AdapterStatus
from serve.http.errors import HttpError


async def list_models(request: HttpRequest) -> JSONResponse:
    """Lists all names that `model` may have."""
    return JSONResponse({"object": "list", "data": await run_sync(_models, request)})


async def retrieve_model(request: HttpRequest) -> JSONResponse:
    """Answers with one of them."""
    name = request.path_params["model"]
    found = next((model for model in await run_sync(_models, request) if model["id"] == name), None)
    if found is None:
        raise HttpError(404, f"no model has the name {name[:128]!r}", param="model", code="model_not_found")
    return JSONResponse(found)


def _models(request: HttpRequest) -> list[dict[str, Any]]:
    engine, created = request.app.state.engine, request.app.state.created
    base = {"id": engine.name, "object": "model", "created": created, "owned_by": "jlora", "parent": None}
    return [base, *(_adapter_model(status, base) for status in engine.adapters())]


def _adapter_model(status: AdapterStatus, base: dict[str, Any]) -> dict[str, Any]:
    labels = {"labels": list(status.labels)} if status.labels else {}
    return base | {"id": status.name, "parent": base["id"]} | labels
