"""A run survives what happens to runs; see faults.py for how."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import verify
from jaxgpt.commands.train import replay, train
from jaxgpt.errors import CheckError, UserError
from jaxgpt.training import metrics
from jaxgpt.training.checkpoint import Checkpoints
from tests import faults
from tests.faults import ROOT, TINY, finish, record, start, wait_for_step
from tests.faults import saved_digests as saved


@pytest.fixture
def copied(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / "run")


# Killed.


@pytest.mark.parametrize("number", [17, 28, 48])
def test_killed_before_a_change_of_a_file_it_ends_in_the_same_bits(
    straight, tmp_path, number
):
    workdir = faults.killed_at(tmp_path, number)
    assert faults.resumes_to(straight, workdir)


@pytest.mark.slow
def test_killed_before_any_change_of_a_file(straight, tmp_path):
    wrong = [
        number
        for number in range(1, faults.count_changes(tmp_path) + 1)
        if not faults.resumes_to(straight, faults.killed_at(tmp_path, number))
    ]
    assert wrong == []


@pytest.mark.slow
def test_killed_at_random(tmp_path):
    straight, chance = tmp_path / "straight", random.Random(0)
    assert finish(start(straight, faults.OFTEN))[0] == 0
    for _ in range(30):
        workdir = faults.killed_after(tmp_path, chance.uniform(0, 1.5))
        assert faults.resumes_to(straight, workdir, faults.OFTEN)


def test_a_checkpoint_that_was_being_written_is_not_taken_for_one(tmp_path):
    """With every number of its files there, the last of them whole or cut in half."""
    whole = tmp_path / "whole"
    checkpoints = Checkpoints(whole, keep=2)
    for step in (1, 2):
        checkpoints.save(step, faults.tiny_state(step), None)
    checkpoints.close()
    folder = whole / "checkpoints" / "2"
    files = [p for p in folder.rglob("*") if p.is_file()]
    files.sort(key=lambda p: p.stat().st_mtime_ns)
    abstract = jax.eval_shape(lambda: faults.tiny_state(0))
    for count in range(len(files)):
        for part in (0.5, 1):
            copy = tmp_path / f"{count}-{part}"
            shutil.copytree(whole / "checkpoints" / "1", copy / "checkpoints" / "1")
            written = copy / "checkpoints" / "2.orbax-checkpoint-tmp"
            for file in files[: count + 1]:
                path = written / file.relative_to(folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                content = file.read_bytes()
                kept = len(content) if file != files[count] else part * len(content)
                path.write_bytes(content[: int(kept)])
            restarted = Checkpoints(copy, keep=2)
            assert restarted.restore_newest(abstract)[0] == 1
            restarted.save(2, faults.tiny_state(2), None)
            restarted.close()
            assert Checkpoints(copy, read_only=True).steps() == [1, 2]


# Damaged.


def test_mutated_checkpoints_are_detected_and_the_step_before_is_used(tmp_path):
    assert faults.mutations(tmp_path, 120) == {"detected": 120}


@pytest.mark.slow
def test_a_thousand_mutations(tmp_path):
    assert faults.mutations(tmp_path, 1000) == {"detected": 1000}


@pytest.mark.trains
def test_verify_and_resume_agree_on_the_damage(straight, copied, capsys):
    file = max(
        (copied / "checkpoints" / "40" / "params").rglob("*"),
        key=lambda p: p.stat().st_size if p.is_file() else 0,
    )
    faults.mutate(file, "flip", random.Random(3))
    assert verify.command([f"--workdir={copied}", "--json=-"]) == 1
    assert list(json.loads(capsys.readouterr().out)["damaged"]) == ["40"]
    assert train(configs.load(TINY, {}), copied) == 0
    said = capsys.readouterr().err
    assert "checkpoint 40 is damaged" in said and "using step 20" in said
    assert "resuming after step 20 of 40" in said
    assert saved(copied, 40) == saved(straight, 40)
    assert record(copied) == record(straight)


def test_a_validation_loss_that_was_changed_never_makes_a_best_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, loss in ((1, 2.5), (2, 3.5), (3, 3.0)):
        checkpoints.save(step, faults.tiny_state(step), {"val_loss": loss})
    checkpoints.close()
    file = tmp_path / "checkpoints" / "3" / "digests" / "metadata"
    file.write_text(file.read_text().replace("3.0", "1.0"))
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.pick("best") == 1
    checkpoints.save(4, faults.tiny_state(4), {"val_loss": 3.2})
    checkpoints.close()
    assert Checkpoints(tmp_path, read_only=True).steps() == [1, 4]


# The disk and the folder.


@pytest.mark.process
@pytest.mark.trains
def test_a_second_run_in_the_same_folder_is_told_who_is_there(tmp_path, capsys):
    workdir = tmp_path / "run"
    process = start(workdir, "--config.steps=100000")
    wait_for_step(workdir, 10, process)
    more = configs.load(TINY, {"steps": "50"})
    with pytest.raises(UserError, match=f"trained in by process {process.pid} on "):
        train(more, workdir)
    assert configs.load_frozen(workdir).steps == 100000
    process.kill()
    process.communicate()
    assert (workdir / "lock").exists()
    assert train(configs.load(TINY, {"steps": "20"}), workdir) == 0
    assert not (workdir / "lock").exists()


@pytest.mark.process
def test_a_folder_that_vanishes_is_written_again(straight, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, "--config.log_interval=5", "--config.steps=60")
    wait_for_step(workdir, 10, process)
    shutil.rmtree(workdir, ignore_errors=True)
    code, said = finish(process)
    assert code == 0
    assert f"warning: '{workdir}' is gone: writing it again" in said
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "tokenizer.json", "metrics.jsonl", "checkpoints"}
    assert [row["step"] for row in metrics.read_rows(workdir)] == list(range(0, 61, 5))
    assert verify.command([f"--workdir={workdir}"]) == 0


@pytest.mark.process
def test_a_folder_that_cannot_be_made_is_one_line(capsys):
    code, said = finish(start("/proc/jaxgpt"))
    assert code == 2
    assert said.startswith("error: --workdir '/proc/jaxgpt' cannot be written: ")
    assert said.count("\n") == 1


@pytest.mark.trains
@pytest.mark.parametrize("jump", [-86400, 86400])
def test_a_clock_that_jumps_changes_nothing(
    straight, tmp_path, monkeypatch, capsys, jump
):
    """It jumps within the second save, which has no time limit that short."""
    now, whole, saves = time.time, Checkpoints.save, []

    def save(self, *arguments):
        whole(self, *arguments)
        saves.append(1)

    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(time, "time", lambda: now() + jump * (len(saves) > 1))
    assert train(configs.load(TINY, {}), tmp_path / "run") == 0
    assert len(saves) > 1
    assert "could not be saved" not in capsys.readouterr().err
    assert record(tmp_path / "run") == record(straight)
    assert saved(tmp_path / "run", 40) == saved(straight, 40)


def test_a_failed_save_is_said_at_the_next_log_line(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, faults.tiny_state(1), None)
    checkpoints.report_errors(wait=True)
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    checkpoints.saving = 1
    checkpoints.report_errors()
    assert "checkpoint 1 could not be saved" in capsys.readouterr().err
    checkpoints.close()


# Signals.


@pytest.mark.process
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(straight, tmp_path, name):
    """The evaluation that was broken off is made up for."""
    workdir = tmp_path / "run"
    number = getattr(signal, name)
    code = (
        "import os, signal, sys; from jaxgpt import cli, train\n"
        "from jaxgpt.systems.base import System\n"
        "whole, calls = System.eval_nll, []\n"
        "def eval_nll(*arguments):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 4: os.kill(os.getpid(), {int(number)})\n"
        "    return whole(*arguments)\n"
        "System.eval_nll = eval_nll\n"
        "cli.main(train.command)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"--config={TINY}", f"--workdir={workdir}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    code, said = finish(process)
    assert code == 128 + number
    assert "stopped after step 20; the same command resumes" in said
    assert "val_loss" not in metrics.read_rows(workdir)[-1]
    assert faults.resumes_to(straight, workdir)


# Steps that are not finite.


def poisoned(system, monkeypatch, at):
    """Makes the loss of one step infinite."""
    whole = system.nll

    def nll(self, params, batch, dropout_key=None):
        found = whole(self, params, batch, dropout_key)
        return found / (batch["index"] != at) if "index" in batch else found

    batch = system.train_batch

    def train_batch(self, tokens, key, index):
        made = batch(self, tokens, key, index)
        return made | {"index": jax.numpy.full(len(tokens), index)[:, None]}

    monkeypatch.setattr(system, "nll", nll)
    monkeypatch.setattr(system, "train_batch", train_batch)


@pytest.mark.unoptimised
@pytest.mark.trains
def test_a_bad_step_stops_the_run_and_can_be_replayed(tmp_path, monkeypatch, capsys):
    from jaxgpt.systems.sigma.system import SigmaGPT

    poisoned(SigmaGPT, monkeypatch, at=24)
    workdir = tmp_path / "run"
    with pytest.raises(CheckError) as diverged:
        train(configs.load(TINY, {}), workdir)
    said = str(diverged.value)
    assert "step 25: the" in said and "checkpoints kept: 20" in said
    assert f"--workdir={workdir} --replay=25" in said
    with np.load(workdir / "nonfinite" / "25.npz", allow_pickle=False) as written:
        assert written["tokens"].shape == (8, 32)
        assert written["step"] == 25
        assert {"order_key", "dropout_key", "seed", "loss"} <= set(written)
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    assert replay(configs.load_frozen(workdir), workdir, 25) == 1
    shown = capsys.readouterr().out
    assert "batch and metrics are those in" in shown
    assert "first not finite: " in shown and "div" in shown
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


@pytest.mark.trains
def test_a_bad_step_is_skipped_where_the_config_says_so(tmp_path, monkeypatch, capsys):
    from jaxgpt.systems.sigma.system import SigmaGPT

    poisoned(SigmaGPT, monkeypatch, at=29)
    workdir = tmp_path / "run"
    assert train(configs.load(TINY, {"nonfinite": "skip"}), workdir) == 0
    assert "warning: step 30: the" in capsys.readouterr().err
    rows = {row["step"]: row for row in metrics.read_rows(workdir)}
    assert "loss" not in rows[30] and np.isfinite(rows[40]["loss"])


@pytest.mark.trains
def test_a_run_in_which_every_step_is_bad_ends(tmp_path):
    changes = {"optimizer.learning_rate": "1e30", "optimizer.warmup_steps": "0"}
    changes |= {"nonfinite": "skip", "steps": "60", "checkpoint_interval": "1"}
    with pytest.raises(CheckError, match="as in the 20 steps before"):
        train(configs.load(TINY, changes), tmp_path / "run")


def test_a_replay_of_a_step_that_is_not_there(straight):
    with pytest.raises(UserError, match=r"--replay must be in \[1, 40\], got 41"):
        replay(configs.load_frozen(straight), straight, 41)


# Configs.


@pytest.mark.trains
def test_a_change_is_refused_unless_it_is_allowed(copied):
    changes = {"optimizer.learning_rate": "5e-4", "steps": "41"}
    config = configs.load(TINY, changes)
    with pytest.raises(UserError, match=r"--allow=optimizer\.learning_rate"):
        train(config, copied)
    assert train(config, copied, ["optimizer.learning_rate"]) == 0
    assert configs.load_frozen(copied).optimizer.learning_rate == 5e-4


@pytest.mark.trains
def test_an_allowed_change_of_the_shape_is_still_no_checkpoint_of_it(copied):
    with pytest.raises(UserError, match="arrays of its checkpoints depend on it"):
        train(configs.load(TINY, {"model.n_embd": "64"}), copied, ["model.n_embd"])
    assert sorted(Checkpoints(copied, read_only=True).steps()) == [20, 40]


@pytest.mark.process
def test_an_unknown_key_cannot_be_allowed(tmp_path):
    process = start(tmp_path / "run", "--allow=optimizer.learning_rat")
    code, said = finish(process)
    assert code == 2
    assert "did you mean 'optimizer.learning_rate'" in said
