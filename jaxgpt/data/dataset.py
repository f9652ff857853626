"""What every system reads its data through."""

from __future__ import annotations

from typing import Any, Protocol

from jaxgpt.data.tokenizers import Tokenizer


class Dataset(Protocol):
    """Splits of sequences, read at random places or at the same places every time.

    Both methods return int32 [rows, length], or several such arrays by name (a dict
    from `batch_at`, `documents.Segments` from `eval_windows`): what the system's own
    `train_batch` and `eval_batches` take.
    """

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Of a text; None if the tokens are not text."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the files it is read from; "" if it is generated."""

    def batch_at(self, seed: int, split: str, step: int, size: int, length: int) -> Any:
        """Returns the rows of a step: a pure function of all arguments.

        A resumed run, or one on other devices, reads the same batches.
        There are `size` rows of `length` tokens, targets included.

        Raises:
          UserError: if the split does not exist or is too short.
        """

    def eval_windows(self, split: str, length: int, count: int | None = None) -> Any:
        """Returns the same rows every time: about count, or all that a split holds.

        Raises:
          UserError: if the split does not exist or is too short.
        """
