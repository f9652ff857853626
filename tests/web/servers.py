"""A playground that runs in a thread, and requests to it."""

import contextlib
import http.client
import json
import pathlib
import socket
import threading
import time

import jax

from jaxgpt import config as configs
from jaxgpt.commands.setup import open_setup
from jaxgpt.inference import Run
from jaxgpt.web.app import make_app
from jaxgpt.web.serve import make_server
from tests.conftest import ROOT


class Server:
    """The server of an app on a free port."""

    def __init__(self, folder, open_page, token="", hosts=True):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.socket.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        app = make_app(folder, open_page, [self.host] if hosts else [], token)
        self.uvicorn = make_server(app)
        self.thread = threading.Thread(target=self.uvicorn.run, args=([self.socket],))

    def __enter__(self):
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *reason):
        self.uvicorn.should_exit = True
        self.thread.join()

    @contextlib.contextmanager
    def answer(self, method, path, body=None, **headers):
        """Yields the response to a request, unread."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, headers)
        try:
            yield connection.getresponse()
        finally:
            connection.close()

    def get(self, path, **headers):
        """Returns (status, text, headers)."""
        with self.answer("GET", path, **headers) as response:
            return response.status, response.read().decode(), response.headers

    def post(self, path, body, **headers):
        """Returns (status, text) of a request of JSON, or of bytes as they are."""
        headers = {"content_type": "application/json"} | headers
        body = body if isinstance(body, bytes) else json.dumps(body)
        with self.answer("POST", path, body, **headers) as response:
            return response.status, response.read().decode()

    def act(self, run, action, **body):
        """Returns the events that answer an action."""
        status, text = self.post(f"/api/runs/{run}/{action}", body)
        assert status == 200, text
        return events(text)


def fresh(config, **changes):
    """A run with fresh weights and no folder."""
    made = configs.load(f"{ROOT}/configs/{config}", changes)
    setup = open_setup(made, pathlib.Path("none"))
    params = setup.system.init(jax.random.key(0))
    tokenizer = setup.data.tokenizer
    return Run(pathlib.Path("none"), made, setup.system, params, 0, tokenizer, made)


def events(text):
    """The events in a stream."""
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-1]]
