"""The true GPT-2 124M architecture, random weights: minutes, so behind a marker."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from jaxgpt import convert
from jaxgpt.run import open_run
from parity_tests.conftest import relative
from parity_tests.tolerances import FLOAT32

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hf") / "gpt2"
    GPT2LMHeadModel(GPT2Config()).save_pretrained(path)
    return path


def test_logits_and_export(folder, tmp_path):
    from transformers import GPT2LMHeadModel

    workdir, back = tmp_path / "run", tmp_path / "back"
    convert.command(["--format=gpt2", f"--source={folder}", f"--workdir={workdir}"])
    run = open_run(str(workdir))
    assert run.tokenizer is not None
    ids = np.random.default_rng(0).integers(0, 50257, (2, 64)).astype(np.int32)
    with torch.no_grad():
        theirs = GPT2LMHeadModel.from_pretrained(folder).eval()(
            torch.tensor(ids).long()
        )
    ours, _ = run.system.score(run.params, ids, None)
    assert relative(ours, theirs.logits.numpy()) < FLOAT32["logits"]
    convert.command(["--format=gpt2", f"--workdir={workdir}", f"--output={back}"])
    one = GPT2LMHeadModel.from_pretrained(folder).state_dict()
    two = GPT2LMHeadModel.from_pretrained(back).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_reading_takes_less_than_twice_the_size_of_the_model(folder):
    code = (
        "import resource, sys\n"
        "from jaxgpt.backend import set_up_jax; set_up_jax()\n"
        "import jax; jax.numpy.zeros(1).block_until_ready()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "from jaxgpt.interop.formats import get_format\n"
        "held = get_format('gpt2').read(sys.argv[1])\n"
        "print(peak() - before)"
    )
    argv = [sys.executable, "-c", code, str(folder)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert int(said) < 2 * 124_439_808 * 4
