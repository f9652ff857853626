"""One thread that holds one model, and does one job after another."""

from __future__ import annotations

import asyncio
import collections
import pathlib
import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any

from jaxgpt.errors import CheckError, UserError, log
from jaxgpt.web.pages.base import Event, Page
from jaxgpt.web.requests import Request

MAX_WAITING = 64


class BusyError(Exception):
    """The queue of jobs is full."""


class Job:
    """A request, and the events that answer it."""

    def __init__(self, run: pathlib.Path, action: str, request: Request):
        self.run, self.action, self.request = run, action, request
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()
        self.cancelled = threading.Event()

    def emit(self, event: Event | None) -> bool:
        """See `Emit`."""
        if event and not self.cancelled.is_set():
            self._put(event)
        return not self.cancelled.is_set()

    def end(self) -> None:
        """Marks the end of the events."""
        self._put(None)

    def _put(self, event: Event | None) -> None:
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # The server has stopped.
            self.cancelled.set()


class Worker:
    """Does one job after another, and keeps the model of the last one.

    Attributes:
      open_page: loads the run in a folder, and returns its page.
    """

    def __init__(self, open_page: Callable[[pathlib.Path], Page]):
        self.open_page = open_page
        # The same jobs as in the queue, and the one that runs.
        self.waiting: collections.deque[Job] = collections.deque()
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.opened: tuple[Any, Page] | None = None
        self.thread = threading.Thread(target=self._work, daemon=True, name="model")
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue.

        Raises:
          BusyError: if the queue is full.
        """
        ahead = len(self.waiting)
        if ahead >= MAX_WAITING:
            raise BusyError
        self.waiting.append(job)
        if ahead:
            job.emit({"type": "queued", "ahead": ahead})
        self.jobs.put(job)

    def stop(self) -> None:
        """Cancels all jobs; the thread ends once it notices."""
        for job in list(self.waiting):
            job.cancelled.set()
        self.jobs.put(None)

    def _work(self) -> None:
        while job := self.jobs.get():
            if not job.cancelled.is_set():
                self._do(job)
            self.waiting.popleft()
            job.end()

    def _do(self, job: Job) -> None:
        try:
            page = self._page(job)
            action = page.actions.get(job.action)
            if job.action == "describe":
                job.emit({"type": "done", "kind": page.kind, **page.describe()})
            elif action:
                action(job.request, job.emit)
            else:
                raise UserError(f"this run cannot {job.action}")
        except (UserError, CheckError) as error:
            job.emit({"type": "error", "message": str(error)})
        except Exception:  # A bug: the terminal shows it.
            log(traceback.format_exc())
            message = "the server failed: its terminal says more"
            job.emit({"type": "error", "message": message})

    def _page(self, job: Job) -> Page:
        """Returns the page of the job's run; loads it if it is new or has changed."""
        key = job.run, _version(job.run)
        if not self.opened or self.opened[0] != key:
            job.emit({"type": "loading"})
            self.opened = None  # Frees the old model before the new one is loaded.
            self.opened = key, self.open_page(job.run)
        return self.opened[1]


def _version(run: pathlib.Path) -> list[str]:
    """Returns the checkpoints of a run, which change while it trains."""
    try:
        names = (path.name for path in (run / "checkpoints").iterdir())
        return sorted(name for name in names if name.isdigit())
    except OSError:
        return []
