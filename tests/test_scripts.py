"""Scripts that prepare data and draw figures."""

import datetime
import re
import sys

import pytest

from scripts import figures, wikitext
from tests.conftest import ROOT

TEXT = """
 = One = 

 Text of one . 

 = = Section = = 

 More of it . 

 = The = sign = 

 Text . 
"""


def test_wikitext_is_split_into_articles(tmp_path, monkeypatch, capsys):
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.raw").write_text(TEXT)
    out = tmp_path / "out"
    options = [f"--source={tmp_path}", f"--output={out}"]
    monkeypatch.setattr(sys, "argv", ["wikitext", *options])
    wikitext.main()
    assert capsys.readouterr().out.startswith("6 articles")
    first, second = sorted((out / "val").iterdir())
    assert first.read_text().startswith("= One = \n") and "Section" in first.read_text()
    assert second.read_text() == "= The = sign = \n\n Text .\n"


def test_every_picture_of_the_pages_can_be_made_anew():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = re.findall(r"!\[[^]]*\]\((?:docs/)?([^)]*)\)", "".join(map(read, pages)))
    made = [name for figure in figures.FIGURES.values() for name in figure.pictures]
    assert set(made) == set(shown)
    for figure in figures.FIGURES.values():
        for command in figure.commands:
            module = command.split()[0].replace(".", "/")
            assert (ROOT / f"{module}.py").exists()


RECORDED = {
    picture.beside(file): (name, file)
    for name, figure in figures.FIGURES.items()
    for file, picture in figure.pictures.items()
    if picture.record
}
LEFT = [path for path in RECORDED if not path.exists()]


def test_few_pictures_lack_what_they_were_drawn_from():
    assert {path.name for path in LEFT} <= {"memory.json"}


@pytest.mark.parametrize(
    "path", sorted({*RECORDED} - {*LEFT}), ids=lambda path: path.name
)
def test_a_picture_is_redrawn_from_what_is_recorded(path, tmp_path):
    name, file = RECORDED[path]
    figures.redraw(figures.FIGURES[name], tmp_path)
    assert (tmp_path / file).stat().st_size > 20_000


def read(page):
    return page.read_text()


@pytest.mark.process
def test_a_figure_is_made_put_in_its_place_and_dated(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs/figures.md"
    page.write_text(figures.PAGE + "| a.png | a | of old | 2026-01-01 | 9 |\n")
    for name in ("scripts", "jaxgpt", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    graph = figures.FIGURES["gssm"].commands[1].replace("/gssm/", "/")
    picture = figures.Picture("{runs}/graph.png", "data/graphs/easy.yaml")
    one = figures.Figure((graph,), {"graph.png": picture}, 1)
    monkeypatch.setattr(figures, "FIGURES", {"graph": one})
    monkeypatch.setattr(sys, "argv", ["figures", "graph"])
    for _ in range(2):
        figures.main()
    assert (tmp_path / "docs/graph.png").read_bytes().startswith(b"\x89PNG")
    record = (tmp_path / "docs/graph.yaml").read_bytes()
    assert record == (ROOT / "data/graphs/easy.yaml").read_bytes()
    first, second = page.read_text().removeprefix(figures.PAGE).splitlines()
    assert first == "| a.png | a | of old | 2026-01-01 | 9 |"
    assert second.startswith("| graph.png | graph | ")
    assert f" | {datetime.date.today()} | " in second


def test_an_unknown_figure_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figures", "none"])
    with pytest.raises(SystemExit):
        figures.main()
    assert "unknown 'none': there are quickstart" in capsys.readouterr().err
