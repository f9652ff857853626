"""Tokenizers of Hugging Face: the ids of AutoTokenizer, in one piece or in many."""

import itertools
import json
import random
import re
import sys

import numpy as np
import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from jaxgpt.data import huggingface, huggingface_folder, tokenizer_files, tokenizers
from jaxgpt.errors import UserError
from tests.conftest import ROOT

TEXT = (ROOT / "data" / "shakespeare.txt").read_text()[:100_000]
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
END = "<|endoftext|>"
GPT4 = (
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(tokenizer, kind=trainers.BpeTrainer, **settings):
    defaults = {"vocab_size": 500, "show_progress": False}
    tokenizer.train_from_iterator(TEXT.split("\n"), kind(**defaults | settings))
    return tokenizer


def byte_level(split=None, **settings):
    tokenizer = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, last])
    if not split:
        tokenizer.pre_tokenizer = last
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, initial_alphabet=ALPHABET, **settings)


@pytest.fixture(scope="module")
def plain():
    return byte_level(special_tokens=[END])


def llama(plain):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))]
    return trained(tokenizer, special_tokens=special)


def metaspace(plain):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    more = {"unk_token": "<unk>", "special_tokens": ["<unk>"], "vocab_size": 200}
    return trained(tokenizer, trainers.UnigramTrainer, initial_alphabet=["\n"], **more)


def bert(plain):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return trained(tokenizer, trainers.WordPieceTrainer, special_tokens=["[UNK]"])


def normalized(plain, normalizer):
    tokenizer = Tokenizer.from_str(plain.to_str())
    tokenizer.normalizer = normalizer
    return tokenizer


KINDS = {
    "plain": lambda plain: plain,
    "gpt-4's split": lambda plain: byte_level(GPT4),
    "lower case": lambda plain: normalized(plain, normalizers.Lowercase()),
    "NFKC": lambda plain: normalized(plain, normalizers.NFKC()),
    "llama": llama,
    "metaspace": metaspace,
    "bert": bert,
}


def folder_of(tokenizer, folder, **named):
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)


def theirs(folder, **settings):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def gpt2_folder(plain, folder, **files):
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    plain.model.save(str(folder))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


TEXTS = [
    "First Citizen:\n\nBefore we  go",
    " leading",
    "trailing \n",
    "",
    "HELLO \n\n it",
]
WRITTEN = f"x <tool> y{END}z [PAD]"


def assert_same(tokenizer, folder, texts, whole=True):
    plain, special = theirs(folder, split_special_tokens=True), theirs(folder)
    for text in texts:
        assert tokenizer.encode(text).tolist() == plain(text)
        assert tokenizer.encode(text, True).tolist() == special(text)
        if whole:
            assert tokenizer.decode(tokenizer.encode(text)) == text
            assert tokenizer.decode(tokenizer.encode(text, True)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_autotokenizer_s_wherever_a_text_is_cut(plain, tmp_path, kind):
    folder_of(KINDS[kind](plain), tmp_path)
    tokenizer, notes = huggingface_folder.read(tmp_path)
    assert_same(tokenizer, tmp_path, TEXTS, whole=not notes)
    text, choose = TEXT[:6000], random.Random(0)
    cuts = [m.start() for m in re.finditer(r"(?<=\S)[ \n]", text)]
    cuts = [0, *sorted(choose.sample(cuts, 40)), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
    found = list(tokenizer.encode_pieces(pieces))
    assert len(found) > 30
    np.testing.assert_array_equal(np.concatenate(found), tokenizer.encode(text))
    again = tokenizer_files.from_json(json.loads(json.dumps(tokenizer.to_json())))
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


@pytest.mark.parametrize(
    "kind, said",
    [
        ("plain", None),
        ("gpt-4's split", None),
        ("llama", None),
        ("lower case", "its tokenizer changes text: 'Fox fox' is read as 'fox fox'"),
        ("bert", "its tokenizer changes text: 'Fox fox' is read as 'fox fox'"),
        ("metaspace", "its tokenizer changes text: ' a' is read as 'a'"),
    ],
)
def test_a_tokenizer_that_changes_text_is_said_to(plain, tmp_path, kind, said):
    folder_of(KINDS[kind](plain), tmp_path)
    assert huggingface_folder.read(tmp_path)[1] == ((said,) if said else ())


def test_a_text_that_goes_on_begins_with_no_space_of_its_own(plain, tmp_path):
    folder_of(llama(plain), tmp_path)
    tokenizer, _ = huggingface_folder.read(tmp_path)
    whole = tokenizer.encode("the king of men")
    parts = tokenizer.encode("the king"), tokenizer.encode_rest(" of men")
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert tokenizer.decode(parts[0]) == "the king"
    assert tokenizer.decode_rest(parts[1]) == " of men"


ADDED = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
DECODER = {
    "0": ADDED | {"content": END, "special": True},
    "500": ADDED | {"content": "<tool>", "special": False, "normalized": True},
    "501": ADDED | {"content": "[PAD]", "special": True},
}
FOLDERS = {
    "alone": {},
    "added_tokens.json": {
        "added_tokens": {"<tool>": 500, "[PAD]": 501},
        "special_tokens_map": {"bos_token": END, "pad_token": "[PAD]"},
    },
    "tokenizer_config.json": {
        "tokenizer_config": {
            "tokenizer_class": "GPT2Tokenizer",
            "added_tokens_decoder": DECODER,
            "pad_token": "[PAD]",
        }
    },
    "space before": {"tokenizer_config": {"add_prefix_space": True}},
}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_vocabulary_and_merges(plain, tmp_path, kind, shuffled):
    gpt2_folder(plain, tmp_path, **FOLDERS[kind])
    if shuffled:  # Ids in another order than the merges.
        vocabulary = json.loads((tmp_path / "vocab.json").read_text())
        ids = list(vocabulary.values())
        random.Random(0).shuffle(ids)
        shuffle = dict(zip(vocabulary, ids, strict=True))
        if kind == "tokenizer_config.json":  # It says the id too.
            shuffle |= {END: 0, next(t for t, i in shuffle.items() if i == 0): ids[0]}
            shuffle = vocabulary
        (tmp_path / "vocab.json").write_text(json.dumps(shuffle))
    tokenizer, notes = huggingface_folder.read(tmp_path)
    assert_same(tokenizer, tmp_path, [*TEXTS, WRITTEN, "É日本😀\r\n"], whole=not notes)
    for half in ("vocab.json", "merges.txt"):
        found, _ = tokenizer_files.read_any(tmp_path / half)
        assert found.to_json() == tokenizer.to_json()
    assert tokenizer.decode([tokenizer.vocab_size, 7000]) == ""
    assert END not in tokenizer.named or tokenizer.start == tokenizer.encode(END, True)


def test_gpt2_s_class_reads_a_tokenizer_json_its_own_way(plain, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = normalized(plain, normalizers.Lowercase())
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found, notes = huggingface_folder.read(tmp_path)
    assert_same(found, tmp_path, TEXTS)
    assert "without a normalizer" in notes[0]


def gpt2_s_own(folder, kind):
    huggingface_folder.write(tokenizers.GPT2Tokenizer(), folder, 1024)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    if kind == "tokenizer.json":
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink()


@pytest.mark.parametrize("kind", ["vocab.json", "tokenizer.json"])
def test_gpt2_s_own_files_need_no_package(tmp_path, kind, monkeypatch):
    gpt2_s_own(tmp_path, kind)
    assert (tmp_path / kind).exists()
    ids = theirs(tmp_path, split_special_tokens=True)(f"{TEXT[:2000]} É😀{END}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    tokenizer, notes = huggingface_folder.read(tmp_path)
    assert isinstance(tokenizer, tokenizers.GPT2Tokenizer)
    assert notes == ()
    assert tokenizer.encode(f"{TEXT[:2000]} É😀{END}").tolist() == ids


def test_gpt2_s_own_with_added_tokens(tmp_path):
    gpt2_s_own(tmp_path, "vocab.json")
    (tmp_path / "added_tokens.json").write_text('{"<tool>": 50257, "[PAD]": 50258}')
    tokenizer, _ = huggingface_folder.read(tmp_path)
    assert tokenizer.vocab_size == 50259
    assert_same(tokenizer, tmp_path, [*TEXTS, WRITTEN])
    tokenizer, notes = huggingface_folder.read(tmp_path, 50257)
    assert isinstance(tokenizer, tokenizers.GPT2Tokenizer)
    assert notes == ("the model has no '<tool>', '[PAD]', which its tokenizer has",)


@pytest.mark.parametrize("kind", ["gpt2", "huggingface"])
def test_a_tokenizer_of_more_tokens_than_the_model_s_is_not_read(plain, tmp_path, kind):
    if kind == "gpt2":
        gpt2_s_own(tmp_path, "vocab.json")
    else:
        folder_of(plain, tmp_path)
    size = huggingface_folder.read(tmp_path)[0].vocab_size
    assert huggingface_folder.read(tmp_path, size)[0] is not None
    found, notes = huggingface_folder.read(tmp_path, size - 100)
    assert found is None
    said = f"its tokenizer is not read: it has {size} tokens, the model {size - 100}"
    assert notes == (said,)


def test_an_accent_apart_from_its_letter(plain, tmp_path):
    folder_of(normalized(plain, normalizers.NFC()), tmp_path)
    tokenizer, _ = huggingface_folder.read(tmp_path)
    apart = "cafe\N{COMBINING ACUTE ACCENT} here"
    assert_same(tokenizer, tmp_path, [apart], whole=False)
    assert tokenizer.decode(tokenizer.encode(apart)) == "caf\xe9 here"


@pytest.mark.parametrize("kind", ["char", "gpt2", "huggingface"])
def test_what_is_written_has_the_same_ids_there(plain, tmp_path, kind):
    tokenizer = {
        "char": tokenizers.CharTokenizer("".join(sorted({*TEXT}))),
        "gpt2": tokenizers.GPT2Tokenizer(),
        "huggingface": huggingface.HuggingFaceTokenizer(
            json.loads(llama(plain).to_str()), {"bos_token": "<s>"}
        ),
    }[kind]
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    huggingface_folder.write(tokenizer, tmp_path, 64)
    from transformers import AutoTokenizer

    there = AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT[:3000], "a  b\n\n", " a"):
        ids = tokenizer.encode(text).tolist()
        assert there(text, add_special_tokens=False)["input_ids"] == ids
        assert there.decode(ids) == text
    assert there.bos_token == {"char": None, "gpt2": END, "huggingface": "<s>"}[kind]
    assert there.model_max_length == 64
    back, notes = huggingface_folder.read(tmp_path)
    assert notes == ()
    assert back.encode(TEXT[:3000]).tolist() == tokenizer.encode(TEXT[:3000]).tolist()


def test_a_missing_package_is_named(plain, tmp_path, monkeypatch):
    gpt2_folder(plain, tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install tokenizers"):
        huggingface_folder.read(tmp_path)


def test_text_without_tokens_is_named(plain, tmp_path):
    folder_of(metaspace(plain), tmp_path)
    tokenizer, _ = huggingface_folder.read(tmp_path)
    with pytest.raises(tokenizers.UnknownCharacterError, match=r"'日' .at 8. starts"):
        list(tokenizer.encode_pieces(["The king", "日"]))
    without_unknown = trained(Tokenizer(models.BPE()))
    tokenizer = huggingface.HuggingFaceTokenizer(json.loads(without_unknown.to_str()))
    with pytest.raises(tokenizers.UnknownCharacterError, match=r"'日' .at 1."):
        tokenizer.encode("a日")
    whole = huggingface.HuggingFaceTokenizer(json.loads(plain.to_str()))
    with pytest.raises(tokenizers.UnknownCharacterError, match="at 2"):
        whole.encode("ab\udc80")


def test_limits_of_training_do_not_cut_a_text(plain):
    tokenizer = Tokenizer.from_str(plain.to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    found = huggingface.HuggingFaceTokenizer(json.loads(tokenizer.to_str()))
    assert found.decode(found.encode(TEXT[:500])) == TEXT[:500]


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"tokenizer.json": "{"}, "is not valid JSON"),
        ({"tokenizer.json": "[]"}, "is not a JSON object"),
        ({"tokenizer.json": "{}"}, "holds no tokenizer of Hugging Face"),
        ({"tokenizer.json": '{"model": {}}'}, "it is not a Hugging Face tokenizer"),
        ({"vocab.json": '{"a": "b"}', "merges.txt": ""}, "cannot be used"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a c"}, "cannot be used"),
        (
            {
                "vocab.json": '{"a": 0}',
                "merges.txt": "",
                "added_tokens.json": '{"b": 7}',
            },
            "its added token 'b' cannot have id 7",
        ),
        (
            {
                "vocab.json": '{"a": 0}',
                "merges.txt": "",
                "added_tokens.json": '{"b": "c"}',
            },
            "has an added token 'b' of id 'c'",
        ),
    ],
    ids=range(8),
)
def test_what_is_damaged_is_said(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        huggingface_folder.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["spiece.model", "vocab.txt", "vocab.json"])
def test_what_transformers_alone_reads_is_said(tmp_path, name):
    (tmp_path / name).write_text("")
    found, notes = huggingface_folder.read(tmp_path)
    assert found is None
    assert f"its tokenizer is not read: {name} needs a tokenizer.json" in notes[0]


def test_a_text_is_trained_on_with_a_tokenizer_file(plain, tmp_path, monkeypatch):
    from jaxgpt import config as configs
    from jaxgpt.data.text import open_text

    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text(TEXT[:5000])
    file = tmp_path / "tokenizer.json"
    plain.save(str(file))
    fields = {"path": str(tmp_path / "a.txt"), "tokenizer": "huggingface"}
    fields |= {"tokenizer_file": str(file)}
    config = configs.override(
        configs.base(), {f"data.{key}": value for key, value in fields.items()}
    )
    data = open_text(config, 16)
    ids = np.concatenate([data.splits["train"], data.splits["val"]])
    assert data.tokenizer.decode(ids) == TEXT[:5000]
    normalized(plain, normalizers.Lowercase()).save(str(file))
    data = open_text(config, 16)
    assert TEXT.lower().startswith(data.tokenizer.decode(data.splits["train"][:50]))
    with pytest.raises(UserError, match=r"needs data.tokenizer_file=PATH"):
        open_text(configs.override(config, {"data.tokenizer_file": ""}), 16)
    with pytest.raises(
        UserError, match=r"needs data.tokenizer=huggingface, got 'char'"
    ):
        configs.validate(
            configs.override(
                config, {"data.tokenizer": "char", "data.tokenizer_file": "x"}
            )
        )
