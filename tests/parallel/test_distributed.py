import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from jaxgpt.cli import Parser
from jaxgpt.errors import UserError
from jaxgpt.parallel import distributed, hardware
from jaxgpt.training import metrics
from tests.faults import wait_for_step

ROOT = pathlib.Path(__file__).parents[2]
LOST = "another process of this run is gone"
TRAIN = """
import sys
from jaxgpt import cli, train
from jaxgpt.parallel import distributed
distributed.WAITING_NOTICE_S, distributed.JOIN_TIMEOUT_S = 2, 60
distributed.HEARTBEAT_TIMEOUT_S = 8
cli.main(train.command)
"""


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(workdir, port, index, *overrides):
    flags = "--xla_force_host_platform_device_count=2"
    arguments = [
        "--config=configs/sigma_char.py:tiny",
        f"--workdir={workdir}",
        f"--coordinator=localhost:{port}",
        "--num_processes=2",
        f"--process_id={index}",
        *overrides,
    ]
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.process
def test_two_processes_lose_one_and_stop_together_and_one_goes_on(tmp_path, trained):
    """One run, in three lives: losing a process, a signal to one of two, then alone."""
    workdir, long = tmp_path / "run", ["--config.steps=100000"]
    long += ["--config.optimizer.decay_steps=40", "--config.mesh.fsdp=2"]
    port = free_port()
    pair = [start(workdir, port, index, *long) for index in (0, 1)]
    wait_for_step(workdir, 30, pair[0])
    pair[1].kill()
    _, said = pair[0].communicate(timeout=60)
    pair[1].communicate()
    assert pair[0].returncode == 1
    assert LOST in said
    assert "resumes" in said
    assert "terminate called" not in said and "Traceback" not in said
    rows = {row["step"]: row for row in metrics.read_rows(workdir)}
    for row in metrics.read_rows(trained):
        if row["step"] <= 20:
            for name in {"loss", "val_loss"} & row.keys():
                assert rows[row["step"]][name] == pytest.approx(row[name], abs=1e-5)

    port = free_port()
    pair = [start(workdir, port, index, *long) for index in (0, 1)]
    wait_for_step(workdir, 50, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60)[1] for process in pair]
    assert [process.returncode for process in pair] == [143, 143], said
    assert "resuming after step " in said[0]
    left = max(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
    assert f"stopped after step {left}" in said[0]

    alone = subprocess.run(
        [
            *(sys.executable, "-m", "jaxgpt.train", f"--workdir={workdir}"),
            f"--config.steps={left + 1}",
            "--config.mesh.fsdp=1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert alone.returncode == 0, alone.stderr
    assert f"on 1 cpu, resuming after step {left}" in alone.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_to_one_of_two_stops_both(tmp_path, name, code):
    workdir, port = tmp_path / "run", free_port()
    pair = [start(workdir, port, i, "--config.steps=100000") for i in (0, 1)]
    wait_for_step(workdir, 30, pair[0])
    pair[1].send_signal(getattr(signal, name))
    said = [process.communicate(timeout=30)[1] for process in pair]
    assert [process.returncode for process in pair] == [code, code], said
    assert "stopped after step " in said[0]


@pytest.mark.process
def test_a_missing_process_is_waited_for_aloud(tmp_path):
    process = start(tmp_path / "run", free_port(), 0)
    line = ""
    while process.poll() is None and "waiting for" not in line:
        line = process.stderr.readline()
    process.kill()
    process.communicate()
    assert "waiting for other processes (this is process 0 of 2) after 2 s" in line
    assert "start the same command on every host" in line


def options(*words):
    parser = Parser("test", "")
    parser.add_processes()
    return parser.parse_args(words)


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="belong together"):
        distributed.start(options("--num_processes=2"))
    wrong = options("--coordinator=a:1", "--num_processes=2", "--process_id=2")
    with pytest.raises(UserError, match=r"--process_id must be between 0 .* got 2"):
        distributed.start(wrong)
    assert not distributed.start(options("--num_processes=1"))


@pytest.mark.parametrize(
    ("name", "value", "several"),
    [
        ("SLURM_STEP_NUM_TASKS", "1", False),
        ("SLURM_STEP_NUM_TASKS", "4", True),
        ("TPU_WORKER_HOSTNAMES", "localhost", False),
        ("TPU_WORKER_HOSTNAMES", "10.0.0.1,10.0.0.2", True),
        ("JAX_COORDINATOR_ADDRESS", "host:1234", True),
    ],
)
def test_other_processes_are_found(monkeypatch, name, value, several):
    monkeypatch.setenv(name, value)
    assert distributed.in_cluster() is several


def test_a_tpu_that_is_there_is_never_left_aside_silently(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    hardware.check_backend("cpu", str(tmp_path))
    (tmp_path / "0000:00:05.0").mkdir()
    (tmp_path / "0000:00:05.0" / "vendor").write_text("0x1ae0\n")
    (tmp_path / "0000:00:05.0" / "device").write_text("0x0063\n")
    with pytest.raises(UserError, match="has a TPU that JAX cannot use"):
        hardware.check_backend("cpu", str(tmp_path))
    hardware.check_backend("tpu", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    hardware.check_backend("cpu", str(tmp_path))


def test_a_gpu_that_is_there_is_never_left_aside_silently(monkeypatch, capsys):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(hardware, "has_nvidia", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    hardware.check_backend("cpu", "none")
    (line,) = capsys.readouterr().err.splitlines()
    assert "NVIDIA GPU, which is not used: install 'jaxgpt[cuda]'" in line
    found = lambda name: name == "jax_cuda13_plugin" or None
    monkeypatch.setattr(importlib.util, "find_spec", found)
    with pytest.raises(UserError, match="use with jax_cuda13_plugin: nvidia-smi"):
        hardware.check_backend("cpu", "none")
    hardware.check_backend("gpu", "none")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    hardware.check_backend("cpu", "none")
    assert not capsys.readouterr().err


def test_the_largest_signal_is_agreed_on_alone():
    assert distributed.max_over_processes(15) == 15
    assert distributed.max_over_processes(0) == 0
