"""The page at `/`: a chat with the adapters, which it calls characters."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

_FOLDER = Path(__file__).parents[1] / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/page/chat.js": ("chat.js", "text/javascript"),
    "/page/server.js": ("server.js", "text/javascript"),
    "/page/style.css": ("style.css", "text/css"),
}
PATHS = tuple(_FILES)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}
"""The page runs its own script and asks its own server only, whatever a text in it says."""


async def show_page(request: HttpRequest) -> Response:
    """Answers with one of the page's files."""
    name, kind = _FILES[request.url.path]
    return Response((_FOLDER / name).read_bytes(), headers=_HEADERS, media_type=kind)
