"""POST /admin/adapters and DELETE /admin/adapters/{name}."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from anyio.to_thread import run_sync
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from jlora.files.run_folder import find_adapter
from serve.http.errors import HttpError
from serve.http.json_body import read_body
from serve.http.limits import require_adapter_name
from serve.http.openai_schema import AdapterBody

logger = logging.getLogger(__name__)


async def load_adapter(request: HttpRequest) -> JSONResponse:
    """Loads an adapter, or replaces the one of its name for later requests."""
    engine = request.app.state.engine
    body = await read_body(request, AdapterBody)
    name = require_adapter_name(body.name)
    if name == engine.name:
        raise HttpError(409, f"name: {name!r} is the base's, which an adapter must not hide", param="name")
    folder = await run_sync(find_folder, body.folder, request.app.state.settings.adapter_folders)
    status = await run_sync(engine.load, name, find_adapter(folder) or folder)
    logger.info("loaded %s from %s", name, status.folder)
    found = {"name": status.name, "folder": str(status.folder), "loaded": status.loaded, "rank": status.rank}
    return JSONResponse(found | {"labels": list(status.labels)})


async def unload_adapter(request: HttpRequest) -> JSONResponse:
    """Forgets an adapter; answers that use it are finished."""
    name = require_adapter_name(request.path_params["name"])
    engine = request.app.state.engine
    await run_sync(engine.unload, name)
    logger.info("unloaded %s", name)
    # Not this one alone: an answer that was running when its adapter was unloaded is counted after that.
    known = [status.name for status in await run_sync(engine.adapters)]
    request.app.state.metrics.keep_models([engine.name, *known])
    return JSONResponse({"id": name, "object": "model", "deleted": True})


def find_folder(name: str, roots: Sequence[Path]) -> Path:
    """Returns the folder, its links resolved; a relative one is searched in each of the roots.

    Raises:
      HttpError: 400 if the system can have no such path, 403 if it is not below one of the roots, 404 if it is not
        there.
    """
    try:
        places = [place.resolve() for place in (root / name for root in roots)]  # an absolute name replaces the root
        inside = [place for place in places if any(place.is_relative_to(root.resolve()) for root in roots)]
        found = next((place for place in inside if place.is_dir()), None)
    except (OSError, ValueError, RuntimeError):  # a zero byte, a loop of links, a name that is too long
        raise HttpError(400, "folder: expected a path that the system can have", param="folder") from None
    if found is not None:
        return found
    if not inside:
        expected = "expected a folder below one of `adapter_folders` of the server's configuration"
        raise HttpError(403, f"folder: {expected}, found {name[:200]!r}", param="folder")
    message = f"folder: expected a folder, found none at {name[:200]!r}, which is searched in `adapter_folders`"
    raise HttpError(404, message, param="folder")
