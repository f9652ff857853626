"""A run from the command line: trained, scored, sampled; what is refused."""

import pytest

from jaxgpt import evaluate, sample, train
from jaxgpt.run import open_run
from tests.conftest import ROOT, last_json, refusal


@pytest.fixture(scope="module", params=["tiny", "tiny-blocks"])
def run(request, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / request.param
    config = f"--config={ROOT}/configs/masked_diffusion.py:{request.param}"
    small = ["--config.steps=2", "--config.model.n_layer=1", "--config.batch_size=4"]
    text = f"--config.data.path={ROOT}/data/shakespeare.txt"
    assert not train.command([config, text, f"--workdir={workdir}", *small])
    return workdir


@pytest.mark.trains
@pytest.mark.unoptimised
def test_a_run_is_scored_with_an_error_and_called_a_bound(run, capsys):
    options = [f"--workdir={run}", "--json=-"]
    evaluate.command([*options, "--config.diffusion.eval_masks=2"])
    captured = capsys.readouterr()
    assert "an upper bound" in captured.err and "with 2 masks a text" in captured.err
    assert '"loss_error": 0.0' in captured.out
    message = refusal(evaluate.command, [*options, "--infill=0.3"])
    assert message.startswith("--infill needs the likelihood of each token")
    change = "--config.diffusion.block_length=4"
    assert "is for training" in refusal(evaluate.command, [*options, change])
    assert "has a bound" in refusal(open_run(str(run)).score, "my lord")


@pytest.mark.trains
@pytest.mark.unoptimised
def test_a_run_is_sampled_and_says_what_is_not_exact(run, capsys):
    options = [f"--workdir={run}", "--prompt=ROMEO:", "--num_samples=2", "--json=-"]
    sample.command(options)
    found = last_json(capsys)["samples"]
    assert [len(one["tokens"]) for one in found] == [32, 32]
    assert all(one["text"].startswith("ROMEO:") for one in found)
    sample.command([*options, "--num_steps=2"])
    assert "note: --num_steps=2 is not exact" in capsys.readouterr().err
    message = refusal(sample.command, [*options, "--sampler=exact-burst"])
    assert message.startswith("--sampler must be one of ancestral, ")


@pytest.mark.trains
def test_other_systems_refuse_its_options(trained, capsys):
    options = [f"--workdir={trained}", "--num_steps=2"]
    message = refusal(sample.command, options)
    assert message == "--num_steps is for masked diffusion: leave it out"
    change = "--config.diffusion.eval_masks=2"
    message = refusal(evaluate.command, [f"--workdir={trained}", change])
    assert "does not change how this sigma run is read" in message
