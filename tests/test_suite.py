"""The suite's own machinery: its cache of compiled programs, its marks and order."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jaxgpt.training.loop import Trainer
from scripts import install_torch
from tests import suite

COMPILE = """
import jax
hits = []
jax.monitoring.register_event_listener(
    lambda event, **kwargs: hits.append(event) if event.endswith("/cache_hits") else 0
)
jax.jit(lambda x: x * 3 + 1)(2.0)
print(len(hits))
"""


@pytest.mark.process
def test_what_one_process_compiled_the_next_one_loads(tmp_path):
    env = os.environ | {suite.CACHE_VARIABLE: str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", COMPILE]
    hits = [int(subprocess.check_output(command, env=env)) for _ in range(2)]
    assert hits[0] == 0 < hits[1]


@pytest.mark.process
def test_an_entry_that_was_cut_off_is_compiled_again_in_silence(tmp_path):
    env = os.environ | {suite.CACHE_VARIABLE: str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", COMPILE]
    subprocess.run(command, env=env, check=True, capture_output=True)
    for entry in tmp_path.iterdir():
        entry.write_bytes(entry.read_bytes()[:100])
    again = subprocess.run(command, env=env, check=True, capture_output=True)
    assert (again.stdout, again.stderr) == (b"0\n", b"")


def test_this_process_keeps_every_program():
    assert jax.config.jax_compilation_cache_dir == os.environ[suite.CACHE_VARIABLE]
    assert pathlib.Path(jax.config.jax_compilation_cache_dir).is_dir()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1


def test_a_cache_that_cannot_be_written_is_a_temporary_one(tmp_path):
    (tmp_path / "file").write_text("mine")
    found = suite.cache_folder(tmp_path / "file" / "xla")
    assert found.is_dir() and tmp_path not in found.parents
    found.rmdir()


def test_a_cache_that_has_grown_too_large_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(suite, "CACHE_BYTES", 10)
    (tmp_path / "program").write_bytes(b"0123456789")
    assert suite.cache_folder(tmp_path) == tmp_path
    assert (tmp_path / "program").exists()
    (tmp_path / "program").write_bytes(b"0123456789a")
    assert suite.cache_folder(tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_quick_test_neither_trains_nor_starts_a_process():
    with pytest.raises(AssertionError, match=r"with pytest\.mark\.process"):
        subprocess.run(["true"])
    with pytest.raises(AssertionError, match=r"with pytest\.mark\.trains"):
        Trainer(None, None, pathlib.Path())


def test_quick_tests_come_first_and_trainings_last(request):
    ranks = [suite.rank(item) for item in request.session.items]
    assert ranks == sorted(ranks)


def asked(names):
    """A pip that would install these packages; records what it is asked."""

    def run(command):
        run.commands.append(command)
        report = {"install": [{"metadata": {"name": name}} for name in names]}
        return subprocess.CompletedProcess(command, 0, json.dumps(report), "")

    run.commands = []
    return run


CUDA = ("torch", "nvidia-cublas", "sympy")


@pytest.mark.parametrize(
    ("names", "system", "nvidia", "cpu_build"),
    [
        (CUDA, "linux", False, True),
        (CUDA, "linux", True, False),
        (CUDA, "darwin", False, False),
        (("torch", "sympy"), "linux", False, False),
    ],
)
def test_cuda_libraries_come_only_where_there_is_a_driver(
    names, system, nvidia, cpu_build
):
    *others, last = install_torch.commands(asked(names), system, nvidia)
    assert last[-1] == install_torch.TORCH
    assert ("--torch-backend=cpu" in last) == cpu_build
    assert [command[-1] for command in others] == ["uv"] * cpu_build


def test_an_installed_torch_is_left_alone(monkeypatch):
    run = asked(CUDA)
    monkeypatch.setattr(install_torch, "run", run)
    assert install_torch.main() == 0
    assert run.commands == []


def test_a_torch_that_cannot_be_installed_is_one_line(monkeypatch, capsys):
    failed = subprocess.CompletedProcess((), 7, "", "no route")
    monkeypatch.setattr(install_torch, "run", lambda command: failed)
    monkeypatch.setattr(install_torch.importlib.util, "find_spec", lambda name: None)
    assert install_torch.main() == 7
    installing, error = capsys.readouterr().err.splitlines()
    assert installing.startswith("installing torch==")
    assert error.startswith(f"error: {install_torch.TORCH} not installed (no route): ")
