"""What MkDocs does to the pages of docs/ beyond Markdown: mkdocs.yml names this file.

A comment `<!-- help: NAME -->` becomes what a command prints with --help, and
`<!-- fields: GROUP -->` a table of the config fields of a group. Pictures open in full
size. Links to files of the repository that are not pages, which work on GitHub, become
their paths.
"""

from __future__ import annotations

import html
import logging
import os
import pathlib
import re
import subprocess
import sys

from jaxgpt import config as configs

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = re.compile(r"^!\[[^\]]*\]\((\S+)\)$", re.M)
NOTEBOOK_LINK = re.compile(r'<a href="([^":#]+)(#[^"]*)?"[^>]*>(.*?)</a>', re.S)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#]*)(?:#[^)]*)?\)")
log = logging.getLogger("mkdocs.hooks.site")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Returns the page with its comments replaced and its links inside the site."""
    if page.parent is None:  # Alone in its tab: nothing to list beside it.
        page.meta["hide"] = ["navigation"]
    markdown = re.sub(r"<!-- help: (\S+) -->", lambda m: help_of(m[1]), markdown)
    markdown = re.sub(r"<!-- fields: (\S*) -->", lambda m: fields(m[1]), markdown)
    markdown = PICTURE.sub(r"[\g<0>](\1)", markdown)
    folder = (ROOT / "docs" / page.file.src_uri).parent
    return LINK.sub(lambda m: as_path(m[1], m[2], folder) or m[0], markdown)


def on_page_content(content: str, page, **_) -> str:
    """Returns the page with places to break long names in tables: narrow screens.

    The links of a notebook, which MkDocs leaves alone, lead to pages of the site.
    """
    if page.file.src_uri.endswith(".ipynb"):
        folder = (ROOT / "docs" / page.file.src_uri).parent
        content = NOTEBOOK_LINK.sub(lambda m: of_a_notebook(m, folder), content)
    name = r"(?<=<td><code>)[^<]{40,}"
    return re.sub(name, lambda m: m[0].replace("_", "_<wbr>"), content)


def of_a_notebook(link: re.Match[str], folder: pathlib.Path) -> str:
    """Returns a link of a notebook as one to a page, or as a path in <code>."""
    if path := as_path(link[3], link[1], folder):
        return re.sub(r"`([^`]*)`", r"<code>\1</code>", path)
    page = re.sub(r"\.(md|ipynb)$", ".html", link[1])
    return f'<a href="{page}{link[2] or ""}">{link[3]}</a>'


def help_of(command: str) -> str:
    """Returns a code block with what `python -m COMMAND --help` prints, 80 wide."""
    printed = subprocess.run(
        [sys.executable, "-m", command, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    return f"```text\n{printed.stdout}```"


def fields(group: str) -> str:
    """Returns the table of a group's fields; of those without a group for "top"."""
    rows = ["| field | |", "|---|---|"]
    for key, option in configs.options().items():
        if key.rpartition(".")[0] != ("" if group == "top" else group):
            continue
        about = html.escape(option.help).replace("|", "\\|")
        if option.choices:
            about += f": {', '.join(f'`{choice}`' for choice in option.choices)}"
        if option.default != "":
            about += f"; default `{option.default}`"
        rows.append(f"| `{key}` | {about} |")
    if len(rows) == 2:
        log.warning("no config field is in the group '%s'", group)
    return "\n".join(rows)


def as_path(text: str, link: str, folder: pathlib.Path) -> str:
    """Returns a link out of docs/ as the path it leads to, as code; "" for others."""
    target = (folder / link).resolve()
    if target.is_relative_to(ROOT / "docs"):
        return ""
    if not target.exists():
        log.warning("a page links to '%s', which does not exist", link)
    path = target.relative_to(ROOT).as_posix()
    bare = re.sub(r"`|</?code>", "", text)
    return f"`{path}`" if bare == path else f"{text} (`{path}`)"
