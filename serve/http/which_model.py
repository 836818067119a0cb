"""Which engine and which adapter a request asks for."""

from __future__ import annotations

from typing import Any, cast

from starlette.requests import Request as HttpRequest

from serve.engine.requests import Classifying, Engine
from serve.http.errors import HttpError
from serve.http.limits import require_adapter_name


def generating_engine(request: HttpRequest) -> Engine:
    """Returns the engine; raises HttpError 404 if it classifies and generates no text."""
    return cast(Engine, _engine_with("submit", request, "its models classify: ask /v1/classify"))


def classifying_engine(request: HttpRequest) -> Classifying:
    """Returns the engine; raises HttpError 404 if it generates text and does not classify."""
    return cast(Classifying, _engine_with("classify", request, "its models generate text: ask /v1/chat/completions"))


def adapter_of(model: str, base: str) -> str | None:
    """Returns the adapter that the key `model` names; None is the base.

    Whether the adapter is known is the engine's to say. A name that no adapter can have is unknown.

    Raises:
      HttpError: 404.
    """
    if model == base:
        return None
    try:
        return require_adapter_name(model)
    except HttpError as error:
        reason = str(error).removeprefix("name: ")
        raise HttpError(404, f"model: {reason}", param="model", code="model_not_found") from None


def _engine_with(method: str, request: HttpRequest, instead: str) -> Any:
    engine = request.app.state.engine
    if not hasattr(engine, method):
        raise HttpError(404, f"{request.url.path}: this server does not have it, {instead}")
    return engine
