"""Config fields of the data."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from jaxgpt.config import OptionGroup, option
from jaxgpt.errors import UserError

NORMALIZATIONS = ("none", "newlines", "nfc")
TOKENIZERS = ("char", "word", "gpt2", "sentencepiece", "huggingface")


@dataclasses.dataclass(frozen=True)
class DataConfig(OptionGroup):
    """Where training data comes from, how it is tokenized and split."""

    # Resumable: data may move. Its fingerprint is compared instead.
    path: str = option(
        "data/shakespeare.txt",
        "a text file, a folder of them, or of nanoGPT .bin files; gssm: an HDF5 file, "
        "or empty to draw sequences; memory: a folder of documents, or empty to recall",
        resumable=True,
        after_training=True,
    )
    fingerprint: str = option(
        "", "SHA-256 of the content of data.path, set by the run", resumable=True
    )
    tokenizer: str = option("char", "vocabulary of the text", choices=TOKENIZERS)
    vocab_size: int = option(
        0, "sentencepiece: tokens to train for; 0 uses those of its model", min=0
    )
    tokenizer_file: str = option(
        "", "huggingface: a tokenizer.json of Hugging Face, or a folder with one"
    )
    sentencepiece_model: str = option("", "a .model file; empty trains one")
    sentencepiece_type: str = option(
        "unigram", "sentencepiece: how one is trained", choices=("unigram", "bpe")
    )
    normalize: str = option(
        "none",
        "change text before it is tokenized, prompts too: newlines reads Windows and "
        "old Mac line ends as newlines; nfc does, and composes characters (Unicode's "
        "NFC)",
        choices=NORMALIZATIONS,
    )
    special_tokens: bool = option(
        False, "read <|endoftext|>, where it is written out in a text, as the token"
    )
    split: str = option(
        "end",
        "held out: the end of the text (nanoGPT), or chunks of it (teenyGPT)",
        choices=("end", "chunks"),
    )
    val_fraction: float = option(
        0.1, "share of the text held out for validation", above=0, below=1
    )
    test_fraction: float = option(0.0, "share held out for testing", min=0)
    chunk_tokens: int = option(10000, "split=chunks: tokens per chunk", min=2)
    split_seed: int = option(0, "split=chunks: seed of their order", min=0)

    @staticmethod
    def validate(config: ConfigDict) -> None:
        """Checks that fields do not contradict each other."""
        c = config.data
        if c.tokenizer_file and c.tokenizer != "huggingface":
            raise UserError(
                "data.tokenizer_file needs data.tokenizer=huggingface, got "
                f"{c.tokenizer!r}"
            )
        if c.special_tokens and c.tokenizer in ("char", "word", "sentencepiece"):
            raise UserError(
                f"data.special_tokens: data.tokenizer={c.tokenizer} has no special "
                "tokens: leave it out"
            )
        if c.val_fraction + c.test_fraction >= 1:
            raise UserError(
                f"data.val_fraction {c.val_fraction} and data.test_fraction "
                f"{c.test_fraction} leave nothing to train on: lower one"
            )
