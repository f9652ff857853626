"""A page that replays recorded fillings without a server."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
from typing import Any

from jaxgpt import api, cli
from jaxgpt.config import user_path
from jaxgpt.errors import UserError, atomic_write, log
from jaxgpt.inference import Run
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.web import runs
from jaxgpt.web.pages.base import Event
from jaxgpt.web.pages.text import TextPage

STATIC = pathlib.Path(__file__).with_name("static")
MODULES = ("dom.js", "player.js", "tokens.js", "replay.js")
MOST_BYTES = 1_000_000
TEMPERATURE = 0.7

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="content-security-policy" content="default-src 'none';\
 script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>A model that writes in any order</title>
<style>{style}</style>
</head>
<body>
<header><h1>A model that writes in any order</h1></header>
<main id="stage"></main>
<div id="popover" role="dialog" aria-label="What the model considered" hidden></div>
<script type="application/json" id="recorded">{recorded}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def execute(args: argparse.Namespace) -> None:
    """Writes the page of --export for the run in --workdir."""
    found = runs.find(user_path(args.workdir))
    if len(found) > 1:
        raise UserError("--export is for one run: name its folder as --workdir")
    path = cli.output_path("export", args.export, (".html",))
    template = cli.text_of("template", args.template) or ""
    size = export(api.load(*found.values(), step=args.step), path, template, args.seed)
    log(f"{path}: {size:,} bytes; it needs no server")


def export(run: Run, path: pathlib.Path, template: str, seed: int) -> int:
    """Writes the page; returns its bytes.

    The same gaps are filled one by one and in exact bursts, in the run's usual order
    and in a random one; a run that reads left to right fills them once.

    Args:
      run: of text.
      template: with gaps written <missing:12>; "" for the page's example.
      seed: of the draws.

    Raises:
      UserError: for another run, a template that does not fit, or too large a page.
    """
    if not run.system.reads_text or run.config.system == "memory":
        raise UserError("--export is for runs that write texts")
    page = TextPage(run)
    template = template or "".join(
        piece.get("text") or f"<missing:{piece['gap']}>" for piece in page.example()
    )
    given = run.reader.template(template)
    if given.known.all():
        raise UserError("--template has no gap to fill: write one as <missing:12>")
    ways = [("ar", page.usual_order()), ("exact-burst", page.usual_order())]
    ways += [("exact-burst", "random")] * (page.usual_order() != "random")
    fillings = []
    for sampler, order in ways if page.any_order else [("", "")]:
        sampling = SamplingParams(sampler, order, TEMPERATURE)
        filling = _Filling()
        page.generate(given, sampling, 1, seed, filling.add)
        fillings.append({"title": _title(sampler, order), **filling.found})
    about = page.describe()
    facts = {name: about[name] for name in ("system", "step", "parameters")}
    text = PAGE.format(
        style=(STATIC / "style.css").read_text(),
        script="\n".join(map(_inlined, MODULES)),
        recorded=_json({"run": run.workdir.name, **facts, "fillings": fillings}),
    )
    size = len(text.encode())
    if size > MOST_BYTES:
        raise UserError(
            f"the page would have {size:,} bytes, more than {MOST_BYTES:,}: give a "
            "shorter --template"
        )
    with atomic_write(path) as stream:
        stream.write(text)
    return size


def _title(sampler: str, order: str) -> str:
    how = "Exact bursts" if sampler == "exact-burst" else "One by one"
    return f"{how}, {order or 'left-to-right'}"


class _Filling:
    """Collects from the events of a filling what a replay needs."""

    def __init__(self):
        self.found: dict[str, Any] = {}
        self.pieces: dict[int, Any] = {}

    def add(self, event: Event | None) -> bool:
        """See `Emit`."""
        if event and event["type"] == "start":
            self.found |= {"known": event["known"], "given": event["pieces"]}
        elif event and event["type"] == "frame":
            self.pieces |= {piece[0]: piece for piece in event["rows"][0]}
            self.found["pieces"] = [*self.pieces.values()]
        elif event and event["type"] == "alternatives":
            self.found["alternatives"] = event["tokens"]
        elif event and event["type"] == "done":
            self.found["sample"] = event["samples"][0]
        return True


def _inlined(name: str) -> str:
    """Returns a module without its imports and exports."""
    text = (STATIC / name).read_text()
    text = re.sub(r"^import .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^export (default )?", "", text, flags=re.MULTILINE)


def _json(value: Any) -> str:
    # Escaped, so that no text can end the script element that contains it.
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
