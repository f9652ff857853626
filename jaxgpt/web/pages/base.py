"""The interface between the page in the browser and a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

Event = dict[str, Any]
# Sends an event, if any, to the browser; returns False once that has disconnected.
Emit = Callable[[Event | None], bool]
Action = Callable[[Any, Emit], None]


class Page(Protocol):
    """What the page shows of one run.

    Attributes:
      kind: of page, static/KIND.page.js.
      actions: by their names in `jaxgpt.web.requests.ACTIONS`; each takes the request
        and sends events, the last of type "done".
    """

    kind: str
    actions: Mapping[str, Action]

    def describe(self) -> Event:
        """Returns what the page needs for its controls, as JSON."""
