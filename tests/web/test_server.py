"""The server with a page that needs no model: what is refused, in which turn, and what
is cancelled."""

import json
import pathlib
import threading
import time
import urllib.parse

import pytest

from jaxgpt.errors import UserError
from jaxgpt.web.requests import ACTIONS, MAX_BYTES
from tests.web.servers import Server

SECRET = "what no browser may read"


class SlowPage:
    """Fills by waiting, until it is told to end or nobody listens."""

    kind = "text"

    def __init__(self, folder):
        if folder.name == "broken":
            raise UserError("this run is broken: train it anew")
        self.running = self.most = self.ended = 0
        self.go = threading.Event()
        self.actions = {"fill": self.fill, "score": self.fail}

    def describe(self):
        return {"longest": 64}

    def fill(self, request, emit):
        self.running += 1
        self.most = max(self.most, self.running)
        emit({"type": "running", "compiling": False})
        while emit(None) and not self.go.wait(0.005):
            pass
        self.running -= 1
        self.ended += 1
        emit({"type": "done", "seed": request.seed})

    def fail(self, request, emit):
        raise ZeroDivisionError(SECRET)


@pytest.fixture
def folder(tmp_path):
    runs = tmp_path / "runs"
    for name in ("one", "broken", "Ünï cödé"):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text("{}")
    (tmp_path / "secret.txt").write_text(SECRET)
    (runs / "one" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": NaN, "val_loss": 2.0}\n{"ste'
    )
    return runs


@pytest.fixture
def pages():
    return {}


@pytest.fixture
def server(folder, pages):
    def open_page(path):
        return pages.setdefault(path.name, SlowPage(path))

    with Server(folder, open_page) as server:
        yield server
        for page in pages.values():
            page.go.set()


def test_the_page_and_its_files_are_served_and_no_others(server):
    status, text, headers = server.get("/")
    assert status == 200 and "jaxgpt" in text
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert server.get("/static/app.js")[0] == 200
    for path in (
        *("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"),
        *("/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/__init__.py"),
        *("/../secret.txt", "/api/runs/..%2fsecret.txt/curves", "/secret.txt"),
        *("/api/runs/%2e%2e/curves", "/api/runs/one%2f..%2fone/curves"),
        *("/api/runs/one%00/curves", "/config.json", "/api/runs/one/config.json"),
    ):
        status, text, _ = server.get(path)
        assert status in (404, 405) and SECRET not in text, path
        assert len(text.splitlines()) == 1


def test_runs_are_listed_with_what_is_wrong_and_their_curves(server):
    listed = json.loads(server.get("/api/runs")[1])
    assert [run["name"] for run in listed] == ["broken", "one", "Ünï cödé"]
    assert all(run["problem"] for run in listed)
    curves = json.loads(server.get("/api/runs/one/curves")[1])
    assert curves == {"loss": [[1, 2.5]], "val_loss": [[2, 2.0]]}
    quoted = urllib.parse.quote("Ünï cödé")
    assert json.loads(server.get(f"/api/runs/{quoted}/curves")[1])["loss"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1:1"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
def test_other_hosts_and_sites_are_refused(server, headers):
    for status, text in (
        server.get("/", **headers)[:2],
        server.post("/api/runs/one/describe", {}, **headers),
    ):
        assert status in (403, 421)
        assert len(text.splitlines()) == 1


def test_a_form_of_another_site_is_refused(server):
    """A browser sends these types without asking the server first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        status, _ = server.post("/api/runs/one/describe", b"{}", content_type=kind)
        assert status == 415


def test_a_token_is_asked_for_beyond_this_machine(folder):
    with Server(folder, SlowPage, token="s3cret", hosts=False) as server:
        assert server.get("/", host="name.example")[0] == 403
        assert server.get("/?token=wrong")[0] == 403
        assert server.get("/?token=s3cret", host="name.example")[0] == 200
        assert server.get("/api/runs")[0] == 403
        assert server.get("/api/runs", authorization="Bearer s3cret")[0] == 200
        assert server.get("/api/runs", authorization="Bearer s3crét")[0] == 403


def wrong_bodies():
    """Requests that are JSON but cannot be meant."""
    gap = {"gap": 1}
    for value in (None, [], 3, "x", True, [[]]):
        yield "fill", value
        yield "score", value
    for wrong in (-1, 0, 9, 1.5, "1", None, True, [], {}, 10**30):
        yield "fill", {"pieces": [gap], "num_samples": wrong}
    for wrong in (-1, 1.5, "1", None, True, [], {}, 1 << 31, 10**30):
        yield "fill", {"pieces": [gap], "seed": wrong}
        yield "score", {"text": "ab", "seed": wrong}
        yield "problem", {"seed": wrong}
        yield "sequence", {"seed": wrong}
    for wrong in (
        *(None, 3, "x", [None], ["a"], [3], [[]], [{}], [{"text": 3}], [{"gap": 0}]),
        *([{"gap": -1}], [{"gap": "4"}], [{"gap": 1.5}], [{"gap": True}], [{"x": 1}]),
        *([{"gap": 10**9}], [{"text": "a", "gap": 1}], [{"tokens": [-1]}]),
        *([{"tokens": ["a"]}], [{"tokens": 3}], [{"tokens": [1.0]}]),
        *([{"tokens": [1 << 31]}], [{"text": None}], [{"text": "\ud800"}]),
        *([{"text": "x" * 20_001}], [gap] * 17_000),
    ):
        yield "fill", {"pieces": wrong}
    for wrong in (
        *(None, 3, [], "x", {"temperature": -1}, {"temperature": "hot"}),
        *({"temperature": None, "x": 1}, {"top_k": 0}, {"top_k": 1.5}, {"top_p": 0}),
        *({"top_p": 2}, {"sampler": 3}, {"order": 3}, {"order": None}),
        *({"num_orders": 0}, {"unknown": 1}, {"order": "x" * 2000}),
        *({"entropy_bound": -1}, {"tokens_per_pass": 0}, {"block_length": -2}),
    ):
        yield "fill", {"pieces": [gap], "sampling": wrong}
        yield "solve", {"tokens": [1], "known": [False], "sampling": wrong}
    for wrong in (None, 3, "x", [None], ["1"], [1.5], [True], [-1], [1] * 20_000):
        yield "solve", {"tokens": wrong}
        yield "sequence", {"tokens": wrong}
    for wrong in (None, 3, "x", [None], ["1"], [1], [[]]):
        yield "solve", {"tokens": [1], "known": wrong}
    for wrong in (None, 3, [], {}, True, "x" * 30_000, "\udfff"):
        yield "score", {"text": wrong}
        yield "remember", {"name": "a", "text": wrong}
        yield "remember", {"name": wrong, "text": "a"}
        yield "forget", {"name": wrong}
    for action in ACTIONS:
        yield action, {"unknown": 1}
        yield action, {"__proto__": {}}


def test_malformed_requests_are_refused_in_one_line(server, capsys):
    wrong = list(wrong_bodies())
    assert len(wrong) >= 180
    for action, body in wrong:
        status, text = server.post(f"/api/runs/one/{action}", body)
        assert status == 400, (action, body, text)
        assert 0 < len(text) < 400 and len(text.splitlines()) == 1, text
    texts = (b"", b"{", b"nul", b"\xff\xfe", b"[" * 100_000, b'{"a":', b"NaN", b"'a'")
    for body in texts:
        assert server.post("/api/runs/one/fill", body)[0] == 400, body[:20]
    assert server.post("/api/runs/one/fill", b'{"seed": Infinity}')[0] == 400
    assert server.post("/api/runs/one/unknown", {})[0] == 404
    assert server.post("/api/runs/two/fill", {})[0] == 404
    assert server.post("/api/runs/one/describe", b" " * (MAX_BYTES + 1))[0] == 413
    assert server.get("/api/runs/one/fill")[0] == 405
    assert "Traceback" not in capsys.readouterr().err


def test_what_breaks_is_one_line_here_and_a_traceback_in_the_terminal(server, capsys):
    event = server.act("one", "score", text="ab")[-1]
    assert event["type"] == "error" and SECRET not in event["message"]
    assert SECRET in capsys.readouterr().err
    assert server.act("one", "forget", name="a")[-1]["type"] == "error"
    last = server.act("broken", "describe")[-1]
    assert last == {"type": "error", "message": "this run is broken: train it anew"}
    assert server.act("one", "describe")[-1]["longest"] == 64


def test_requests_take_turns_and_too_many_are_turned_away(server, pages):
    pages["one"] = page = SlowPage(pathlib.Path("one"))
    answers = []

    def ask(seed):
        body = {"pieces": [{"gap": 1}], "seed": seed}
        answers.append(server.post("/api/runs/one/fill", body))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(70)]
    for thread in threads:
        thread.start()
    while len(answers) < 6:  # Of 70 requests 64 may wait.
        time.sleep(0.01)
    page.go.set()
    for thread in threads:
        thread.join()
    assert page.most == 1
    statuses = sorted(status for status, _ in answers)
    assert statuses == [200] * 64 + [503] * 6
    seeds = {json.loads(t.split("data: ")[-1])["seed"] for s, t in answers if s == 200}
    assert len(seeds) == 64
    assert sum('"queued"' in text for _, text in answers) == 63


def test_a_browser_that_goes_ends_the_work_that_it_asked_for(server, pages):
    body = json.dumps({"pieces": [{"gap": 1}]})
    kind = "application/json"
    with server.answer("POST", "/api/runs/one/fill", body, content_type=kind) as first:
        first.readline()
        page = pages["one"]
        with server.answer("POST", "/api/runs/one/fill", body, content_type=kind):
            assert page.running == 1
    # Neither waits for anything now: the next one is answered at once.
    assert server.act("one", "describe")[-1]["type"] == "done"
    assert (page.running, page.ended) == (0, 1)
