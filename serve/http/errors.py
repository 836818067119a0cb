"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from jlora.errors import ContextLengthError, JloraError
from serve.engine.requests import AdapterRefusedError, BusyError, EngineStoppedError, UnknownAdapterError

GONE = 499
"""The status, for the metrics, of a request whose client left before its answer."""
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_RETRY = {"Retry-After": "1"}


class HttpError(JloraError):
    """An error that is answered with an HTTP status.

    Attributes:
      status: the HTTP status.
      param: the key of the request that is wrong.
      code: a word for programs, such as "model_not_found".
      headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})


def to_http_error(error: JloraError) -> HttpError:
    """Returns the error with the HTTP status that says whose fault it is and whether to try again."""
    message = str(error)
    if isinstance(error, HttpError):
        return error
    if isinstance(error, UnknownAdapterError):
        return HttpError(404, message, param="model", code="model_not_found")
    if isinstance(error, ContextLengthError):
        return HttpError(400, message, code="context_length_exceeded")
    if isinstance(error, BusyError):
        return HttpError(429, message, code="server_busy", headers=_RETRY)
    if isinstance(error, EngineStoppedError):
        return HttpError(503, message, code="server_stopped", headers=_RETRY)
    if isinstance(error, AdapterRefusedError):
        return HttpError(400, message, code="adapter_refused")
    return HttpError(400, message)


def error_body(error: HttpError) -> dict[str, Any]:
    """Returns the JSON of an error, as OpenAI's."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


async def answer_error(request: HttpRequest, error: Exception) -> Response:
    """Answers an error that a route raised: ours, the framework's (no such route), or a bug."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=GONE)
    found = _find_status(request, error)
    return JSONResponse(error_body(found), found.status, found.headers)


def _find_status(request: HttpRequest, error: Exception) -> HttpError:
    if isinstance(error, JloraError):
        return to_http_error(error)
    if isinstance(error, HTTPException):
        where = f"{request.method} {request.url.path[:200]}"
        return HttpError(error.status_code, f"{where}: {error.detail}", headers=error.headers)
    return HttpError(500, "the server failed; its log has the traceback", code="internal_error")
