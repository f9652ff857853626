"""Download WikiText-2 as documents: data/wikitext2/{train,val,test}/NUMBER.txt.

python -m scripts.wikitext                  # needs network access
python -m scripts.wikitext --source=FOLDER  # which has wiki.train.raw and the other two
"""

from __future__ import annotations

import argparse
import io
import itertools
import pathlib
import re
import sys
import urllib.error
import urllib.request
import zipfile

URL = "https://wikitext.smerity.com/wikitext-2-raw-v1.zip"
SPLITS = {"train": "train", "valid": "val", "test": "test"}
# Titles are between single equals signs, headings of sections between more.
TITLE = re.compile(r"^ = [^=].*[^=] = \n", re.MULTILINE)


def articles(text: str) -> list[str]:
    """Returns the articles of a split, each with its title."""
    starts = [match.start() for match in TITLE.finditer(text)] + [len(text)]
    pairs = itertools.pairwise(starts)
    return [text[start:end].strip() + "\n" for start, end in pairs]


def read_splits(source: str | None) -> dict[str, str]:
    """Returns {split: text}; exits with 2 where there is none."""
    try:
        if source:
            folder = pathlib.Path(source)
            return {
                split: (folder / f"wiki.{split}.raw").read_text(encoding="utf-8")
                for split in SPLITS
            }
        with urllib.request.urlopen(URL, timeout=60) as response:
            archive = zipfile.ZipFile(io.BytesIO(response.read()))
        return {
            split: archive.read(f"wikitext-2-raw/wiki.{split}.raw").decode()
            for split in SPLITS
        }
    except (OSError, KeyError, zipfile.BadZipFile, urllib.error.URLError) as error:
        print(
            f"error: WikiText-2 cannot be read ({error}): download {URL}, unpack it, "
            "and name its folder with --source",
            file=sys.stderr,
        )
        sys.exit(2)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="data/wikitext2", help="folder to write")
    parser.add_argument("--source", help="folder of the unpacked archive")
    args = parser.parse_args()
    count = 0
    for split, text in read_splits(args.source).items():
        folder = pathlib.Path(args.output) / SPLITS[split]
        folder.mkdir(parents=True, exist_ok=True)
        for number, article in enumerate(articles(text)):
            (folder / f"{number:04}.txt").write_text(article, encoding="utf-8")
            count += 1
    print(f"{count} articles in {args.output}")


if __name__ == "__main__":
    main()
