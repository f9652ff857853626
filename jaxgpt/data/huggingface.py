"""Tokenizers of Hugging Face, which a run keeps whole: as AutoTokenizer reads them."""

from __future__ import annotations

import copy
import functools
import json
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxgpt.data import tokenizers
from jaxgpt.data.arrays import read_json_object
from jaxgpt.data.tokenizers import (
    END_OF_TEXT_TOKEN,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    UnknownCharacterError,
)
from jaxgpt.errors import UserError

FILES: tuple[str, ...] = ("tokenizer.json", "vocab.json", "merges.txt")
# Kinds that only transformers itself converts.
OTHER_FILES = ("spiece.model", "tokenizer.model", "vocab.txt", "vocab.bpe")
NAMED = [f"{name}_token" for name in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"]]
GPT2_CLASS, GPT2_NAMED = "GPT2Tokenizer", ("bos_token", "eos_token", "unk_token")
BYTE_LEVEL = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
# What of a tokenizer's model GPT2Tokenizer leaves out.
PLAIN_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
# Text whose case, spaces, accents or compatibility forms some tokenizers change.
PROBES = ["Fox fox", "a  b", "a\nb\n\n", " a", "a ", "\na", "it 's a .", "a\tb", "É"]
PROBES += ["e\N{COMBINING ACUTE ACCENT}", "\N{LATIN SMALL LIGATURE FI}"]
WINDOW = 256  # Characters on either side of a cut that are encoded to test it.
MOST_CUTS = 256  # To try in one piece.


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json; text gets no tokens before or after it."""

    def __init__(self, saved: dict, named: dict[str, str] | None = None):
        """Reads what a tokenizer.json holds.

        Args:
          saved: its value.
          named: which token is the "bos_token", "eos_token", ...; only for export.

        Raises:
          UserError: where it is damaged, or the package is missing.
        """
        self._saved, self.named = saved, named or {}
        # Settings of training, and limits that would cut text off.
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
        """Returns ids [T]; added tokens that are not special are always read."""
        return self._encode(self._first, text, special_tokens)

    def encode_rest(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns the ids of text that goes on from other tokens."""
        return self._encode(self._rest, text, special_tokens)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text; bytes that are not UTF-8 become U+FFFD."""
        return self._decode(self._first, ids)

    def decode_rest(self, ids: np.ndarray) -> str:
        """Returns the text of ids that go on from other tokens."""
        return self._decode(self._rest, ids)

    def encode_pieces(
        self, pieces: Iterable[str], special_tokens: bool = False
    ) -> Iterator[np.ndarray]:
        """Yields the ids of a text: those of the whole, wherever it was cut."""
        encode, held, at = self.encode, "", 0
        for piece in pieces:
            held += piece
            cut = self._last_cut(held)
            if cut:
                yield _located(encode, held[:cut], special_tokens, at)
                encode, held, at = self.encode_rest, held[cut:], at + cut
        if held:
            yield _located(encode, held, special_tokens, at)

    def to_json(self) -> dict:
        """Holds the whole tokenizer.json."""
        saved = {"kind": "huggingface", "tokenizer": self._saved}
        return saved | ({"named": self.named} if self.named else {})

    def loss(self) -> str | None:
        """Returns a sentence about a text that it changes; None where it changes none.

        Whatever has no token in this vocabulary does not count: that is refused.
        """
        if self._lost is None:
            return None
        text, back = self._lost
        return f"its tokenizer changes text: {text!r} is read as {back!r}"

    @functools.cached_property
    def _lost(self) -> tuple[str, str] | None:
        tokens = lambda text: self._first.encode(text, add_special_tokens=False).ids
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
        """Returns whether a letter and its accent are read as the one character."""
        one = unicodedata.normalize("NFC", pair)
        ids = lambda text: self._rest.encode(text, add_special_tokens=False).ids
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
        ids = lambda text: self._rest.encode(text, add_special_tokens=False).ids
        self._rest.encode_special_tokens = True
        return ids(left + right) == ids(left) + ids(right)


def _located(
    encode: Callable[[str, bool], np.ndarray], text: str, special_tokens: bool, at: int
) -> np.ndarray:
    try:
        return encode(text, special_tokens)
    except UnknownCharacterError as error:
        raise error.moved(at) from None


def _unknown(text: str, at: int) -> UnknownCharacterError:
    reason = "begins text that the tokenizer has no token for: leave it out"
    return UnknownCharacterError(text[at], at, reason)


def _load(saved: dict) -> Any:
    try:
        from tokenizers import Tokenizer as Backend  # Not a dependency.
    except ImportError:
        raise UserError(
            "a tokenizer of Hugging Face needs its package: pip install tokenizers"
        ) from None
    try:
        return Backend.from_str(json.dumps(saved))
    except Exception as error:  # The package raises nothing more special.
        raise UserError(f"it is not a Hugging Face tokenizer: {error}") from None


def _without_prefix(node: Any) -> Any:
    """Returns a tokenizer.json of text that goes on: with nothing put before it."""
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
    """Returns whether a part puts text at the beginning, or takes it away again."""
    kind = node.get("type") if isinstance(node, dict) else None
    return kind == "Prepend" or (kind == "Strip" and bool(node.get("start")))


def read_folder(
    folder: pathlib.Path, vocab_size: int | None = None
) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """Reads the tokenizer of a folder as AutoTokenizer of transformers 5 does.

    Args:
      folder: that holds tokenizer.json, or vocab.json with merges.txt.
      vocab_size: of the model, whose vocabulary the user may not have enlarged for
        added tokens: those past it are left out.

    Returns:
      (the tokenizer, None where there is none that can be read; lines for the user).

    Raises:
      UserError: for one that is damaged, or where the package is missing.
    """
    held = [name for name in FILES if (folder / name).exists()]
    if held in ([], ["merges.txt"], ["vocab.json"]):
        other = [n for n in (*held, *OTHER_FILES) if (folder / n).exists()]
        line = (
            f"its tokenizer is not read: beside {other[0]} there must be a "
            "tokenizer.json, which AutoTokenizer's save_pretrained writes"
            if other
            else ""
        )
        return None, (line,) if line else ()
    settings = _read_json(folder / "tokenizer_config.json")
    config = _read_json(folder / "config.json")
    default = GPT2_CLASS if config.get("model_type") == "gpt2" else ""
    kind = settings.get("tokenizer_class") or config.get("tokenizer_class") or default
    notes: list[str] = []
    if held[0] == "tokenizer.json":
        saved = _read_json(folder / "tokenizer.json")
    else:
        saved = {"version": "1.0", "added_tokens": [], "model": _read_merges(folder)}
        kind = kind or GPT2_CLASS
    if not isinstance(saved.get("model"), dict):
        raise UserError(f"'{folder / held[0]}' holds no tokenizer of Hugging Face")
    as_gpt2 = str(kind).removesuffix("Fast") == GPT2_CLASS
    if as_gpt2 and "merges" in saved["model"]:
        prefix = bool(settings.get("add_prefix_space", False))
        plain = _as_gpt2(saved, prefix)
        if held[0] == "tokenizer.json" and _pipeline(plain) != _pipeline(saved):
            notes.append(
                f"its tokenizer.json is read as transformers 5 reads {GPT2_CLASS}: "
                "without a normalizer, and split as GPT-2's text is"
            )
        saved = plain
    named = dict.fromkeys(GPT2_NAMED, END_OF_TEXT_TOKEN) if as_gpt2 else {}
    named |= _named_tokens(folder, settings)
    added = _added_tokens(folder, settings, saved, {*named.values()})
    if vocab_size is not None and (past := [t for t in added if t["id"] >= vocab_size]):
        added = [token for token in added if token["id"] < vocab_size]
        listed = ", ".join(repr(token["content"]) for token in past[:5])
        notes.append(f"the model has no {listed}, which its tokenizer has")
    saved = saved | {"added_tokens": added}
    tokenizer: GPT2Tokenizer | HuggingFaceTokenizer = GPT2Tokenizer()
    if not _is_gpt2(saved):
        try:
            tokenizer = HuggingFaceTokenizer(saved, named)
        except UserError as error:
            raise UserError(
                f"the tokenizer of '{folder}' cannot be used: {error}"
            ) from None
        notes += [loss] if (loss := tokenizer.loss()) else []
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        return None, (
            f"its tokenizer is not read: it has {tokenizer.vocab_size} tokens, the "
            f"model {vocab_size}",
        )
    return tokenizer, tuple(notes)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns a JSON object; {} where the file does not exist."""
    return read_json_object(path) if path.exists() else {}


def _read_merges(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from None
    merges = [line.rstrip("\r").split(" ") for line in lines]
    merges = [pair for pair in merges if len(pair) == 2 and pair[0] != "#version:"]
    return {"vocab": _read_json(folder / "vocab.json"), "merges": merges}


def _pairs(merges: Any) -> list[list[str]]:
    """Returns merges as newer files write them; older ones write "a b"."""
    return [m.split(" ") if isinstance(m, str) else list(m) for m in merges]


def _as_gpt2(saved: dict[str, Any], prefix: bool) -> dict[str, Any]:
    """Returns the tokenizer that GPT2Tokenizer makes of a vocabulary and merges."""
    model = saved["model"]
    return {
        "version": "1.0",
        "added_tokens": saved.get("added_tokens") or [],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": prefix},
        "decoder": BYTE_LEVEL | {"add_prefix_space": True},
        "model": PLAIN_BPE
        | {"vocab": model.get("vocab"), "merges": _pairs(model["merges"])},
    }


def _pipeline(saved: dict[str, Any]) -> list[Any]:
    """Returns what happens to a text, in a form that compares."""
    split = copy.deepcopy(saved.get("pre_tokenizer"))
    if isinstance(split, dict):
        split.pop("trim_offsets", None)
        if split.get("use_regex", True):
            split["use_regex"] = True
    rules = [saved["model"].get(key) or None for key in PLAIN_BPE if key != "type"]
    return [saved.get("normalizer"), split, rules]


def _named_tokens(folder: pathlib.Path, settings: dict[str, Any]) -> dict[str, str]:
    """Returns the tokens by what they are for."""
    both = settings | _read_json(folder / "special_tokens_map.json")
    if "added_tokens_decoder" in settings:
        both |= settings
    named = {}
    for key in NAMED:
        token = both.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            named[key] = token
    return named


def _added_tokens(
    folder: pathlib.Path,
    settings: dict[str, Any],
    saved: dict[str, Any],
    special: set[str],
) -> list[dict[str, Any]]:
    """Returns the added tokens, by id, as a tokenizer.json holds them."""
    found: dict[str, dict[str, Any]] = {}

    def add(content: Any, index: Any, flags: dict[str, Any]) -> None:
        if not isinstance(content, str) or not str(index).isdecimal():
            raise UserError(
                f"'{folder}' has an added token {content!r} of id {index!r}"
            )
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        is_special = bool(flags.get("special", content in special))
        plain |= {"normalized": not is_special, "special": is_special}
        kept = {key: bool(value) for key, value in flags.items() if key in plain}
        found.setdefault(content, {"id": int(index), "content": content} | plain | kept)

    for token in saved.get("added_tokens") or []:
        add(token.get("content"), token.get("id"), token)
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for index, token in decoder.items():
            add(token.get("content"), index, token)
    else:
        for content, index in _read_json(folder / "added_tokens.json").items():
            add(content, index, {})
    vocabulary = saved["model"].get("vocab")
    if isinstance(vocabulary, dict):
        for content in sorted(special - found.keys()):
            if content in vocabulary:
                add(content, vocabulary[content], {})
    return sorted(found.values(), key=lambda token: token["id"])


def _is_gpt2(saved: dict[str, Any]) -> bool:
    """Returns whether a tokenizer is OpenAI's, which needs no package."""
    if "merges" not in saved["model"]:
        return False
    if _pipeline(saved) != _pipeline(_as_gpt2(saved, prefix=False)):
        return False
    vocabulary, merges = tokenizers.gpt2_vocabulary()
    held = saved["model"].get("vocab") or {}
    added = {token["content"]: token["id"] for token in saved["added_tokens"]}
    return held | added == vocabulary and _pairs(saved["model"]["merges"]) == merges


def read(path: pathlib.Path) -> tuple[Tokenizer, tuple[str, ...]]:
    """Reads a tokenizer of any kind from a file, or from a folder as `read_folder`.

    A file is a tokenizer.json, a meta.json, or SentencePiece's .model.

    Raises:
      UserError: where there is none that can be used.
    """
    if path.suffix == ".model":
        return tokenizers.read_sentencepiece(path, 0), ()
    own = path / "tokenizer.json"
    if path.is_dir() and "kind" in _read_json(own):
        path = own
    if path.is_dir():
        tokenizer, notes = read_folder(path)
        if tokenizer is None:
            raise UserError(notes[0] if notes else f"'{path}' holds no tokenizer")
        return tokenizer, notes
    tokenizer = tokenizers.load_tokenizer(path)
    loss = tokenizer.loss() if isinstance(tokenizer, HuggingFaceTokenizer) else None
    return tokenizer, (loss,) if loss else ()


def has_form(tokenizer: Tokenizer | None) -> bool:
    """Returns whether `write_folder` can write a tokenizer."""
    return isinstance(tokenizer, (CharTokenizer, GPT2Tokenizer, HuggingFaceTokenizer))


def named_ids(tokenizer: Tokenizer | None) -> dict[str, int]:
    """Returns {"bos_token_id": ..., "eos_token_id": ...}, of those that there are."""
    if isinstance(tokenizer, GPT2Tokenizer):
        return {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.start}
    ids = tokenizer.ids if isinstance(tokenizer, HuggingFaceTokenizer) else {}
    return {f"{k}_id": ids[k] for k in ("bos_token", "eos_token") if k in ids}


def write_folder(tokenizer: Tokenizer, folder: pathlib.Path, length: int) -> None:
    """Writes files with which AutoTokenizer gives the same ids.

    Args:
      tokenizer: one of which `has_form` is true.
      folder: of the model.
      length: the longest text that the model takes.
    """
    settings: dict[str, Any] = {"model_max_length": length}
    files: dict[str, Any] = {}
    if isinstance(tokenizer, GPT2Tokenizer):
        vocabulary, merges = tokenizers.gpt2_vocabulary()
        files["vocab.json"] = vocabulary
        lines = ["#version: 0.2", *map(" ".join, merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings |= dict.fromkeys(GPT2_NAMED, END_OF_TEXT_TOKEN)
        settings |= {"tokenizer_class": GPT2_CLASS, "add_prefix_space": False}
    elif isinstance(tokenizer, HuggingFaceTokenizer):
        files["tokenizer.json"] = tokenizer.to_json()["tokenizer"]
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.named}
    elif isinstance(tokenizer, CharTokenizer):
        ids = {letter: i for i, letter in enumerate(tokenizer.characters)}
        files["tokenizer.json"] = {
            "version": "1.0",
            "added_tokens": [],
            "decoder": {"type": "Fuse"},
            "model": PLAIN_BPE | {"vocab": ids, "merges": []},
        }
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name, value in (files | {"tokenizer_config.json": settings}).items():
        content = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        (folder / name).write_text(content, encoding="utf-8")
