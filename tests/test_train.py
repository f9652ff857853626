import os
import resource
import runpy
import signal
import sys
import time
import types

import jax
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt.commands.train import train
from jaxgpt.systems.registry import build_system
from jaxgpt.train import smaller_variant
from jaxgpt.training import metrics, optimizers, signals
from jaxgpt.training.progress import Progress
from jaxgpt.training.step import init_state, make_step
from tests.conftest import ROOT, refusal
from tests.faults import TINY, finish, saved_digests, start, wait_for_step


def test_a_run_leaves_what_the_contract_names(straight):
    names = {path.name for path in straight.iterdir()}
    files = {
        "config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "metrics.csv",
        "loss.png",
        "cost.json",
    }
    assert names == files | {"checkpoints"}
    rows = metrics.read_rows(straight)
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40]
    assert rows[0]["val_loss"] == pytest.approx(np.log(65), abs=0.1)
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] - 0.3
    header = (straight / "metrics.csv").read_text().splitlines()[0]
    assert {"step", "loss", "val_loss", "learning_rate"} <= set(header.split(","))


@pytest.mark.process
def test_resume_after_kill_9_ends_in_the_same_bits(straight, tmp_path):
    workdir = tmp_path / "killed"
    for step in (10, 20, 30):
        process = start(workdir, "--config.checkpoint_interval=5")
        wait_for_step(workdir, step, process)
        process.kill()
        process.wait()
    code, said = finish(start(workdir))
    assert code == 0
    assert "resuming after step" in said
    assert saved_digests(workdir, 40) == saved_digests(straight, 40)
    steps = [row["step"] for row in metrics.read_rows(workdir)]
    assert steps == sorted(set(steps))


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_saves_and_the_same_command_resumes(straight, tmp_path, number, code):
    workdir = tmp_path / "run"
    process = start(
        workdir, "--config.steps=100000", "--config.optimizer.decay_steps=40"
    )
    wait_for_step(workdir, 10, process)
    process.send_signal(number)
    assert finish(process)[0] == code
    left = max(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
    more = f"--config.steps={left + 5}"
    code, said = finish(start(workdir, more, "--config.optimizer.decay_steps=40"))
    assert code == 0
    assert f"resuming after step {left}" in said


@pytest.mark.process
def test_a_second_interrupt_quits_at_once(tmp_path):
    process = start(tmp_path / "run", "--config.steps=100000")
    wait_for_step(tmp_path / "run", 10, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130


@pytest.mark.process
def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path):
    workdir = tmp_path / "run"
    overrides = ["--config.optimizer.learning_rate=1e30", "--config.steps=60"]
    overrides += ["--config.optimizer.warmup_steps=0", "--config.checkpoint_interval=1"]
    code, said = finish(start(workdir, *overrides))
    assert code == 1
    assert "error: step " in said
    assert "checkpoints kept: " in said


@pytest.mark.process
def test_a_full_disk_keeps_the_older_steps_and_says_so(tmp_path):
    workdir = tmp_path / "run"
    assert finish(start(workdir, "--config.steps=20"))[0] == 0
    process = start(workdir, "--config.steps=40")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20480, 20480))
    code, said = finish(process)
    assert code == 1
    assert "could not be saved" in said
    assert "kept steps: 20" in said
    assert "is lost" in said
    code, said = finish(start(workdir, "--config.steps=40"))
    assert code == 0
    assert "resuming after step 20" in said


@pytest.mark.process
def test_a_checkpoint_of_8_devices_restores_on_1(tmp_path):
    eight = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    workdir = tmp_path / "run"
    code, said = finish(start(workdir, "--config.steps=20", env=eight))
    assert code == 0
    assert "on 8 cpu" in said
    code, said = finish(start(workdir, "--config.steps=40"))
    assert code == 0
    assert "on 1 cpu, resuming after step 20" in said


@pytest.mark.process
def test_device_count_changes_no_curve(straight, tmp_path):
    eight = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    assert finish(start(tmp_path / "run", env=eight))[0] == 0
    for one, other in zip(
        metrics.read_rows(straight),
        metrics.read_rows(tmp_path / "run"),
        strict=True,
    ):
        for name in ("loss", "val_loss"):
            if name in one:
                assert one[name] == pytest.approx(other[name], abs=1e-5)


def steps_of(changes, count=3):
    """Parameters and losses after a few steps on fixed tokens."""
    changes = {"model.vocab_size": 65, "optimizer.warmup_steps": 0} | changes
    config = configs.override(configs.load(TINY, {}), changes)
    system = build_system(config)
    optimizer = optimizers.make_optimizer(config)
    state = init_state(system.init(jax.random.key(0)), optimizer, ema=False)
    advance = make_step(system, optimizer)
    rng = np.random.default_rng(0)
    losses = []
    for index in range(count):
        tokens = rng.integers(0, 65, (8, system.window)).astype(np.int32)
        state, found = advance(state, np.int32(index), tokens)
        losses.append(float(found["loss"]))
    return state["params"], losses


@pytest.mark.unoptimised
@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("system", ["sigma", "causal"])
def test_accumulation_changes_nothing(system, parts):
    whole, losses = steps_of({"system": system})
    split, same = steps_of({"system": system, "accumulation": parts})
    np.testing.assert_allclose(losses, same, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_dropout_is_a_function_of_the_step():
    _, losses = steps_of({"model.dropout": 0.3})
    _, again = steps_of({"model.dropout": 0.3})
    _, without = steps_of({})
    assert losses == again
    assert losses != without


@pytest.mark.parametrize("separate_tables", ["false", "true"])
def test_every_parameter_has_a_decay_rule(separate_tables):
    changes = {"model.bias": "true", "model.vocab_size": "65"}
    changes |= {"sigma.separate_tables": separate_tables}
    config = configs.load(TINY, changes)
    params = jax.eval_shape(build_system(config).init, jax.random.key(0))
    mask = optimizers.decay_mask(params)
    for leaf, decays in zip(
        jax.tree.leaves(params), jax.tree.leaves(mask), strict=True
    ):
        assert decays == (leaf.ndim > 1)


def test_schedule_is_nanogpts():
    config = configs.base()
    rate = optimizers.learning_rate_schedule(config)
    expected = {
        0: 9.900990099009901e-06,
        99: 0.0009900990099009901,
        100: 0.001,
        2500: 0.000564423209907245,
        5000: 0.0001,
        10000: 0.0001,
    }
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-5)


@pytest.mark.trains
def test_a_device_out_of_memory_is_one_line_with_what_takes_less(tmp_path, monkeypatch):
    reason = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 987 bytes."

    def exhausted(*_):
        raise jax.errors.JaxRuntimeError(f"{reason}\nBufferAssignment: ...")

    monkeypatch.setattr("jaxgpt.commands.train.loop", exhausted)
    monkeypatch.setattr("jaxgpt.training.loop.Trainer.owes_evaluation", lambda _: False)
    message = refusal(train, configs.load(TINY, {}), tmp_path / "run")
    for part in ("batch_size 8 (", "allocate 987 bytes)", "accumulation"):
        assert part in message
    for knob in ("model.remat=full", "model.loss_chunk=128"):
        assert knob in message


def test_a_failing_tracker_never_stops_training(tmp_path, capsys):
    def fail(row):
        raise ConnectionError("no network")

    recorder = metrics.Recorder(tmp_path, 0, [fail])
    recorder.write({"step": 1, "loss": 2.0})
    recorder.write({"step": 2, "loss": 1.0})
    recorder.summarise()
    assert capsys.readouterr().err.count("a tracker failed") == 1
    assert [row["step"] for row in metrics.read_rows(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "stand_in", [None, types.SimpleNamespace(init=lambda **_: sys.exit(3))]
)
def test_a_missing_tracker_is_one_line(stand_in, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    config = configs.override(configs.base(), {"wandb_project": "x"})
    assert metrics.open_trackers(config, tmp_path) == []
    assert "warning: wandb is disabled" in capsys.readouterr().err


def test_runs_in_folders_of_one_name_have_their_own_ids(tmp_path, monkeypatch):
    begun = []
    stand_in = types.SimpleNamespace(init=lambda **found: begun.append(found["id"]))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    config = configs.override(configs.base(), {"wandb_project": "x"})
    for name in ("a/run", "b/run", "a/run", "old/run"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        if name == "old/run":  # Begun when the id was the name.
            (tmp_path / name / "wandb").mkdir()
        assert len(metrics.open_trackers(config, tmp_path / name)) == 1
    assert begun[0] == begun[2] != begun[1]
    assert begun[3] == "run"


def test_signals_that_a_system_has_not(monkeypatch):
    monkeypatch.setattr(signal, "Signals", [signal.SIGINT, signal.SIGTERM])
    found = runpy.run_path(signals.__file__)["SIGNALS"]
    assert found == [signal.SIGINT, signal.SIGTERM]
    assert signal.SIGUSR1 in signals.SIGNALS


def shown(monkeypatch, *rows, smaller=""):
    """A run of 10 million steps, after rows of (step, time)."""
    progress = Progress(0, 10_000_000, smaller)
    for step, now in rows:
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        progress.update(step, {"loss": 1.0, "tokens_per_second": 1.0})
    return progress


def test_the_time_left_is_without_what_comes_before_the_first_row(monkeypatch, capsys):
    assert shown(monkeypatch, (10, 500.0)).seconds_left() is None
    assert "ETA" not in capsys.readouterr().err
    progress = shown(monkeypatch, (10, 500.0), (20, 501.0), (30, 502.0))
    assert progress.seconds_left() == pytest.approx((10_000_000 - 30) / 10)
    assert "ETA 11 days, 13:46:37" in capsys.readouterr().err


@pytest.mark.parametrize("smaller", ["configs/sigma_char.py:laptop", ""])
def test_a_long_run_on_a_cpu_is_pointed_to_a_smaller_one(smaller, capsys, monkeypatch):
    progress = shown(monkeypatch, (1, 100.0), (2, 101.0), smaller=smaller)
    capsys.readouterr()
    progress.suggest_smaller()
    said = capsys.readouterr().err
    assert (f"--config={smaller} trains in minutes" in said) if smaller else not said


@pytest.mark.parametrize(
    "spec, smaller",
    [
        ("configs/sigma_char.py", "configs/sigma_char.py:laptop"),
        ("configs/sigma_char.py:laptop", ""),
        ("configs/sigma_char.py:tiny", ""),
        ("configs/sigma_task.py:maze", "configs/sigma_task.py:maze-laptop"),
        ("configs/sigma_task.py:maze-laptop", ""),
    ],
)
def test_what_is_suggested_is_smaller(spec, smaller, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert smaller_variant(spec) == smaller


@pytest.mark.trains
def test_training_starts_from_another_run_with_its_shape(straight, tmp_path, capsys):
    changes = {"init_from": str(straight), "steps": "1", "model.n_layer": "5"}
    changes |= {"optimizer.ema_decay": "0.9"}
    workdir = tmp_path / "my run"
    assert train(configs.load(TINY, changes), workdir) == 0
    assert f"--workdir='{workdir}'" in capsys.readouterr().err
    start, then = metrics.read_rows(straight)[-1], metrics.read_rows(workdir)[0]
    assert then["val_loss"] == pytest.approx(start["val_loss"], rel=1e-6)
    assert configs.load_frozen(workdir).model.n_layer == 2
    with pytest.raises(configs.UserError, match="is a sigma model"):
        train(configs.load(TINY, changes | {"system": "causal"}), tmp_path / "other")


@pytest.mark.trains
def test_averaged_parameters_follow_the_steps_and_are_what_is_evaluated(tmp_path):
    from jaxgpt.run import open_run
    from jaxgpt.training.checkpoint import Checkpoints
    from jaxgpt.training.step import eval_params

    config = configs.load(
        TINY, {"model.vocab_size": "65", "optimizer.ema_decay": "0.5"}
    )
    system, optimizer = build_system(config), optimizers.make_optimizer(config)
    state = init_state(system.init(jax.random.key(0)), optimizer, ema=True)
    expected = jax.tree.map(np.asarray, state["params"])
    advance = make_step(system, optimizer)
    tokens = np.zeros((8, system.window), np.int32)
    for index in range(20):
        state, _ = advance(state, np.int32(index), tokens)
        decay = min(0.5, (1 + index) / (10 + index))
        expected = jax.tree.map(
            lambda e, p, d=decay: d * e + (1 - d) * np.asarray(p),
            expected,
            state["params"],
        )
    for a, b in zip(
        jax.tree.leaves(eval_params(state)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    workdir = tmp_path / "run"
    changes = {"optimizer.ema_decay": "0.9", "steps": "20"}
    assert train(configs.load(TINY, changes), workdir) == 0
    run = open_run(str(workdir), "last")
    saved = Checkpoints(workdir, read_only=True).restore(
        20, {"ema": jax.eval_shape(system.init, jax.random.key(0))}
    )
    for a, b in zip(
        jax.tree.leaves(run.params), jax.tree.leaves(saved["ema"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)
