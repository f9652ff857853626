import json

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxgpt.interop import formats
from tests.conftest import ROOT

GOLDEN = ROOT / "parity_tests" / "golden"
NANO = GOLDEN / "nanogpt" / "tiny_bias_perturbed_ckpt_step5.pt"
GPT2 = GOLDEN / "gpt2" / "tiny_perturbed_pretrained"


@pytest.fixture(scope="session")
def nano():
    return torch.load(NANO, weights_only=True)


@pytest.fixture(scope="session")
def gpt2_params():
    return formats.get_format("gpt2").read(str(GPT2)).params


@pytest.fixture(scope="session")
def nano_params():
    return formats.get_format("nanogpt").read(str(NANO)).params


@pytest.fixture
def folder(tmp_path):
    """Writes a GPT-2 folder with some of its settings and arrays changed."""

    def folder(settings=(), arrays=()):
        path = tmp_path / "folder"
        path.mkdir(exist_ok=True)
        held = json.loads((GPT2 / "config.json").read_text()) | dict(settings)
        (path / "config.json").write_text(json.dumps(held))
        state = load_file(GPT2 / "model.safetensors") | dict(arrays)
        state = {name: array for name, array in state.items() if array is not None}
        save_file(state, path / "model.safetensors")
        return path

    return folder


def sharded(path, weight_map=None):
    """Splits a folder's weights into two shards with their index."""
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, name in enumerate(names):
        save_file({key: state[key] for key in sorted(state)[i::2]}, path / name)
    found = {key: names[i % 2] for i, key in enumerate(sorted(state))}
    index = {"metadata": {}, "weight_map": found if weight_map is None else weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return names


def assert_equal(found, there, tolerance=0.0):
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=1e-7)
    if not tolerance:
        compare = np.testing.assert_array_equal
    assert jax.tree.structure(found) == jax.tree.structure(there)
    jax.tree.map(compare, found, there)
