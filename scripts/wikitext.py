"""Write WikiText-2's articles as documents: data/wikitext2/{train,val,test}/N.txt.

python -m scripts.wikitext                       # downloads it, 4.7 MB
python -m scripts.wikitext --source=F.zip        # where there is no network

Articles begin at a heading of the first level, " = Title = ".
"""

from __future__ import annotations

import argparse
import io
import pathlib
import re
import sys
import urllib.error
import urllib.request
import zipfile

SOURCE = "https://wikitext.smerity.com/wikitext-2-raw-v1.zip"
SPLITS = {"train": "train", "valid": "val", "test": "test"}
TITLE = re.compile(r"^ = (?!=)(.*[^= ]) = $", re.MULTILINE)


def fetch(source: str) -> bytes:
    """Returns the archive's bytes, from a file or an address."""
    if "://" not in source:
        return pathlib.Path(source).expanduser().read_bytes()
    # The server refuses Python's own name.
    request = urllib.request.Request(source, headers={"User-Agent": "Mozilla/5.0"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def articles(text: str) -> list[str]:
    """Returns the articles of a split; what comes before the first title is dropped."""
    starts = [match.start() for match in TITLE.finditer(text)]
    ends = [*starts[1:], len(text)]
    return [
        text[start:end].strip("\n") + "\n"
        for start, end in zip(starts, ends, strict=True)
    ]


def write(archive: bytes, folder: pathlib.Path) -> dict[str, int]:
    """Writes the documents of every split; returns how many there are."""
    counts = {}
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        for name in files.namelist():
            parts = pathlib.Path(name).name.split(".")
            split = SPLITS.get(parts[1]) if parts[0] == "wiki" else None
            if split is None:
                continue
            found = articles(files.read(name).decode("utf-8"))
            (folder / split).mkdir(parents=True, exist_ok=True)
            for number, text in enumerate(found):
                path = folder / split / f"{number:04}.txt"
                path.write_text(text, encoding="utf-8")
            counts[split] = len(found)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=SOURCE, help="the .zip, a file or address")
    parser.add_argument("--output", default="data/wikitext2", help="folder to write")
    args = parser.parse_args()
    try:
        counts = write(fetch(args.source), pathlib.Path(args.output))
    except (OSError, urllib.error.URLError, zipfile.BadZipFile) as error:
        print(
            f"error: --source='{args.source}' cannot be read ({error}): give a copy of "
            "wikitext-2-raw-v1.zip",
            file=sys.stderr,
        )
        sys.exit(2)
    if set(counts) != set(SPLITS.values()):
        print(
            f"error: --source='{args.source}' has no train, valid and test texts",
            file=sys.stderr,
        )
        sys.exit(2)
    print(f"{sum(counts.values())} articles in {args.output}: {counts}")


if __name__ == "__main__":
    main()
