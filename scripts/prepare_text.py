"""Tokenise a text dataset with GPT-2's tokens into train.bin and val.bin.

python -m scripts.prepare_text --dataset=openwebtext --output=data/openwebtext
python -m scripts.prepare_text --dataset=HuggingFaceFW/fineweb --name=sample-10BT \
    --output=data/fineweb
python -m scripts.prepare_text --files='texts/*.jsonl' --output=data/mine

Needs the extra `prepare`; datasets by name need network access. Every document is
followed by the end-of-text token; one in 2000, drawn with a fixed seed, is held out.
Train on the folder with --config=configs/sigma_text.py --config.data.path=FOLDER.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from jaxgpt import cli
from jaxgpt.config import user_path
from jaxgpt.data.tokenizers import END_OF_TEXT, GPT2Tokenizer
from jaxgpt.errors import UserError, atomic_write, log, require

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
SEED = 2357


def open_documents(
    dataset: str, name: str, files: str, split: str, column: str
) -> Iterator[str]:
    """Yields the documents of a dataset or of local files, one at a time.

    Raises:
      UserError: where there are none, or they have no such column.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            "the package datasets is missing: pip install 'jaxgpt[prepare]'"
        ) from None
    if files:
        named = sorted(glob.glob(str(pathlib.Path(files).expanduser())))
        # The readers fail on empty files.
        found = [file for file in named if pathlib.Path(file).stat().st_size]
        kinds = {pathlib.Path(file).suffix for file in found}
        if len(kinds) != 1 or not kinds <= READERS.keys():
            raise UserError(
                f"--files='{files}' must be files of one kind, {', '.join(READERS)}: "
                f"found {', '.join(sorted(kinds)) or 'none'}"
            )
        reader = READERS[kinds.pop()]
        # By default every line would be a document.
        options = {"sample_by": "document"} if reader == "text" else {}
        source = (reader, None, {"data_files": found, "split": "train"} | options)
    else:
        source = (dataset, name or None, {"split": split})
    kind, part, options = source
    missing = 0
    try:
        rows = datasets.load_dataset(kind, part, streaming=True, **options)
        for row in rows:
            text = row[column]
            if isinstance(text, str):
                yield text
            elif text is None:
                missing += 1
            else:
                raise UserError(
                    f"column '{column}' holds {type(text).__name__}, not text: name "
                    "another with --column"
                )
    except KeyError:
        known = ", ".join(map(str, row))
        raise UserError(f"no column '{column}': the columns are {known}") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the dataset cannot be read: {reason}") from None
    if missing:
        log(f"note: {missing:,} documents without text are left out")


def held_out(index: int, one_in: int) -> bool:
    """Returns whether the document of this index is for validation."""
    digest = hashlib.sha256(f"{SEED} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % one_in == 0


def write_splits(documents: Iterable[str], folder: pathlib.Path, one_in: int) -> dict:
    """Writes the tokens of documents; returns how many there are in each split."""
    tokenizer = GPT2Tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"train": 0, "val": 0}
    with contextlib.ExitStack() as stack:
        streams = {
            split: stack.enter_context(atomic_write(folder / f"{split}.bin", "wb"))
            for split in counts
        }
        for index, text in enumerate(documents):
            split = "val" if held_out(index, one_in) else "train"
            ids = np.append(tokenizer.encode(text), END_OF_TEXT).astype(np.uint16)
            ids.tofile(streams[split])
            counts[split] += len(ids)
            if index % 10_000 == 0:
                log(f"{index:,} documents, {sum(counts.values()):,} tokens")
        if not all(counts.values()):  # Within: neither file appears.
            raise UserError(
                f"{counts['train']} tokens to train on and {counts['val']} to "
                "validate: there are too few documents, lower --one_in"
            )
    return counts


def command(argv: list[str]) -> None:
    """Parses arguments and writes the two files."""
    parser = cli.Parser("scripts.prepare_text", __doc__)
    parser.add_argument("--dataset", help="of the Hugging Face hub")
    parser.add_argument("--name", type=str, default="", help="its configuration")
    parser.add_argument("--split", default="train", help="its split (train)")
    parser.add_argument(
        "--files", type=str, default="", help="pattern of local files instead"
    )
    parser.add_argument("--column", default="text", help="column with the text (text)")
    parser.add_argument(
        "--one_in", type=int, default=2000, help="hold out one in so many (2000)"
    )
    parser.add_argument("--output", required=True, help="folder to write")
    args = parser.parse_args(argv)
    if bool(args.dataset) == bool(args.files):
        raise UserError("give --dataset of the hub, or --files of this machine")
    require(args.one_in >= 2, "--one_in", ">= 2", args.one_in)
    documents = open_documents(
        args.dataset, args.name, args.files, args.split, args.column
    )
    counts = write_splits(documents, user_path(args.output), args.one_in)
    log(f"{args.output}: {counts['train']:,} and {counts['val']:,} tokens")


if __name__ == "__main__":
    cli.main(command)
