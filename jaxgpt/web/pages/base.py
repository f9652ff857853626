"""The interface between the page in the browser and what a system can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

Event = dict[str, Any]
# Sends an event to the browser, None nothing; false once nobody waits for more.
Emit = Callable[[Event | None], bool]
Action = Callable[[Any, Emit], None]


class Page(Protocol):
    """What the page shows of one opened run.

    Attributes:
      kind: which part of the page is shown: a file static/KIND.js.
      actions: by the names in `jaxgpt.web.requests.ACTIONS`; each is given the request
        and sends events as it goes, the last of them of type "done".
    """

    kind: str
    actions: Mapping[str, Action]

    def describe(self) -> Event:
        """Returns what the page must know to offer its controls, as JSON."""
