"""A folder's tokenizer, as AutoTokenizer of transformers 5 reads and writes it."""

from __future__ import annotations

import copy
import json
import pathlib
from typing import Any

from jaxgpt.data.arrays import read_json_object
from jaxgpt.data.huggingface import HuggingFaceTokenizer
from jaxgpt.data.tokenizers import (
    END_OF_TEXT_TOKEN,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    gpt2_vocabulary,
)
from jaxgpt.errors import UserError, listed

FILES: tuple[str, ...] = ("tokenizer.json", "vocab.json", "merges.txt")
# Kinds that only transformers itself converts.
OTHER_FILES = ("spiece.model", "tokenizer.model", "vocab.txt", "vocab.bpe")
NAMED = [f"{name}_token" for name in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"]]
GPT2_CLASS, GPT2_NAMED = "GPT2Tokenizer", ("bos_token", "eos_token", "unk_token")
BYTE_LEVEL = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
# The settings of a tokenizer's model that GPT2Tokenizer resets.
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


def read(
    folder: pathlib.Path, vocab_size: int | None = None
) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """Reads the tokenizer of a folder as AutoTokenizer of transformers 5 does.

    Args:
      folder: has tokenizer.json, or vocab.json with merges.txt.
      vocab_size: of the model; added tokens past it, for which the user did not resize
        the model, are left out.

    Returns:
      (the tokenizer or None, notes for the user).

    Raises:
      UserError: if it is damaged, or the package is missing.
    """
    held = [name for name in FILES if (folder / name).exists()]
    if held in ([], ["merges.txt"], ["vocab.json"]):
        other = [n for n in (*held, *OTHER_FILES) if (folder / n).exists()]
        if not other:
            return None, ()
        return None, (
            f"its tokenizer is not read: {other[0]} needs a tokenizer.json next to it, "
            "which AutoTokenizer's save_pretrained writes",
        )
    settings = _read_json(folder / "tokenizer_config.json")
    config = _read_json(folder / "config.json")
    kind = settings.get("tokenizer_class") or config.get("tokenizer_class")
    notes: list[str] = []
    if held[0] == "tokenizer.json":
        saved = _read_json(folder / "tokenizer.json")
        is_gpt2 = config.get("model_type") == "gpt2"
    else:
        saved = {"version": "1.0", "added_tokens": [], "model": _read_merges(folder)}
        is_gpt2 = True
    if not isinstance(saved.get("model"), dict):
        raise UserError(f"'{folder / held[0]}' holds no tokenizer of Hugging Face")
    as_gpt2 = str(kind).removesuffix("Fast") == GPT2_CLASS if kind else is_gpt2
    if as_gpt2 and "merges" in saved["model"]:
        plain = _as_gpt2(saved, bool(settings.get("add_prefix_space")))
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
        missing = listed([repr(token["content"]) for token in past], 5)
        notes.append(f"the model has no {missing}, which its tokenizer has")
    saved = saved | {"added_tokens": added}
    tokenizer: GPT2Tokenizer | HuggingFaceTokenizer = GPT2Tokenizer()
    if not _is_gpt2(saved):
        try:
            tokenizer = HuggingFaceTokenizer(saved, named)
        except UserError as error:
            raise UserError(
                f"the tokenizer of '{folder}' cannot be used: {error}"
            ) from None
        notes += tokenizer.notes()
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        return None, (
            f"its tokenizer is not read: it has {tokenizer.vocab_size} tokens, the "
            f"model {vocab_size}",
        )
    return tokenizer, tuple(notes)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns a JSON object; {} if the file does not exist."""
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
    """Returns merges as newer files have them; older ones have "a b"."""
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
    """Returns how a text is processed, in a form to compare."""
    split = copy.deepcopy(saved.get("pre_tokenizer"))
    if isinstance(split, dict):
        split.pop("trim_offsets", None)
        if split.get("use_regex", True):
            split["use_regex"] = True
    rules = [saved["model"].get(key) or None for key in PLAIN_BPE if key != "type"]
    return [saved.get("normalizer"), split, rules]


def _named_tokens(folder: pathlib.Path, settings: dict[str, Any]) -> dict[str, str]:
    """Returns the tokens by purpose, such as "bos_token"."""
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
    """Returns the added tokens in the form of a tokenizer.json, sorted by id."""
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
    """Returns whether a tokenizer is GPT-2's, which needs no package."""
    if "merges" not in saved["model"]:
        return False
    if _pipeline(saved) != _pipeline(_as_gpt2(saved, prefix=False)):
        return False
    vocabulary, merges = gpt2_vocabulary()
    held = saved["model"].get("vocab") or {}
    added = {token["content"]: token["id"] for token in saved["added_tokens"]}
    return held | added == vocabulary and _pairs(saved["model"]["merges"]) == merges


def has_form(tokenizer: Tokenizer | None) -> bool:
    """Returns whether `write` can write a tokenizer."""
    return isinstance(tokenizer, (CharTokenizer, GPT2Tokenizer, HuggingFaceTokenizer))


def named_ids(tokenizer: Tokenizer | None) -> dict[str, int]:
    """Returns {"bos_token_id": ..., "eos_token_id": ...}, those that exist."""
    if isinstance(tokenizer, GPT2Tokenizer):
        return {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.start}
    ids = tokenizer.ids if isinstance(tokenizer, HuggingFaceTokenizer) else {}
    return {f"{k}_id": ids[k] for k in ("bos_token", "eos_token") if k in ids}


def write(tokenizer: Tokenizer, folder: pathlib.Path, length: int) -> None:
    """Writes files with which AutoTokenizer gives the same ids.

    Args:
      tokenizer: one that `has_form`.
      length: the longest text that the model takes.
    """
    settings: dict[str, Any] = {"model_max_length": length}
    files: dict[str, Any] = {}
    if isinstance(tokenizer, GPT2Tokenizer):
        vocabulary, merges = gpt2_vocabulary()
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
