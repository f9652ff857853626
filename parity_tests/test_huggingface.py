"""Folders of transformers' GPT-2 in the shapes that users have, in and out again."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2LMHeadModel,
    GPT2Model,
)

from jaxgpt import config as configs
from jaxgpt import convert, sample
from jaxgpt.commands import init_from
from jaxgpt.data import sentencepiece, tokenizer_files, tokenizers
from jaxgpt.errors import UserError
from jaxgpt.interop import formats
from jaxgpt.run import open_run
from jaxgpt.systems.registry import build_system
from parity_tests.conftest import relative
from parity_tests.tolerances import FLOAT32

pytestmark = pytest.mark.unoptimised

IDS = np.random.default_rng(0).integers(0, 61, (2, 16))


def make(kind=GPT2LMHeadModel, **settings):
    """A model whose every parameter is far from its initial value."""
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16}
    rest = {"vocab_size": 61, "bos_token_id": 3, "eos_token_id": 4}
    model = kind(GPT2Config(**sizes | rest | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def theirs(model):
    with torch.no_grad():
        return model.float()(torch.tensor(IDS)).logits.numpy()


def ours(config, params):
    return np.asarray(build_system(config).model(params)(IDS)[0])


def imported(folder):
    original = formats.get_format("gpt2").read(str(folder))
    return ours(original.config, original.params), original


def tokenizer_of(size):
    """Byte-level BPE in transformers' form, with an added and a padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["the cat sat on the mat, the hat and the bat"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    found.add_tokens(["<tool>"])
    found.add_special_tokens({"pad_token": "<pad>"})
    return found


def test_a_folder_with_its_own_tokenizer_in_and_out(tmp_path, capsys):
    folder, workdir, output = (tmp_path / part for part in ("there", "run", "back"))
    rates = {"attn_pdrop": 0.0, "embd_pdrop": 0.1, "resid_pdrop": 0.2}
    ids = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 271}
    make(vocab_size=280, **rates, **ids).save_pretrained(folder)
    there = tokenizer_of(272)
    there.save_pretrained(folder)
    argv = ["--format=gpt2", f"--workdir={workdir}"]
    convert.command([*argv, f"--source={folder}"])
    run, text = open_run(str(workdir)), "the  cat<tool> sat É<pad>\n"
    assert run.tokenizer.encode(text, True).tolist() == there.encode(text)
    assert run.tokenizer.decode(run.tokenizer.encode(text)) == text
    assert run.tokenizer.decode([279]) == ""
    options = ["--temperature=0", "--max_new_tokens=3", "--json=-"]
    sample.command([f"--workdir={workdir}", f"--prompt={text}", *options])
    shutil.rmtree(folder)  # The run needs nothing but itself.
    convert.command([*argv, f"--output={output}"])
    back = AutoTokenizer.from_pretrained(output)
    assert back.encode(text) == there.encode(text)
    assert (back.bos_token, back.pad_token) == ("<s>", "<pad>")
    settings = json.loads((output / "config.json").read_text())
    assert (rates | ids).items() <= settings.items()


@pytest.mark.parametrize(
    "kind, bos",
    [("gpt2", 50256), ("char", None), ("sentencepiece", None)],
)
def test_an_export_has_the_tokenizer_of_the_run(tmp_path, capsys, kind, bos):
    folder, workdir, output = (tmp_path / part for part in ("there", "run", "back"))
    make(vocab_size=50257 if kind == "gpt2" else 61).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    for key in ("bos_token_id", "eos_token_id"):
        del settings[key]
    (folder / "config.json").write_text(json.dumps(settings))
    text = "the cat sat on the mat"
    own = {
        "gpt2": tokenizers.GPT2Tokenizer,
        "char": lambda: tokenizers.CharTokenizer("".join(sorted({*text}))),
        "sentencepiece": lambda: sentencepiece.train([text], {*text}, 13),
    }[kind]()
    tokenizer_files.save(own, tmp_path / "tokenizer.json")
    argv = ["--format=gpt2", f"--workdir={workdir}"]
    given = f"--tokenizer={tmp_path / 'tokenizer.json'}"
    convert.command([*argv, f"--source={folder}", given])
    convert.command([*argv, f"--output={output}"])
    settings = json.loads((output / "config.json").read_text())
    assert settings["bos_token_id"] == settings["eos_token_id"] == bos
    said = "transformers has no form of a sentencepiece one"
    assert (said in capsys.readouterr().err) == (kind == "sentencepiece")
    if kind == "sentencepiece":
        assert not (output / "tokenizer.json").exists()
    else:
        back = AutoTokenizer.from_pretrained(output)
        assert back.encode(text) == own.encode(text).tolist()


@pytest.mark.parametrize("size, more", [(50257, ""), (50259, ", and 2 without text")])
def test_gpt2_without_tokenizer_files_is_said_to_have_its_own(
    tmp_path, capsys, size, more
):
    folder, workdir = tmp_path / "there", tmp_path / "run"
    make(vocab_size=size, n_embd=2, n_layer=1).save_pretrained(folder)
    options = [f"--source={folder}", f"--workdir={workdir}"]
    convert.command(["--format=gpt2", *options])
    err = capsys.readouterr().err
    assert f"its {size:,} tokens are taken to be GPT-2's{more}" in err
    run = open_run(str(workdir))
    assert run.tokenizer.decode([464, 3797, 50258]) == "The cat"


def test_another_tokenizer_may_be_named(tmp_path, capsys):
    folder, own = tmp_path / "there", tmp_path / "own"
    make(vocab_size=280).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{")
    argv = ["--format=gpt2", f"--source={folder}"]
    with pytest.raises(UserError, match=r"tokenizer.json' is not valid JSON"):
        convert.command([*argv, f"--workdir={tmp_path / 'none'}"])
    assert not (tmp_path / "none").exists()
    there = tokenizer_of(272)
    there.save_pretrained(own)
    for i, path in enumerate((own, own / "tokenizer.json")):
        workdir = tmp_path / f"run{i}"
        convert.command([*argv, f"--workdir={workdir}", f"--tokenizer={path}"])
        found = open_run(str(workdir)).tokenizer.encode("the cat").tolist()
        assert found == there.encode("the cat")


def test_a_folder_is_fine_tuned_with_its_own_tokenizer(tmp_path, capsys):
    folder = tmp_path / "there"
    make(vocab_size=280).save_pretrained(folder)
    tokenizer_of(272).save_pretrained(folder)
    fields = {"init_from": str(folder), "system": "causal"}
    config = configs.override(configs.base(), fields)
    start = init_from.load(config)
    own = start.tokenizer
    init_from.adopt_architecture(config, start.config)
    assert config.model.vocab_size == 280
    assert init_from.choose_tokenizer(config, own, ()) is own
    assert config.data.tokenizer == "huggingface"
    for key, value in (("tokenizer", "char"), ("tokenizer_file", "other")):
        config.data[key] = value
        assert init_from.choose_tokenizer(config, own, {f"data.{key}"}) is None
        assert "with another vocabulary (huggingface)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["someone/model", "someone/model@v1", "distilgpt2"])
def test_names_of_the_hub_are_read_from_the_local_cache(tmp_path, monkeypatch, name):
    hub = pytest.importorskip("huggingface_hub")
    model = make()
    model.save_pretrained(tmp_path / "there")
    asked = []

    def snapshot_download(repository, revision, allow_patterns, local_files_only):
        asked.append((repository, revision, local_files_only))
        return str(tmp_path / "there")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert relative(imported(name)[0], theirs(model)) < FLOAT32["logits"]
    plain, _, revision = name.partition("@")
    full = plain if "/" in plain else f"distilbert/{plain}"
    assert asked == [(full, revision or None, True)]


def test_a_name_that_the_hub_lacks_is_one_line(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def missing(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", missing)
    with pytest.raises(UserError, match="'a/b' is not a file or folder, not in the"):
        imported("a/b")
    with pytest.raises(UserError, match="'none' does not exist"):
        imported("none")


VARIANTS = {
    "plain": {},
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu"},
    "gelu_fast": {"activation_function": "gelu_fast"},
    "gelu_accurate": {"activation_function": "gelu_accurate"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "narrow": {"n_inner": 24},
    "as wide as usual": {"n_inner": 64},
    "epsilon": {"layer_norm_epsilon": 1e-2},
    "untied": {"tie_word_embeddings": False},
    "upcast": {"reorder_and_upcast_attn": True},
    "all": {
        "activation_function": "relu",
        "n_inner": 24,
        "layer_norm_epsilon": 1e-3,
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_its_logits_and_returns(tmp_path, name):
    model = make(**VARIANTS[name])
    folder, workdir, output = (tmp_path / part for part in ("there", "run", "back"))
    model.save_pretrained(folder)
    argv = ["--format=gpt2", f"--workdir={workdir}"]
    convert.command([*argv, f"--source={folder}"])
    run = open_run(str(workdir))
    assert relative(ours(run.config, run.params), theirs(model)) < FLOAT32["logits"]
    convert.command([*argv, f"--output={output}"])
    back, report = GPT2LMHeadModel.from_pretrained(output, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor)
    assert relative(theirs(back.eval()), theirs(model)) < FLOAT32["logits"]
    again = formats.get_format("gpt2").read(str(output))
    assert again.config.model.to_dict() == run.config.model.to_dict()
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights(tmp_path, dtype):
    model = make().to(dtype)
    model.save_pretrained(tmp_path)
    assert relative(imported(tmp_path)[0], theirs(model)) < FLOAT32["logits"]


def test_shards(tmp_path):
    model = make()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert relative(imported(tmp_path)[0], theirs(model)) < FLOAT32["logits"]


def test_heads_of_other_tasks_are_passed_over_and_said(tmp_path):
    model = make(GPT2DoubleHeadsModel, num_labels=1)
    model.save_pretrained(tmp_path)
    found, original = imported(tmp_path)
    assert relative(found, theirs(model)) < FLOAT32["logits"]
    assert "skipped: multiple_choice_head.summary" in original.notes[0]


def test_the_body_alone(tmp_path):
    body = make(GPT2Model)
    body.save_pretrained(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert relative(imported(tmp_path)[0], theirs(model)) < FLOAT32["logits"]


def test_either_of_two_tied_names(tmp_path):
    from safetensors.torch import save_model

    model = make()
    model.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    assert relative(imported(tmp_path)[0], theirs(model)) < FLOAT32["logits"]


OUTER = ["module.", "_orig_mod.", "model.", "module.model._orig_mod.", "net.gpt."]


@pytest.mark.parametrize("key", [None, "state_dict"])
@pytest.mark.parametrize("outer", OUTER)
def test_names_in_a_module_of_the_users_own(tmp_path, outer, key):
    model = make()
    model.config.save_pretrained(tmp_path)
    state = {f"{outer}{name}": tensor for name, tensor in model.state_dict().items()}
    mask = torch.ones(16, 16, dtype=torch.uint8).tril().view(1, 1, 16, 16)
    state[f"{outer}transformer.h.1.attn.bias"] = mask
    state[f"{outer}transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save({key: state} if key else state, tmp_path / "pytorch_model.bin")
    assert relative(imported(tmp_path)[0], theirs(model)) < FLOAT32["logits"]


def test_dropout_comes_along_or_is_said(tmp_path):
    make(attn_pdrop=0.25, embd_pdrop=0.25, resid_pdrop=0.25).save_pretrained(tmp_path)
    _, original = imported(tmp_path)
    assert original.config.model.dropout == 0.25
    assert original.notes == ()
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["embd_pdrop"] = 0.0
    (tmp_path / "config.json").write_text(json.dumps(settings))
    _, original = imported(tmp_path)
    assert original.config.model.dropout == 0.0
    assert original.notes == (
        "attn_pdrop 0.25, embd_pdrop 0.0, resid_pdrop 0.25 differ: "
        "model.dropout is set to 0",
    )
