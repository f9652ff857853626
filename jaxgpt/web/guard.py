"""Keeps other sites, other hosts and large requests from the server."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxgpt.web.requests import MAX_BYTES

HEADERS = {
    # Only the page's own files run or are shown, whatever a text contains.
    "content-security-policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class TooLargeError(Exception):
    """The body of a request is too large."""


class Guard:
    """Refuses requests that are not from the page that this server has sent."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str = ""):
        """Allows these values of Host, or any if there are none; requires the token."""
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if refusal := self.refusal(scope):
            await refusal(scope, receive, headed)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BYTES:
                raise TooLargeError
            return message

        try:
            await self.app(scope, limited, headed)
        except TooLargeError:
            too_large = f"the request must have at most {MAX_BYTES:,} bytes"
            await PlainTextResponse(too_large, 413)(scope, receive, headed)

    def refusal(self, scope: Scope) -> PlainTextResponse | None:
        """Returns the refusal of a request; None if it is allowed."""
        headers = Headers(scope=scope)
        # Against DNS rebinding: a hostile site has another name for this machine.
        host = headers.get("host", "").lower()
        if self.hosts and host not in self.hosts:
            return PlainTextResponse("this host is not served here", 421)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            return PlainTextResponse("another site's page may not ask for this", 403)
        given = headers.get("authorization", "").removeprefix("Bearer ")
        given = given or QueryParams(scope["query_string"]).get("token", "")
        static = scope["path"].startswith("/static/")
        # In constant time, which tells nothing of the token.
        same = hmac.compare_digest(given.encode("utf8", "replace"), self.token.encode())
        if self.token and not static and not same:
            message = "the URL that the server printed has a token: use that one"
            return PlainTextResponse(message, 403)
        return None
