"""Which page a run gets."""

from __future__ import annotations

import pathlib
import pkgutil

from jaxgpt import api
from jaxgpt.errors import UserError
from jaxgpt.web.pages.base import Page

# By the name of a system; others that read text get `TEXT`.
PAGES = {
    "sigma-task": "jaxgpt.web.pages.task:TaskPage",
    "memory": "jaxgpt.web.pages.memory:MemoryPage",
    "gssm": "jaxgpt.web.pages.chain:ChainPage",
}
TEXT = "jaxgpt.web.pages.text:TextPage"


def open_page(folder: pathlib.Path, step: str) -> Page:
    """Loads a run and returns its page; UserError if it has none."""
    run = api.load(folder, step=step)
    name = run.config.system
    if name not in PAGES and not run.system.reads_text:
        raise UserError(f"the playground has no page for runs of system={name}")
    return pkgutil.resolve_name(PAGES.get(name, TEXT))(run)
