"""Layouts and names under which files hold the same weights."""

import json
import pathlib

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from jaxgpt import convert
from jaxgpt.interop import formats
from jaxgpt.run import open_run
from tests.interop.conftest import GPT2, NANO, assert_equal, sharded

WTE = "transformer.wte.weight"


def params(name, source, tmp_path):
    workdir = tmp_path / "run"
    convert.command([f"--format={name}", f"--source={source}", f"--workdir={workdir}"])
    return open_run(str(workdir)).params


@pytest.mark.parametrize(
    "dtype, tolerance",
    [
        (torch.float16, 2**-10),
        (torch.bfloat16, 2**-7),
        (torch.float32, 0),
        (torch.float64, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_other_dtypes(folder, tmp_path, gpt2_params, dtype, tolerance, kind):
    path = folder()
    state = load_file(path / "model.safetensors")
    cast = {name: torch.tensor(array).to(dtype) for name, array in state.items()}
    if kind == "bin":
        (path / "model.safetensors").unlink()
        torch.save(cast, path / "pytorch_model.bin")
    else:
        save_torch(cast, path / "model.safetensors")
    found = params("gpt2", path, tmp_path)
    assert_equal(found, gpt2_params, tolerance)
    table = cast[WTE].to(torch.float32).numpy()
    np.testing.assert_array_equal(found["table"], table)


def test_shards(folder, gpt2_params, tmp_path):
    path = folder()
    sharded(path)
    assert_equal(params("gpt2", path, tmp_path), gpt2_params)


def test_shards_of_pytorch(folder, gpt2_params):
    path = folder()
    weight_map = {}
    for old in sharded(path):
        state = {k: torch.tensor(v) for k, v in load_file(path / old).items()}
        new = old.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        torch.save(state, path / new)
        weight_map |= dict.fromkeys(state, new)
        (path / old).unlink()
    (path / "model.safetensors.index.json").unlink()
    index = path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(formats.get_format("gpt2").read(str(path)).params, gpt2_params)


def test_the_folder_that_transformers_saves(gpt2_params, tmp_path):
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(GPT2)
    model.save_pretrained(tmp_path / "saved")
    found = formats.get_format("gpt2").read(str(tmp_path / "saved")).params
    assert_equal(found, gpt2_params)
    model.transformer.save_pretrained(tmp_path / "body")
    found = formats.get_format("gpt2").read(str(tmp_path / "body")).params
    assert_equal(found, gpt2_params)


def buffers(state):
    mask = torch.ones(1, 1, 32, 32).tril().bool()
    for i in range(2):
        state |= {f"transformer.h.{i}.attn.bias": mask}
        state |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(True)}
    return state


RENAMED = {
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "parallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "both": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
    "buffers": buffers,
    "headless": lambda state: {k: v for k, v in state.items() if k != "lm_head.weight"},
    "bodiless": lambda state: {
        k.removeprefix("transformer."): v for k, v in state.items()
    },
    "compiled with buffers": lambda state: {
        f"_orig_mod.{k}": v for k, v in buffers(state).items()
    },
    "bodiless with buffers": lambda state: {
        k.removeprefix("transformer."): v for k, v in buffers(state).items()
    },
    "blocks compiled or sharded": lambda state: {
        k.replace("h.0.", "h.0._orig_mod.").replace(
            "h.1.", "h.1._fsdp_wrapped_module._checkpoint_wrapped_module."
        ): v
        for k, v in state.items()
    },
    "compiled of data parallel": lambda state: {
        f"_orig_mod.module.{k}": v for k, v in state.items()
    },
    "backwards": lambda state: dict(reversed(state.items())),
    "parameters": lambda state: {k: torch.nn.Parameter(v) for k, v in state.items()},
}


@pytest.mark.parametrize("kind", RENAMED)
def test_other_names(nano, nano_params, tmp_path, kind):
    path = tmp_path / "renamed.pt"
    state = RENAMED[kind](dict(nano["model"]))
    torch.save(nano | {"model": state}, path)
    found = formats.get_format("nanogpt").read(str(path))
    assert_equal(found.params, nano_params)
    assert found.moments is not None
    assert found.step == 5


@pytest.mark.parametrize(
    "suffix", [".pt", ".pth", ".bin", ".ckpt", ".npz", ".safetensors"]
)
def test_other_files(nano, nano_params, tmp_path, suffix):
    path = tmp_path / f"state{suffix}"
    state = dict(nano["model"])
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    if suffix == ".npz":
        np.savez(path, **arrays)
    elif suffix == ".safetensors":
        save_file(arrays, path)
    else:
        torch.save(state, path)
    settings = tmp_path / "config.json"
    settings.write_text(json.dumps(nano["model_args"]))
    found = formats.get_format("nanogpt").read(str(path), str(settings))
    assert_equal(found.params, nano_params)


def test_an_import_says_what_it_did(tmp_path, capsys):
    workdir = tmp_path / "run"
    tokenizer = tmp_path / "tokenizer.json"
    characters = "".join(map(chr, range(40, 105)))
    tokenizer.write_text(json.dumps({"kind": "char", "characters": characters}))
    options = [f"--source={NANO}", f"--workdir={workdir}", "--json=-"]
    convert.command(["--format=nanogpt", *options, f"--tokenizer={tokenizer}"])
    found = json.loads(capsys.readouterr().out)
    assert (found["n_layer"], found["n_head"], found["step"]) == (2, 4, 5)
    assert found["optimizer_state"] is True
    assert pathlib.Path(found["workdir"]) == workdir
    assert open_run(str(workdir)).tokenizer.vocab_size == 65
