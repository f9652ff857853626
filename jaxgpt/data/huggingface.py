"""Hugging Face's tokenizers, read like AutoTokenizer; a run keeps the whole file."""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxgpt.data.tokenizers import Tokenizer, UnknownCharacterError
from jaxgpt.errors import UserError, import_optional

# Texts whose case, spaces, accents or compatibility forms some tokenizers change.
PROBES = ["Fox fox", "a  b", "a\nb\n\n", " a", "a ", "\na", "it 's a .", "a\tb", "É"]
PROBES += ["e\N{COMBINING ACUTE ACCENT}", "\N{LATIN SMALL LIGATURE FI}"]
WINDOW = 256  # Characters on either side of a cut that are encoded to test it.
MOST_CUTS = 256  # Cuts to try in a piece.


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json; text gets no tokens before or after it."""

    def __init__(self, saved: dict, named: dict[str, str] | None = None):
        """Reads what a tokenizer.json holds.

        Args:
          saved: its content.
          named: which token is the "bos_token", "eos_token", ...; only for exports.

        Raises:
          UserError: if it is damaged, or the package is missing.
        """
        self._saved, self.named = saved, named or {}
        # Without settings of training, and limits that would cut text off.
        plain = saved | {"truncation": None, "padding": None, "post_processor": None}
        if isinstance(saved.get("model"), dict) and "dropout" in saved["model"]:
            plain["model"] = saved["model"] | {"dropout": None}
        self._first = _load(plain)
        self._rest = _load(_without_prefix(plain))
        ids = self._first.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        for token in saved.get("added_tokens") or []:
            content, wanted = token.get("content"), token.get("id")
            if ids.get(content) != wanted:
                raise UserError(f"its added token {content!r} cannot have id {wanted}")
        model = saved["model"]
        self._unknown = model.get("unk_id", ids.get(model.get("unk_token")))
        self.ids = {
            key: ids[token] for key, token in self.named.items() if token in ids
        }
        self.start = self.ids.get("bos_token", self.ids.get("eos_token"))

    def encode(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns ids [T]; added tokens that are not special are always recognised."""
        return self._encode(self._first, text, special_tokens)

    def encode_rest(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns the ids of text that continues other tokens."""
        return self._encode(self._rest, text, special_tokens)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text; bytes that are not UTF-8 become U+FFFD."""
        return self._decode(self._first, ids)

    def decode_rest(self, ids: np.ndarray) -> str:
        """Returns the text of ids that continue other tokens."""
        return self._decode(self._rest, ids)

    def encode_pieces(
        self, pieces: Iterable[str], special_tokens: bool = False
    ) -> Iterator[np.ndarray]:
        """Yields the ids of a text, the same wherever it was cut."""
        return super().encode_pieces(self._parts(pieces), special_tokens)

    def _parts(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yields the text, cut where the cut changes no token."""
        held = ""
        for piece in pieces:
            held += piece
            if cut := self._last_cut(held):
                yield held[:cut]
                held = held[cut:]
        if held:
            yield held

    def to_json(self) -> dict:
        """Holds the whole tokenizer.json."""
        saved = {"kind": "huggingface", "tokenizer": self._saved}
        return saved | ({"named": self.named} if self.named else {})

    def notes(self) -> tuple[str, ...]:
        """Returns a line about a text that it changes, if there is one.

        Text without a token in this vocabulary does not count: that is refused.
        """
        if self._lost is None:
            return ()
        text, back = self._lost
        return (f"its tokenizer changes text: {text!r} is read as {back!r}",)

    @functools.cached_property
    def _lost(self) -> tuple[str, str] | None:
        tokens = functools.partial(_ids, self._first)
        for text in PROBES:
            ids = tokens(text)
            known = self._unknown not in ids
            if known and all(c == " " or tokens(c) for c in text):
                back = self._decode(self._first, ids)
                if back != text:
                    return text, back
        return None

    def _encode(self, backend: Any, text: str, special_tokens: bool) -> np.ndarray:
        backend.encode_special_tokens = not special_tokens
        try:
            found = backend.encode(text, add_special_tokens=False)
        except Exception as error:  # The package raises nothing more special.
            try:
                text.encode()
            except UnicodeEncodeError as bad:  # Half of a surrogate pair.
                raise _unknown(text, bad.start) from None
            raise UserError(f"the tokenizer cannot read this text: {error}") from None
        ids = np.array(found.ids, np.int32)
        if self._unknown is not None and (ids == self._unknown).any():
            raise _unknown(text, found.offsets[int((ids == self._unknown).argmax())][0])
        if self._lost or special_tokens:
            self._check_spans(text, found.offsets)
        elif (back := self._decode(backend, ids)) != text:
            pairs = enumerate(zip(text, back, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), len(back))
            raise _unknown(text, min(at, len(text) - 1))
        return ids

    def _check_spans(self, text: str, spans: list[tuple[int, int]]) -> None:
        """Raises UserError for a character, not a space, that no token comes from."""
        covered = np.zeros(len(text) + 1, np.int32)
        if spans:
            starts, ends = np.array(spans).T
            np.add.at(covered, starts, 1)
            np.add.at(covered, ends, -1)
        for at in np.flatnonzero(covered.cumsum()[:-1] <= 0):
            if not text[at].isspace() and not self._composed(text[at - 1 : at + 1]):
                raise _unknown(text, int(at))

    def _composed(self, pair: str) -> bool:
        """Returns whether a letter and its accent are read as one character."""
        one = unicodedata.normalize("NFC", pair)
        ids = functools.partial(_ids, self._rest)
        return len(pair) == 2 and len(one) == 1 and ids(pair) == ids(one)

    def _decode(self, backend: Any, ids: Iterable[int]) -> str:
        known = [int(i) for i in ids if i < self.vocab_size]
        return backend.decode(known, skip_special_tokens=False)

    def _last_cut(self, text: str) -> int:
        """Returns the last place, before a space, to cut without changing a token."""
        end = len(text)
        for _ in range(MOST_CUTS):
            end = max(text.rfind(" ", 1, end), text.rfind("\n", 1, end))
            if end < 1:
                return 0
            if self._divides(text[max(end - WINDOW, 0) : end], text[end:][:WINDOW]):
                return end
        return 0

    def _divides(self, left: str, right: str) -> bool:
        ids = functools.partial(_ids, self._rest)
        self._rest.encode_special_tokens = True
        return ids(left + right) == ids(left) + ids(right)


def _ids(backend: Any, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


def _unknown(text: str, at: int) -> UnknownCharacterError:
    reason = "starts text that the tokenizer has no token for: leave it out"
    return UnknownCharacterError(text[at], at, reason)


def _load(saved: dict) -> Any:
    tokenizers = import_optional(
        "tokenizers",
        "a tokenizer of Hugging Face needs its package: pip install tokenizers",
    )
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(saved))
    except Exception as error:  # The package raises nothing more special.
        raise UserError(f"it is not a Hugging Face tokenizer: {error}") from None


def _without_prefix(node: Any) -> Any:
    """Returns a tokenizer.json for continued text: it puts nothing before it."""
    if isinstance(node, list):
        return [_without_prefix(item) for item in node if not _is_prefix(item)]
    if not isinstance(node, dict):
        return node
    changed = {k: v for k, v in node.items() if k not in ("model", "added_tokens")}
    changed = {
        k: None if _is_prefix(v) else _without_prefix(v) for k, v in changed.items()
    }
    if node.get("type") in ("ByteLevel", "Metaspace"):
        changed |= {k: False for k in ("add_prefix_space",) if k in node}
        changed |= {k: "never" for k in ("prepend_scheme",) if k in node}
    if node.get("type") == "Strip" and "strip_left" in node:
        changed["strip_left"] = False
    return node | changed


def _is_prefix(node: Any) -> bool:
    """Returns whether a part adds text at the beginning, or removes it again."""
    kind = node.get("type") if isinstance(node, dict) else None
    return kind == "Prepend" or (kind == "Strip" and bool(node.get("start")))
