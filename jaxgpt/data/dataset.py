"""The interface through which every system reads its data."""

from __future__ import annotations

from typing import Any, Protocol

from jaxgpt.data.tokenizers import Tokenizer


class Dataset(Protocol):
    """Splits of sequences, read at random places or at the same places every time.

    Both methods return int32 [rows, length], or several such arrays by name (a dict
    from `batch_at`, `documents.Segments` from `eval_windows`), as the system's
    `train_batch` and `eval_batches` take them.
    """

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None if the tokens are not text."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of its files; "" if it is generated."""

    def batch_at(self, seed: int, split: str, step: int, size: int, length: int) -> Any:
        """Returns the `size` rows of `length` tokens, targets included, of a step.

        A pure function of all arguments: a resumed run, or one on other devices, reads
        the same batches.

        Raises:
          UserError: if the split does not exist or is too short.
        """

    def eval_windows(self, split: str, length: int, count: int | None = None) -> Any:
        """Returns the same rows every time: about count, or all that a split holds.

        Raises:
          UserError: if the split does not exist or is too short.
        """
