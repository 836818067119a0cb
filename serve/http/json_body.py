"""Reads the JSON of a request: bounded in bytes and time, whole Unicode characters, checked by a schema."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from starlette.requests import Request as HttpRequest

from jlora.files.bounded_json import refuse_duplicates
from serve.http.errors import HttpError

SchemaT = TypeVar("SchemaT", bound=BaseModel)


async def read_body(request: HttpRequest, schema: type[SchemaT]) -> SchemaT:
    """Reads the request's JSON as `schema`.

    Raises:
      HttpError: 400 for a body that is not JSON or does not fit, 408 for a slow one, 413 for a large one, 415 for one
        of another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A form of another site can send text/plain or form data without asking; JSON it cannot.
    if kind != "application/json":
        raise HttpError(415, f"Content-Type: expected application/json, found {kind[:80]!r}")
    settings = request.app.state.settings
    try:
        with anyio.fail_after(settings.body_seconds):
            _require_small(request.headers.get("content-length", "0"), settings.largest_body)
            body = await request.body()
    except TimeoutError:
        raise HttpError(
            408, f"expected the body within {settings.body_seconds:g} seconds, found a part of it"
        ) from None
    return parse_body(body, schema)


def parse_body(body: bytes, schema: type[SchemaT]) -> SchemaT:
    """Parses and checks the JSON of a request.

    Raises:
      HttpError: 400, if the body is not JSON in UTF-8 or does not fit the schema; `param` is the wrong key, if there is
        one.
    """
    try:
        return schema.model_validate(_parse_json(body))
    except ValidationError as error:
        raise _key_error(error) from None


def _key_error(error: ValidationError) -> HttpError:
    """Returns the first of the schema's errors, with its key as in `messages[0].content`."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif "[" in part or part == "str":  # a type of a union
            break
        else:
            where += f".{part}" if where else part
    cause = first.get("ctx", {}).get("error")
    where = where or getattr(cause, "key", "")
    return HttpError(400, f"{where or 'body'}: {str(cause or first['msg'])[:500]}", param=where or None)


def _require_small(length: str, largest: int) -> None:
    """Checks the Content-Length of a body: the connection takes exactly as many bytes."""
    if not length.isascii() or not length.isdigit() or int(length[:20]) > largest:
        raise HttpError(413, f"expected a body of at most {largest:,} bytes, found a larger one")


def _parse_json(body: bytes) -> Any:
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=refuse_duplicates)
        # JSON may escape half a character (\ud800), which no UTF-8 and so no response can hold.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"body: expected JSON in UTF-8, found: {str(error)[:200]}") from None
    return value
