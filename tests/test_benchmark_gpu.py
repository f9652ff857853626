"""`benchmarks.gpu` at toy sizes, on the CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.gpu import PARTS

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.process
def test_all_parts_report_and_the_last_line_is_json(tmp_path):
    out = tmp_path / "new" / "gpu.json"
    ran = run("--tiny", "--profile", f"--out={out}")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found == json.loads(out.read_text())
    assert found["seconds"].keys() == PARTS.keys()
    rows = found["rows"]
    assert {row["part"] for row in rows} == PARTS.keys()
    assert not [row for row in rows if "failed" in row]
    timed = [row for row in rows if "tokens_per_second" in row]
    assert all(row["tokens_per_second"] > 0 for row in timed)
    assert {row["contender"] for row in rows if row["part"] == "decode"} > {"torch"}
    exact = next(row for row in rows if row.get("dtype") == "float32")
    assert exact["logits_relative"] < 1e-6
    # What is written for people to read afterwards.
    assert (
        "of kernels in a step" in (out.parent / "causal_jaxgpt_kernels.txt").read_text()
    )


@pytest.mark.process
def test_a_part_that_is_none_is_refused():
    ran = run("--only=trian")
    assert ran.returncode == 2
    assert "--only knows train" in ran.stderr
