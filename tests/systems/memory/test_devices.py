"""A memory whose rows are split over virtual devices."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT


def run(tmp_path, devices, steps):
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.systems.memory.devices", tmp_path, str(steps)],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found, devices, steps):
    assert found["devices"] == devices
    assert found["searches"] == devices  # One for the forward pass of each shard.
    assert found["split_by"] == "data"
    assert found["loss"][0] == pytest.approx(found["loss"][1], abs=1e-5)
    assert found["gradient"] < 1e-5
    assert len(found["losses"]) == 3 + steps and np.isfinite(found["losses"]).all()
    assert found["version"][1] == 3 + steps


@pytest.mark.process
def test_two_devices_take_two_hundred_steps(tmp_path):
    found = run(tmp_path, 2, 200)
    check(found, 2, 200)
    assert np.mean(found["losses"][-20:]) < found["losses"][0]
