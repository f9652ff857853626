"""Folders of transformers' GPT-2 in the shapes that users have, in and out again."""

import json

import jax
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2DoubleHeadsModel, GPT2LMHeadModel, GPT2Model

from jaxgpt import convert
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
    original = formats.read_original("gpt2", str(folder))
    return ours(original.config, original.params), original


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
    again = formats.read_original("gpt2", str(output))
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
    assert "passed over: multiple_choice_head.summary" in original.notes[0]


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
        "attn_pdrop 0.25, embd_pdrop 0.0, resid_pdrop 0.25 are not one probability: "
        "model.dropout is 0",
    )
