"""Starts the server of the playground."""

from __future__ import annotations

import argparse
import pathlib
import pkgutil
import secrets
import socket
import threading
import webbrowser

import uvicorn
from starlette.applications import Starlette

from jaxgpt.config import user_path
from jaxgpt.errors import UserError, log
from jaxgpt.web import runs
from jaxgpt.web.app import make_app
from jaxgpt.web.pages.base import Page

LOCAL = "127.0.0.1"
BACKLOG = 128


def execute(args: argparse.Namespace) -> None:
    """Serves until it is interrupted."""
    folder = user_path(args.workdir)
    runs.find(folder)
    local = args.host in (LOCAL, "localhost", "::1")
    token = "" if local else secrets.token_urlsafe(16)
    listening = _listen(args.host, args.port)
    port = listening.getsockname()[1]
    names = (LOCAL, "localhost", "[::1]") if local else ()
    hosts = [f"{name}:{port}" for name in names]
    app = make_app(folder, lambda run: open_page(run, args.step), hosts, token)
    host = f"[{args.host}]" if ":" in args.host else args.host
    url = f"http://{host}:{port}/" + (f"?token={token}" if token else "")
    log(f"playground: {url} (Ctrl+C ends it)")
    if not args.no_browser:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    make_server(app).run(sockets=[listening])


def make_server(app: Starlette) -> uvicorn.Server:
    """Returns a server that logs only errors and shuts down quickly."""
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def open_page(run: pathlib.Path, step: str) -> Page:
    """Returns the page of a run; imports JAX, in the model's thread, as it is slow."""
    return pkgutil.resolve_name("jaxgpt.web.pages.registry:open_page")(run, step)


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
      UserError: if the port is taken, or this machine has no such host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "choose another --port or --host"
        raise UserError(f"{host}:{port}: {reason}: {remedy}") from None
    return listening
