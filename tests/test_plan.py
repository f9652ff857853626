import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from jaxgpt import config as configs
from jaxgpt.commands import plan
from jaxgpt.plan import ENVIRONMENT

ROOT = pathlib.Path(__file__).parents[1]
LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="needs the extra plan")


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jaxgpt.plan", *arguments],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.process
@needs_libtpu
def test_a_step_is_compiled_for_a_slice():
    small = ["--config=configs/sigma_text.py:tiny", "--config.mesh.fsdp=4"]
    small += ["--config.model.block_size=128", "--config.model.scan_layers=true"]
    ran = run(*small, "--topology=v5e:2x2", "--json=-")
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["chips"] == 4
    assert found["fits"]
    # Forward, and its gradients: the scores stay within the kernel.
    assert found["attention_kernels"] >= 2
    assert found["collectives"]["all-gather"]["bytes"] > 0
    parameters, per_chip = found["parameters"], found["memory_per_chip"]
    assert per_chip["parameters"] == pytest.approx(4 * parameters / 4, rel=0.02)
    assert per_chip["optimizer"] == pytest.approx(8 * parameters / 4, rel=0.02)
    assert 0 < found["mfu_without_overlap"] <= found["mfu"] <= 1


@pytest.mark.process
@needs_libtpu
def test_a_slice_gathers_nothing_at_every_token_of_an_lstm():
    """At most each array for either pass, however many tokens there are."""
    small = ["--config=configs/gssm_easy.py", "--config.model.mixer=lstm"]
    small += ["--config.model.positions=learned", "--config.mesh.fsdp=4"]
    ran = run(*small, "--topology=v5e:2x2", "--json=-")
    assert ran.returncode == 0, ran.stderr
    gathers = json.loads(ran.stdout.splitlines()[-1])["collectives"]["all-gather"]
    assert 0 < gathers["count"] < 40  # Of 64 tokens and two layers, twice.


@pytest.mark.process
@pytest.mark.parametrize("name", ["v5e", "v9z:2x2", "v5litepod-8", "v5e:0x", "h100:9"])
def test_an_unknown_topology_is_one_line(name):
    ran = run("--config=configs/sigma_text.py:tiny", f"--topology={name}")
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"error: unknown --topology='{name}': there are")
    assert ran.stderr.count("\n") == 1


@pytest.mark.process
def test_gpus_are_planned_for_without_one():
    small = ["--config=configs/sigma_text.py:tiny", "--config.mesh.fsdp=4"]
    ran = run(*small, "--topology=h100:4", "--json=-")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["chips"] == 4 and found["fits"]
    assert found["collectives"]["all-gather"]["bytes"] > 0
    parameters, each = found["parameters"], found["memory_per_chip"]
    assert each["parameters"] == pytest.approx(4 * parameters / 4, rel=0.02)
    assert each["gradients"] == each["parameters"]
    assert each["total"] == sum(v for name, v in each.items() if name != "total")


def test_the_end_of_gap_token_has_a_row_of_the_table():
    changes = {"sigma.infill_share": 0.5, "sigma.max_gap": 0}
    config = configs.load("configs/sigma_char.py:tiny", changes)
    without = plan.plan(config, "h100:1")["parameters"]
    changes["sigma.max_gap"] = 3
    config = configs.load("configs/sigma_char.py:tiny", changes)
    found = plan.plan(config, "h100:1")["parameters"]
    assert found == without + config.model.n_embd


@pytest.mark.parametrize(("rows", "measured"), [(8, 5.6), (16, 9.4), (32, 17.0)])
def test_what_a_gpu_keeps_is_estimated_near_what_was_measured(rows, measured):
    """GPT-2 124M in bfloat16 on an H100: docs/speed.md has gigabytes of the program."""
    changes = {"system": "causal", "model.block_size": 1024, "model.remat": "none"}
    changes |= {"batch_size": rows, "accumulation": 1, "model.dtype": "bfloat16"}
    config = configs.load("configs/sigma_text.py", changes)
    state = 16 * 124_373_760  # Parameters, gradients and moments.
    found = (state + plan.kept_bytes(config, 1)) / 1e9
    assert measured < found < 1.15 * measured
    configs.override(config, {"model.remat": "full", "model.loss_chunk": 128})
    assert plan.kept_bytes(config, 1) < 0.25 * (found * 1e9 - state)


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(configs.UserError, match=r"pip install 'jaxgpt\[plan\]'"):
        plan.open_topology("v5e:2x2")


def test_roofline_of_gpt2():
    config = configs.load("configs/sigma_text.py", {})
    chip = plan.CHIPS["v5e"]
    parameters = 123_587_328 + 1025 * 384
    held = {"parameters": 4 * parameters, "optimizer": 8 * parameters}
    compiled = {
        "parameters": parameters,
        "memory_per_chip": held,
        "optimizer_flops_per_chip": 0,
    }
    found = plan.roofline(config, chip, 16, compiled, 1e9)
    per_token = 6 * 123_587_328 + 12 * 12 * 768 * 1025
    assert found["flops_per_token"] == per_token
    assert found["tokens_per_step"] == 512 * 1024
    compute = per_token * 512 * 1024 / 16 / 197e12
    assert found["compute_seconds"] == pytest.approx(compute)
    assert found["links_seconds"] == pytest.approx(1e9 / 200e9)
    # Muon's products take time, but are not counted as useful.
    with_muon = compiled | {"optimizer_flops_per_chip": per_token * 512 * 1024 / 16}
    slower = plan.roofline(config, chip, 16, with_muon, 1e9)
    assert slower["compute_seconds"] == pytest.approx(2 * compute)
    assert slower["mfu"] == pytest.approx(found["mfu"] / 2)


def test_advice_names_the_setting_that_helps():
    config = configs.load("configs/sigma_text.py:tiny", {"model.remat": "none"})
    held = {"parameters": 2.0, "optimizer": 4.0, "activations": 1.0}
    assert "mesh.fsdp=4" in plan.advice(config, 4, held)
    held["activations"] = 9.0
    assert "model.remat=full" in plan.advice(config, 4, held)
    configs.override(config, {"model.remat": "full"})
    assert "accumulation=2" in plan.advice(config, 4, held)
