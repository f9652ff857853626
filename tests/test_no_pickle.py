"""No command ever loads a pickle: every one is run with a hook that would see it."""

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

# The hook sees every name a pickle asks for, in C and in Python, whoever loads it;
# the reader of .pt files asks for none.
HOOKED = """
import pickle, runpy, sys
def hook(event, details):
    if event == "pickle.find_class":
        print("PICKLE", *details, file=sys.stderr)
sys.addaudithook(hook)
for name in ("load", "loads"):
    def refuse(*_, name=name, **__):
        print("PICKLE", name, file=sys.stderr)
        raise SystemExit(99)
    setattr(pickle, name, refuse)
sys.argv = sys.argv[1:]
runpy.run_module("jaxgpt." + sys.argv[0], run_name="__main__", alter_sys=True)
"""
NANO = "parity_tests/golden/nanogpt/tiny_bias_perturbed_ckpt_step5.pt"


def hooked(name, *options):
    done = subprocess.run(
        [sys.executable, "-c", HOOKED, name, *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "PICKLE" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.process
def test_the_hook_sees_pickles(tmp_path):
    code = HOOKED.partition("sys.argv =")[0] + "pickle._loads(pickle.dumps(hook))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PICKLE" in done.stderr


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hooked") / "run"
    config = "--config=configs/sigma_char.py:tiny"
    hooked("train", config, f"--workdir={folder}", "--config.steps=2")
    return folder


@pytest.mark.process
@pytest.mark.parametrize(
    "options",
    [
        ("sample", "--max_new_tokens=3"),
        ("evaluate",),
        ("verify",),
        ("train", "--config.steps=3"),
    ],
    ids=lambda options: options[0],
)
def test_no_command_loads_a_pickle(workdir, options):
    hooked(options[0], f"--workdir={workdir}", *options[1:])


@pytest.mark.process
def test_conversion_of_a_pt_file_loads_no_pickle(tmp_path):
    run = f"--workdir={tmp_path / 'run'}"
    hooked("convert", "--format=nanogpt", f"--source={NANO}", run)
    hooked("convert", "--format=nanogpt", run, f"--output={tmp_path / 'out.npz'}")


@pytest.mark.process
def test_gssm_commands_load_no_pickle(tmp_path):
    config, file = "--config=configs/gssm_easy.py", tmp_path / "f.h5"
    hooked("systems.gssm.generate", config, f"--output={file}", "--num_sequences=8")
    tokens = np.zeros((2, 9), np.int64)
    np.save(tmp_path / "t.npy", tokens)
    hooked("systems.gssm.entropy", config, f"--tokens={tmp_path / 't.npy'}")
