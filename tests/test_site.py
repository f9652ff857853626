"""The pages of docs/: in the navigation of mkdocs.yml, with links that lead somewhere.

Nothing here needs MkDocs; `make docs` builds the site itself, strictly.
"""

import importlib.util
import json
import pathlib
import re
import tomllib
import types
import unicodedata

import pytest
import yaml

from jaxgpt import config as configs
from jaxgpt.__main__ import COMMANDS
from scripts import figures, site_hooks
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")])


def text_of(page):
    """A page's Markdown; of a notebook that of its cells of text."""
    text = page.read_text()
    if page.suffix == ".md":
        return text
    cells = json.loads(text)["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return "\n\n".join(texts)


TEXTS = {page: text_of(page) for page in [ROOT / "README.md", *PAGES]}


def without_code(text):
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"^    .*$|`[^`\n]*`", "", text, flags=re.M)


def in_navigation(entry):
    """The files of mkdocs.yml's nav, in their order."""
    if isinstance(entry, str):
        return [entry]
    entries = entry.values() if isinstance(entry, dict) else entry
    return [file for part in entries for file in in_navigation(part)]


def anchors(page, rule):
    text = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.M | re.S)
    return {rule(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}


def of_github(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def of_the_site(heading):
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def test_the_navigation_has_every_page_once():
    listed = in_navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(f.relative_to(DOCS).as_posix() for f in PAGES)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_relative_link_and_anchor_of_a_page_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(TEXTS[page])):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            # The same link is followed on GitHub and on the site.
            assert anchor in anchors(target, of_github), link
            assert anchor in anchors(target, of_the_site), link


def test_the_reference_has_every_command_and_every_group_of_fields():
    commands = re.findall(r"<!-- help: (\S+) -->", TEXTS[DOCS / "commands.md"])
    assert commands == ["jaxgpt", *(f"jaxgpt.{name}" for name in COMMANDS)]
    fields = re.findall(r"<!-- fields: (\S+) -->", TEXTS[DOCS / "config-fields.md"])
    assert sorted(fields) == sorted(group or "top" for group in configs.groups())


def test_what_the_api_pages_show_exists():
    found = [re.findall(r"^::: (\S+)", TEXTS[page], re.M) for page in PAGES]
    named = [name for page in found for name in page]
    assert len(named) > 8
    for name in named:
        module, _, last = name.rpartition(".")
        is_class = last[0].isupper()
        spec = importlib.util.find_spec(module if is_class else name)
        assert spec, name
        if is_class:
            source = pathlib.Path(spec.origin).read_text()
            assert re.search(rf"^class {last}\b", source, re.M), name


def test_the_extras_are_explained():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = re.findall(r"^\| `(\w+)` \|", TEXTS[DOCS / "start.md"], re.M)
    assert sorted(rows) == sorted(known["optional-dependencies"])


def test_the_gallery_has_every_picture_before_what_makes_it():
    gallery = TEXTS[DOCS / "gallery.md"]
    parts = re.split(r"    python -m scripts\.figures (\w+)\n", gallery)
    shown = {
        name: set(re.findall(r"!\[.*\]\((.*)\)", part))
        for part, name in zip(parts[::2], parts[1::2], strict=False)
    }
    made = {name: set(figure.pictures) for name, figure in figures.FIGURES.items()}
    assert shown == made


def page_of(name):
    file = types.SimpleNamespace(src_uri=name)
    return types.SimpleNamespace(file=file, parent=object(), meta={})


def rendered(text, name="page.md"):
    return site_hooks.on_page_markdown(text, page=page_of(name))


def finished(content, name="page.md"):
    return site_hooks.on_page_content(content, page=page_of(name))


def test_links_out_of_the_pages_become_paths():
    assert rendered("[Makefile](../Makefile) here") == "`Makefile` here"
    assert rendered("[`x`](../../Makefile)", "api/x.md") == "`x` (`Makefile`)"
    for kept in ("[a](../index.md#b)", "[a](errors.md)", "[a](https://b.c/)"):
        assert rendered(kept, "api/x.md") == kept


def test_fields_become_a_table(caplog):
    table = rendered("<!-- fields: mesh -->")
    assert "| `mesh.fsdp` | devices" in table
    top = rendered("<!-- fields: top -->")
    assert "| `nonfinite` | what to do when loss or gradient is not finite: " in top
    assert ": `stop`, `skip`; default `stop` |" in top
    assert not caplog.records
    rendered("<!-- fields: none -->")
    assert "no config field is in the group 'none'" in caplog.text


@pytest.mark.process
def test_help_is_what_the_command_prints():
    shown = rendered("<!-- help: jaxgpt.verify -->")
    assert shown.startswith("```text\nusage: python -m jaxgpt.verify --workdir=...")
    assert max(map(len, shown.splitlines())) <= 80


def test_pictures_open_and_long_names_break():
    assert rendered("a\n\n![b](c.png)\n") == "a\n\n[![b](c.png)](c.png)\n"
    name = "test_samplers.py::test_exact_bursts_and_more_of_them"
    broken = finished(f"<td><code>{name}</code> a_b</td>")
    assert broken == f"<td><code>{name.replace('_', '_<wbr>')}</code> a_b</td>"
    assert finished(row := "<td><code>a_b</code></td>") == row


def test_links_of_a_notebook_lead_to_pages():
    name = "notebooks/x.ipynb"
    link = '<a href="{}">a</a>'
    for source, page in {
        "../sigma.md#orders": "../sigma.html#orders",
        "y.ipynb": "y.html",
        "#here": "#here",
        "https://a.b/c.md": "https://a.b/c.md",
    }.items():
        assert finished(link.format(source), name) == link.format(page)
    outside = finished(link.format("../../Makefile"), name)
    assert outside == "a (<code>Makefile</code>)"
    assert finished(link.format("../sigma.md")) == link.format("../sigma.md")
