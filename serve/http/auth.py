"""Who may ask: bearer tokens, and without one only browsers and programs of this machine."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.errors import HttpError, answer_error
from serve.http.limits import require_small_headers
from serve.http.settings import HttpSettings

_OWN_NAMES = {"127.0.0.1", "localhost", "[::1]"}
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Admission:
    """Middleware that refuses a request with large headers, or without the token that its route asks for."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                require_small_headers(scope)
                require_access(scope["path"], Headers(scope=scope), self.settings)
            except HttpError as error:
                response = await answer_error(HttpRequest(scope), error)
                return await response(scope, receive, send)
        return await self.app(scope, receive, send)


class NoSniffing:
    """Middleware that keeps browsers from guessing what a response is, and from showing an answer as a page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self.app(scope, receive, send_with_header)


def require_access(path: str, headers: Headers, settings: HttpSettings) -> None:
    """Checks the token of a request.

    Raises:
      HttpError: 401 without the right token; 403 for `/admin` where no token is set, and for a name in `Host` that is
        not this machine's where no token is asked for.
    """
    if settings.token is None:
        _require_own_name(headers.get("host", ""))
    if path.startswith("/admin/"):
        if settings.admin_token is None:
            raise HttpError(
                403, "the admin routes are off: set admin_token in the server's configuration to turn them on"
            )
        _require_token(headers, settings.admin_token, "the admin token")
    elif settings.token is not None and (path.startswith("/v1/") or path == "/metrics"):
        _require_token(headers, settings.token, "the server's token")


def _require_token(headers: Headers, expected: str, which: str) -> None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    # compare_digest takes the same time wherever the two differ, so that a token cannot be guessed letter by letter.
    is_right = hmac.compare_digest(token.strip().encode("latin-1", "replace"), expected.encode())
    if scheme.lower() != "bearer" or not is_right:
        message = f"Authorization: expected 'Bearer' and {which}, found {'another' if token else 'none'}"
        raise HttpError(401, message, code="invalid_api_key", headers=_CHALLENGE)


def _require_own_name(host: str) -> None:
    """Refuses DNS rebinding: a site whose name is made to point to 127.0.0.1 could read the answers in a browser."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.lower() not in _OWN_NAMES:
        names = ", ".join(sorted(_OWN_NAMES))
        raise HttpError(403, f"Host: expected one of {names}, since the server has no token; found {host[:80]!r}")
