import csv
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import yaml

from jaxgpt.commands import grid
from jaxgpt.errors import UserError
from jaxgpt.grid import command
from tests.conftest import ROOT

TINY = f"{ROOT}/configs/gssm_easy.py:tiny"
SPEC = {
    "config": TINY,
    "overrides": {"steps": 2, "eval_interval": 2},
    "grid": {"gssm.graph_seed": [0, 1], "optimizer.learning_rate": ["1e-3", 0.01]},
    "x": "optimizer.learning_rate",
    "y": "val_gap",
    "lines": "gssm.graph_seed",
}


@pytest.fixture
def study(tmp_path):
    def write(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(SPEC | changes))
        return str(path)

    return write


def test_points_are_all_combinations(study):
    read = grid.read_study(study())
    assert read.points == [
        {"steps": "2", "eval_interval": "2", "gssm.graph_seed": seed,
         "optimizer.learning_rate": rate}
        for seed in "01" for rate in ("1e-3", "0.01")
    ]  # fmt: skip


POINTS = [{}, {"optimizer.learning_rate": 0.01}, {"seed": 7, "steps": 3}]
LISTED = {"points": POINTS, "grid": None, "x": None, "lines": None}


def test_a_study_may_list_its_points(study, tmp_path):
    read = grid.read_study(study(**LISTED))
    fixed = {"steps": "2", "eval_interval": "2"}
    assert read.points == [
        fixed,
        fixed | {"optimizer.learning_rate": "0.01"},
        fixed | {"seed": "7", "steps": "3"},
    ]
    names = [read.workdir(tmp_path, point).name for point in range(3)]
    assert names == ["000-unchanged", "001-learning_rate=0.01", "002-seed=7-steps=3"]


def test_listed_points_are_gathered_and_each_drawn_in_a_row(
    study, tmp_path, monkeypatch
):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    read = grid.read_study(study(**LISTED))
    for point, steps in ((0, 2), (2, 3)):  # The other is not finished.
        workdir = read.workdir(tmp_path, point)
        workdir.mkdir()
        row = {"step": steps, "val_loss": 2.0, "val_gap": 0.1 * steps}
        (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert grid.gather(read, tmp_path) == 2
    with open(tmp_path / "results.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["point"] for row in rows] == ["0", "2"]
    assert [row["seed"] for row in rows] == ["", "7"]
    assert [row["steps"] for row in rows] == ["2", "3"]
    (axes,) = drawn[0].axes
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels == ["unchanged", "seed=7-steps=3"]
    assert list(axes.lines[0].get_xdata()) == pytest.approx([0.2, 0.3])


@pytest.mark.process
def test_it_trains_what_is_missing_and_gathers(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "runs"
    options = [f"--study={study()}", f"--workdir={folder}"]
    started = []
    whole = grid.supervise

    def interrupted(words):
        started.append(words)
        return 130 if len(started) == 3 else whole(words)

    monkeypatch.setattr(grid, "supervise", interrupted)
    assert command(options) == 130
    assert "2 of 4 runs" in capsys.readouterr().err
    assert command(options) == 0
    assert len(started) == 5, "two finished runs were not started again"
    with open(folder / "results.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["point"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["optimizer.learning_rate"] for row in rows] == ["1e-3", "0.01"] * 2
    assert all(float(row["val_gap"]) > 0 and row["step"] == "2" for row in rows)
    assert (folder / "results.png").stat().st_size > 5000


def test_values_are_shown_whole_and_files_by_name(study, tmp_path):
    shown = map(grid.short, ["0.05", "1e-3", "-2", "data/graphs/easy.yaml", ""])
    assert list(shown) == ["0.05", "1e-3", "-2", "easy", ""]
    read = grid.read_study(study())
    names = [read.workdir(tmp_path, point).name for point in range(2)]
    assert names == ["000-graph_seed=0-learning_rate=1e-3",
                     "001-graph_seed=0-learning_rate=0.01"]  # fmt: skip


def test_the_figure_names_the_values_tried_and_the_field_of_its_lines(
    study, tmp_path, monkeypatch
):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    read = grid.read_study(study())
    results = [p | {"val_gap": 0.5 / (i + 1)} for i, p in enumerate(read.points)]
    grid.plot(read, results, tmp_path / "f.png")
    (axes,) = drawn[0].axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1e-3", "0.01"]
    assert [t.get_text() for t in axes.texts] == ["graph_seed 0", "graph_seed 1"]
    assert axes.get_ylabel().replace("\n", " ").endswith("floor, nats per token")


def test_files_are_named_without_what_their_names_have_in_common():
    names = ["modes_slow", "modes_dead"]
    assert grid.common_start(names) == "modes_"
    assert grid.common_start(["easy", "eager"]) == grid.common_start([]) == ""


def test_a_run_without_its_last_evaluation_is_not_finished(study, tmp_path):
    read = grid.read_study(study())
    workdir = read.workdir(tmp_path, 0)
    workdir.mkdir()
    rows = [{"step": 0, "val_loss": 3.0, "val_gap": 1.0}, {"step": 2, "loss": 2.0}]
    lines = [json.dumps(row) + "\n" for row in rows]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    assert read.last_row(tmp_path, 0) is None
    assert grid.gather(read, tmp_path) == 0
    evaluated = rows[1] | {"val_loss": 2.0, "val_gap": 0.5}
    (workdir / "metrics.jsonl").write_text(lines[0] + json.dumps(evaluated) + "\n")
    assert read.last_row(tmp_path, 0) == evaluated


def test_a_run_that_ran_out_of_patience_is_finished(study, tmp_path):
    overrides = {"steps": 100, "patience": 2}
    read = grid.read_study(study(overrides=overrides))
    workdir = read.workdir(tmp_path, 0)
    workdir.mkdir()
    for losses, finished in (([3.0, 2.0, 2.5], False), ([3.0, 2.0, 2.5, 2.1], True)):
        rows = [{"step": i, "val_loss": loss} for i, loss in enumerate(losses)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (workdir / "metrics.jsonl").write_text(text)
        expected = rows[-1] if finished else None
        assert read.last_row(tmp_path, 0) == expected


def test_a_failed_run_is_named_and_the_others_go_on(
    study, tmp_path, monkeypatch, capsys
):
    codes = iter([1, 0])
    monkeypatch.setattr(grid, "supervise", lambda words: next(codes))
    path = study(grid={"gssm.graph_seed": [0, 1]}, x="gssm.graph_seed", lines="")
    assert command([f"--study={path}", f"--workdir={tmp_path / 'runs'}"]) == 1
    assert "1 runs failed: 000-graph_seed=0" in capsys.readouterr().err


CHILD = """
import signal, sys, time
heard = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: heard.append(number))
print("ready", flush=True)
while not heard:
    time.sleep(0.01)
time.sleep(1)  # Saves.
print("heard", *heard, flush=True)
sys.exit(128 + heard[0])
"""


# Tests that run in the background of a shell are started with SIGINT ignored.
STUDY = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxgpt.commands import grid
sys.exit(grid.supervise(sys.argv[1:]))
"""


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_once_and_the_run_is_waited_for(number):
    """It is sent to the whole group, as a terminal does at Ctrl-C."""
    with subprocess.Popen(
        [sys.executable, "-c", STUDY, sys.executable, "-c", CHILD],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as study:  # fmt: skip
        assert study.stdout.readline() == "ready\n"
        os.killpg(study.pid, number)
        assert study.stdout.readline() == f"heard {int(number)}\n"
        assert study.wait(timeout=60) == 128 + number


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")))
def test_shipped_studies_can_be_run(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    read = grid.read_study(str(path))
    assert len({read.workdir(ROOT, i) for i in range(len(read.points))}) >= 12


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"config": "none.py"}, "no config file"),
        ({"grid": {"stepz": [1]}, "x": "stepz", "lines": ""}, "unknown config key"),
        ({"grid": {"steps": []}}, "grid.steps must be a list of values"),
        ({"grid": {"steps": 3}}, "grid.steps must be a list of values"),
        ({"x": "steps"}, "x must be a field of its grid, got 'steps'"),
        ({"lines": "steps"}, "lines must be a field of its grid, got 'steps'"),
        ({"y": None}, "y must be text, got None"),
        ({"yy": "val_gap"}, "has an unknown key 'yy'"),
        ({"points": POINTS}, "lists its points: remove 'grid'"),
        (LISTED | {"points": []}, "points must be a list, each a mapping"),
        (LISTED | {"points": ["seed"]}, "points must be a list, each a mapping"),
        (LISTED | {"points": [{"stepz": 1}]}, "unknown config key"),
        ({"overrides": {"steps": "many"}}, "steps must be an integer, got 'many'"),
    ],
)
def test_a_study_that_cannot_be_is_refused(study, changes, expected):
    with pytest.raises(UserError, match=expected) as caught:
        grid.read_study(study(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1", "steps", ""])
def test_what_is_no_study_is_refused(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match="study"):
        grid.read_study(str(tmp_path / "s.yaml"))


def test_a_point_outside_the_study_is_refused(study, tmp_path):
    with pytest.raises(UserError, match=r"--point must be in \[0, 3\], got 4"):
        command([f"--study={study()}", f"--workdir={tmp_path}", "--point=4"])


@pytest.mark.process
def test_the_array_job_runs_every_point(study, tmp_path):
    output, folder = tmp_path / "job.sbatch", tmp_path / "my runs"
    done = subprocess.run(
        [sys.executable, "scripts/slurm_array.py", f"--study={study()}",
         f"--output={output}", f"--workdir={folder}", "--most=2", "--gpus=1"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    assert "#SBATCH --array=0-3%2\n" in text
    assert "#SBATCH --gpus-per-task=1\n" in text
    assert "#SBATCH --signal=TERM@" in text
    assert subprocess.run(["bash", "-n", output]).returncode == 0
    # A task, with stand-ins for Slurm's commands that record what they are asked.
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, code in (("srun", 143), ("scontrol", 0)):
        tool = tools / name
        tool.write_text(
            f'#!/bin/bash\nprintf "%s\\n" {name} "$@" >> log\nexit {code}\n'
        )
        tool.chmod(0o755)
    variables = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "77"}
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", output], cwd=tmp_path, env=path | variables)
    assert done.returncode == 143
    asked = (tmp_path / "log").read_text().splitlines()
    assert asked[1:4] == [sys.executable, "-m", "jaxgpt.grid"]
    assert asked[4:7] == [f"--study={tmp_path / 'study.yaml'}",
                          f"--workdir={folder}", "--point=3"]  # fmt: skip
    assert asked[7:] == ["scontrol", "requeue", "77_3"]


def test_a_point_replaces_the_process_by_its_run(study, tmp_path, monkeypatch):
    def exec_instead(path, words):
        raise InterruptedError(json.dumps(words))

    monkeypatch.setattr(os, "execv", exec_instead)
    with pytest.raises(InterruptedError) as caught:
        command([f"--study={study()}", f"--workdir={tmp_path}", "--point=2"])
    words = json.loads(str(caught.value))
    assert words[1:3] == ["-m", "jaxgpt.train"]
    assert "--config.gssm.graph_seed=1" in words
    assert re.search(r"002-graph_seed=1-learning_rate=1e-3", " ".join(words))
