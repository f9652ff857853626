"""Runs written by version 0.1 are still read, judged the same and trained on.

The folders under frozen/ are four steps of each system at the least size, and are never
made anew: what is on a user's disk is not either.
"""

import shutil

import pytest

from jaxgpt import config as configs
from jaxgpt import metrics, verify
from jaxgpt.train import train
from tests.conftest import ROOT

FROZEN = ROOT / "tests" / "frozen"


@pytest.mark.parametrize("name", ["sigma", "teeny", "gssm", "memory"])
def test_a_run_of_the_first_layout(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    workdir = tmp_path / "run"
    shutil.copytree(FROZEN / name, workdir)
    assert verify.command([f"--workdir={workdir}"]) == 0
    before = metrics.read_rows(workdir)[-1]
    changes = {"steps": 6, "eval_interval": 1, "optimizer.decay_steps": 4}
    config = configs.override(configs.load_frozen(workdir), changes)
    assert train(config, workdir, ["optimizer.decay_steps"]) == 0
    rows = {row["step"]: row for row in metrics.read_rows(workdir)}
    assert sorted(rows)[-3:] == [4, 5, 6]
    # Its steps are small: what was learned is there, and goes on from there.
    assert rows[6]["val_loss"] == pytest.approx(before["val_loss"], abs=0.1)
