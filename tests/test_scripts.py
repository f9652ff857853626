"""Scripts that prepare data."""

import io
import zipfile

from scripts import wikitext

TEXT = """
 = One = 

 Text of one . 

 = = Section = = 

 More of it . 

 = Two = = = 

 = The = sign = 

 Text . 
"""


def test_wikitext_is_split_into_articles(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for split in ("train", "valid", "test"):
            archive.writestr(f"wikitext-2-raw/wiki.{split}.raw", TEXT)
        archive.writestr("wikitext-2-raw/", "")
    counts = wikitext.write(packed.getvalue(), tmp_path)
    assert counts == {"train": 2, "val": 2, "test": 2}
    first, second = sorted((tmp_path / "val").iterdir())
    assert first.read_text().startswith(" = One = \n")
    assert "Section" in first.read_text()
    assert second.read_text() == " = The = sign = \n\n Text . \n"
