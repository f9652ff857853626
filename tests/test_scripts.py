"""Scripts that prepare data."""

import sys

from scripts import wikitext

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
