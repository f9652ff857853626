"""The web application: the page's files, the runs, and events for each request."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from jaxgpt.errors import UserError
from jaxgpt.web import runs
from jaxgpt.web.guard import Guard
from jaxgpt.web.pages.base import Page
from jaxgpt.web.requests import ACTIONS, parse
from jaxgpt.web.worker import BusyError, Job, Worker

STATIC = pathlib.Path(__file__).with_name("static")


def make_app(
    folder: pathlib.Path,
    open_page: Callable[[pathlib.Path], Page],
    hosts: Collection[str],
    token: str = "",
) -> Starlette:
    """Returns the application.

    Args:
      folder: of a run, or of runs.
      open_page: loads the run in a folder, and returns its page.
      hosts: allowed values of the header Host.
      token: required of every request; "" for none.
    """
    worker = Worker(open_page)

    def folder_of(request: Request) -> pathlib.Path:
        # The name is only looked up, so that it cannot be a path out of the folder.
        found = runs.find(folder).get(unquote(request.path_params["run"]))
        if found is None:
            raise HTTPException(404, "there is no such run: reload the page")
        return found

    async def index(request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def list_runs(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(runs.listed, folder))

    async def curves(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(runs.curves, folder_of(request)))

    async def act(request: Request) -> Response:
        action = request.path_params["action"]
        if action not in ACTIONS:
            raise HTTPException(404, "there is no such action")
        job = Job(folder_of(request), action, parse(action, await _body(request)))
        worker.submit(job)
        return StreamingResponse(_stream(job), media_type="text/event-stream")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        worker.stop()

    return Starlette(
        routes=[
            Route("/", index),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/api/runs", list_runs),
            Route("/api/runs/{run}/curves", curves),
            Route("/api/runs/{run}/{action}", act, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, hosts=hosts, token=token)],
        exception_handlers={UserError: _wrong, BusyError: _busy},
        lifespan=lifespan,
    )


async def _body(request: Request) -> Any:
    # Another site's form cannot send this type without a CORS preflight.
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "the request must be application/json")
    try:
        return json.loads(await request.body(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is not JSON") from None


def _no_constant(name: str) -> None:
    # NaN and Infinity, which Python's parser takes and JSON does not have.
    raise ValueError(name)


async def _stream(job: Job) -> AsyncIterator[str]:
    """Yields the events of a job; cancels it when the browser disconnects."""
    try:
        while (event := await job.events.get()) is not None:
            yield f"data: {json.dumps(event, separators=(',', ':'))}\n\n"
    finally:
        job.cancelled.set()


def _wrong(request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 400)


def _busy(request: Request, error: Exception) -> Response:
    return PlainTextResponse("too many requests are waiting: try again", 503)
