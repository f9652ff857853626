"""Conversions hold few arrays at once, and read no more than they check."""

import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxgpt.commands import convert
from jaxgpt.errors import UserError
from jaxgpt.interop import mapped, rules, weights
from jaxgpt.interop.rules import Rule
from jaxgpt.run import open_run
from jaxgpt.training import checkpoint, optimizers
from jaxgpt.training.checkpoint import Checkpoints
from tests.interop.conftest import GPT2

MB = 1 << 20
DTYPES = ("float32", "float16", "float64", "int64", "bool", "bfloat16")


@pytest.fixture
def peak():
    """A function: the most memory that Python and NumPy took since."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def drawn(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_source_stays_in_its_file(tmp_path, suffix, request):
    path, state = tmp_path / f"weights{suffix}", {"a": drawn(1024, 1024)}
    if suffix == ".pt":
        torch.save({name: torch.tensor(array) for name, array in state.items()}, path)
    else:
        save_file(state, path)
    peak = request.getfixturevalue("peak")
    found = weights.read_source(str(path), None).state["a"]
    assert peak() < 3 * MB
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, state["a"])
    mapped.release(found)
    np.testing.assert_array_equal(found, state["a"])
    mapped.release(state["a"])  # No view of a file.


def test_safetensors_of_every_dtype_and_shape(tmp_path):
    made = {name: np.arange(6).reshape(2, 3).astype(name) for name in DTYPES}
    made |= {"scalar": np.array(2.5), "empty": np.zeros((0, 3), np.int8)}
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file(made, theirs)
    weights.write_safetensors(ours, made)
    for path in (theirs, ours):
        found = weights.read_source(str(path), None).state
        assert found.keys() == made.keys()
        with safe_open(path, "np") as file:
            for name, array in made.items():
                np.testing.assert_array_equal(found[name], array, strict=True)
                np.testing.assert_array_equal(file.get_tensor(name), array, strict=True)
    with safe_open(ours, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_safetensors_are_written_array_by_array(tmp_path, peak):
    state = {name: drawn(1024, 512).T for name in "abcdefgh"}
    held = peak()
    weights.write_safetensors(tmp_path / "a.safetensors", state)
    assert peak() < held + 4 * MB


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_cut_short_is_refused(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save({"a": torch.ones(100)}, path)
    else:
        save_file({"a": np.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(UserError, match=r"damaged|not a PyTorch file"):
        weights.read_source(str(path), None)


def test_a_flipped_bit_of_a_storage_is_noticed(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.arange(4096.0)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (entry,) = [e for e in archive.infolist() if e.filename.endswith("data/0")]
    content[entry.header_offset + 8000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged|not a PyTorch file"):
        weights.read_source(str(path), None)


def test_parameters_that_had_to_be_copied_are_deleted():
    params = {"kernel": jax.device_put(drawn(5, 7)), "bias": jax.device_put(drawn(7))}
    table = [Rule("weight", "kernel", transposed=True), Rule("bias", "bias")]
    expected = rules.to_torch(params, table)
    found = rules.to_torch(params, table, use_up=True)
    assert params["kernel"].is_deleted()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_an_imported_run_begins_with_the_optimizer_s_own_state(tmp_path):
    convert.import_run("gpt2", str(GPT2), tmp_path / "run")
    run = open_run(str(tmp_path / "run"))
    expected = {"opt_state": optimizers.make_optimizer(run.config).init(run.params)}
    restored = Checkpoints(run.workdir, read_only=True).restore(
        run.step, jax.eval_shape(lambda: expected)
    )
    assert checkpoint.digests(restored) == checkpoint.digests(expected)
