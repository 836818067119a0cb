"""POST /v1/classify."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from jlora.errors import ContextLengthError
from serve.http.errors import GONE, HttpError
from serve.http.event_stream import while_connected
from serve.http.json_body import read_body
from serve.http.openai_schema import ClassifyBody
from serve.http.which_model import adapter_of, classifying_engine


async def classify_texts(request: HttpRequest) -> Response:
    """Answers with the probability of each label for each text or pair of texts."""
    engine, classifying = request.app.state.engine, classifying_engine(request)
    body = await read_body(request, ClassifyBody)
    adapter = adapter_of(body.model, engine.name)
    if adapter is None:
        raise HttpError(404, "model: expected an adapter, found the base, which has no labels", param="model")
    rows = await request.app.state.prompts.from_rows(body.input)
    ids = [row.ids for row in rows]
    _require_fitting(ids, engine.context_length)
    answer = await run_sync(classifying.classify, adapter, ids, [row.types for row in rows])
    found = await while_connected(request.receive, lambda: asyncio.wrap_future(answer))
    if found is None:
        return Response(status_code=GONE)
    request.scope["jlora.model"] = adapter
    data = [_row(index, found.labels, row) for index, row in enumerate(found.probabilities)]
    count = sum(map(len, ids))
    request.app.state.metrics.count_tokens(count, 0)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "model": adapter, "data": data, "usage": usage})


def _require_fitting(rows: Sequence[Sequence[int]], context_length: int) -> None:
    for index, row in enumerate(rows):
        if len(row) > context_length:
            raise ContextLengthError(f"input[{index}]: expected at most {context_length} tokens, found {len(row)}")


def _row(index: int, labels: Sequence[str], probabilities: Sequence[float]) -> dict[str, Any]:
    best = max(range(len(labels)), key=probabilities.__getitem__)
    return {
        "object": "classification",
        "index": index,
        "label": labels[best],
        "probabilities": dict(zip(labels, probabilities, strict=True)),
    }
