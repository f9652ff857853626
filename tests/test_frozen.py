"""Runs written by version 0.1 are still read, judged the same and trained on.

The folders under frozen/ are four steps of each system at the least size, and are never
made anew: what is on a user's disk is not either.
"""

import shutil

import pytest

from jaxgpt import config as configs
from jaxgpt import verify
from jaxgpt.commands.train import train
from jaxgpt.run import open_run
from jaxgpt.training import metrics
from tests.conftest import ROOT

FROZEN = ROOT / "tests" / "frozen"


@pytest.mark.unoptimised
@pytest.mark.trains
@pytest.mark.parametrize("name", ["sigma", "teeny", "gssm", "memory"])
def test_a_run_of_the_first_layout(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    workdir = tmp_path / "run"
    shutil.copytree(FROZEN / name, workdir)
    assert verify.command([f"--workdir={workdir}"]) == 0
    recorded = metrics.read_rows(workdir)[-1]["val_loss"]
    run = open_run(str(workdir))
    c, system = run.config, run.system
    tokens = run.open_data().eval_windows("val", system.window, c.eval_sequences)
    nll = system.eval_nll(run.params, tokens, c.batch_size, c.seed)[""]
    assert nll.mean() == pytest.approx(recorded, rel=1e-4)
    changes = {"steps": 6, "eval_interval": 1, "optimizer.decay_steps": 4}
    config = configs.override(configs.load_frozen(workdir), changes)
    assert train(config, workdir, ["optimizer.decay_steps"]) == 0
    steps = [row["step"] for row in metrics.read_rows(workdir)]
    assert steps[-3:] == [4, 5, 6]
