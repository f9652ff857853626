import csv
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import yaml

from jaxgpt import config as configs
from jaxgpt.commands import grid, study_plots
from jaxgpt.commands import study as studies
from jaxgpt.errors import UserError
from jaxgpt.grid import command
from jaxgpt.parallel import hardware
from jaxgpt.systems.gssm.graph_files import load_graph
from jaxgpt.systems.registry import system_class
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
    read = studies.read_study(study())
    assert read.points == [
        {"steps": "2", "eval_interval": "2", "gssm.graph_seed": seed,
         "optimizer.learning_rate": rate}
        for seed in "01" for rate in ("1e-3", "0.01")
    ]  # fmt: skip


POINTS = [{}, {"optimizer.learning_rate": 0.01}, {"seed": 7, "steps": 3}]


def finish(read, folder, point, *rows):
    """Leaves what a run of a point leaves."""
    workdir = read.workdir(folder, point)
    workdir.mkdir(exist_ok=True)
    configs.save(configs.load(read.config, read.points[point]), workdir / "config.json")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(text)
    return workdir


NODES = {
    "grid": {
        "gssm.nodes.Z1.alpha": [0.1, 1],
        "gssm.nodes.X.parents": [["Z1"], ["Z1", "Z2"]],
    },
    "x": "gssm.nodes.Z1.alpha",
    "lines": "",
}
LISTED = {"points": POINTS, "grid": None, "x": None, "lines": None}


def test_a_study_may_list_its_points(study, tmp_path):
    read = studies.read_study(study(**LISTED))
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
    read = studies.read_study(study(**LISTED))
    for point, steps in ((0, 2), (2, 3)):  # The other is not finished.
        row = {"step": steps, "val_loss": 2.0, "val_gap": 0.1 * steps}
        finish(read, tmp_path, point, row)
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
    whole = grid.Supervisor.run

    def interrupted(self, words):
        started.append(words)
        if len(started) == 3:
            self.code = 130
        return self.code or whole(self, words)

    monkeypatch.setattr(grid.Supervisor, "run", interrupted)
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
    shown = map(studies.short, ["0.05", "1e-3", "-2", "data/graphs/easy.yaml", ""])
    assert list(shown) == ["0.05", "1e-3", "-2", "easy", ""]
    shown = map(studies.short, ["[Z1, Z2]", "induction:3,0.2", "my/F.h5", "runs/mine"])
    assert list(shown) == ["Z1+Z2", "induction:3,0.2", "F", "mine"]
    read = studies.read_study(study())
    names = [read.workdir(tmp_path, point).name for point in range(2)]
    assert names == ["000-graph_seed=0-learning_rate=1e-3",
                     "001-graph_seed=0-learning_rate=0.01"]  # fmt: skip


def test_the_figure_names_the_values_tried_and_the_field_of_its_lines(
    study, tmp_path, monkeypatch
):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    read = studies.read_study(study())
    results = [p | {"val_gap": 0.5 / (i + 1)} for i, p in enumerate(read.points)]
    study_plots.plot(read, results, tmp_path / "f.png", {})
    (axes,) = drawn[0].axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1e-3", "0.01"]
    assert [t.get_text() for t in axes.texts] == ["graph_seed 0", "graph_seed 1"]
    assert axes.get_ylabel().replace("\n", " ").endswith("floor, nats per token")


def test_files_are_named_without_what_their_names_have_in_common():
    names = ["modes_slow", "modes_dead"]
    assert study_plots.common_start(names) == "modes_"
    assert (
        study_plots.common_start(["easy", "eager"])
        == study_plots.common_start([])
        == ""
    )


def test_a_run_without_its_last_evaluation_is_not_finished(study, tmp_path):
    read = studies.read_study(study())
    rows = [{"step": 0, "val_loss": 3.0, "val_gap": 1.0}, {"step": 2, "loss": 2.0}]
    finish(read, tmp_path, 0, *rows)
    assert read.last_row(tmp_path, 0) is None
    assert grid.gather(read, tmp_path) == 0
    evaluated = rows[1] | {"val_loss": 2.0, "val_gap": 0.5}
    finish(read, tmp_path, 0, rows[0], evaluated)
    assert read.last_row(tmp_path, 0) == evaluated


def test_a_column_that_is_not_there_is_named(study, tmp_path, monkeypatch, capsys):
    read = studies.read_study(study(y="val_gapp"))
    row = {"step": 2, "val_loss": 2.0, "val_gap": 0.1}

    def trained(self, words):
        for point in range(4):
            finish(read, tmp_path, point, row)
        return 0

    monkeypatch.setattr(grid.Supervisor, "run", trained)
    expected = "y must be a column: point, .*, val_gap, got 'val_gapp'"
    with pytest.raises(UserError, match=expected):
        command([f"--study={study(y='val_gapp')}", f"--workdir={tmp_path}"])
    assert "finished, without y, 'val_gapp'" in capsys.readouterr().err
    assert (tmp_path / "results.csv").read_text().count("\n") == 5


def test_a_run_of_more_steps_is_refused(study, tmp_path):
    read = studies.read_study(study())
    finish(read, tmp_path, 0, {"step": 3, "val_loss": 2.0, "val_gap": 0.1})
    with pytest.raises(UserError, match="has trained 3 steps, and the study says 2"):
        grid.gather(read, tmp_path)


def test_a_run_that_ran_out_of_patience_is_finished(study, tmp_path):
    overrides = {"steps": 100, "patience": 2}
    read = studies.read_study(study(overrides=overrides))
    for losses, finished in (([3.0, 2.0, 2.5], False), ([3.0, 2.0, 2.5, 2.1], True)):
        rows = [{"step": i, "val_loss": loss} for i, loss in enumerate(losses)]
        finish(read, tmp_path, 0, *rows)
        expected = rows[-1] if finished else None
        assert read.last_row(tmp_path, 0) == expected


def test_a_grid_may_have_fields_of_nodes_and_its_folders_short_names(study, tmp_path):
    read = studies.read_study(study(**NODES))
    names = [read.workdir(tmp_path, point).name for point in range(4)]
    assert names == [
        "000-X.parents=Z1-Z1.alpha=0.1",
        "001-X.parents=Z1-Z1.alpha=1",
        "002-X.parents=Z1+Z2-Z1.alpha=0.1",
        "003-X.parents=Z1+Z2-Z1.alpha=1",
    ]
    last = configs.load(TINY, read.points[3])
    assert {node.name: node.alpha for node in load_graph(last.gssm.graph).nodes} == {
        "Z1": 1.0, "Z2": 0.2, "X": 0.05
    }  # fmt: skip


# What such a folder was called before.
OLD_NAME = (
    "graph=_nodes_name_Z1_state_dim_4_alpha_0.3_parents_mode_slow_kernel_type_fullrank_"
    "observed_false_nam"
)


def test_long_values_are_shown_by_their_number(study, tmp_path):
    graphs = [load_graph(name).to_json() for name in ("easy", "two_chains")]
    grid_of = {"gssm.graph": ["easy", *graphs], "seed": [0, 1]}
    read = studies.read_study(study(grid=grid_of, x="gssm.graph", lines=""))
    names = [read.workdir(tmp_path, point).name for point in range(6)]
    assert names == ["000-graph=easy-seed=0", "001-graph=easy-seed=1",
                     "002-graph=v2-seed=0", "003-graph=v2-seed=1",
                     "004-graph=v3-seed=0", "005-graph=v3-seed=1"]  # fmt: skip
    before = tmp_path / f"002-{OLD_NAME}"
    before.mkdir()
    assert read.workdir(tmp_path, 2) == before


def test_a_run_of_another_config_is_not_a_points(study, tmp_path):
    read = studies.read_study(study(**NODES))
    row = {"step": 2, "val_loss": 2.0, "val_gap": 0.5}
    finish(read, tmp_path, 0, row)
    assert read.last_row(tmp_path, 0) == row
    for changes in ({"batch_size": 4}, {"gssm.nodes.Z2.alpha": 0.5}):
        overrides = SPEC["overrides"] | changes
        other = studies.read_study(study(**NODES, overrides=overrides))
        assert other.workdir(tmp_path, 0) == read.workdir(tmp_path, 0)
        assert other.last_row(tmp_path, 0) is None
    more = studies.read_study(study(**NODES, overrides=SPEC["overrides"] | {"keep": 9}))
    assert more.last_row(tmp_path, 0) == row  # It could be resumed.


@pytest.mark.parametrize("graph", ["easy", "induction:3,0.2"])
def test_a_run_keeps_its_graph_as_json(study, tmp_path, graph):
    """The run holds what the study only names."""
    made = {"gssm.graph": graph}
    read = studies.read_study(study(overrides=SPEC["overrides"] | made))
    row = {"step": 2, "val_loss": 2.0, "val_gap": 0.5}
    workdir = finish(read, tmp_path, 0, row)
    resolved = configs.load_frozen(workdir)
    system_class("gssm").resolve(resolved)
    configs.save(resolved, workdir / "config.json")
    assert read.last_row(tmp_path, 0) == row
    other = {"gssm.graph": graph.replace("easy", "two_chains").replace("0.2", "0.3")}
    read = studies.read_study(study(overrides=SPEC["overrides"] | other))
    assert read.last_row(tmp_path, 0) is None


def test_results_have_what_a_run_cost_and_its_test_figures(study, tmp_path):
    read = studies.read_study(study(test=64, y="test_kl"))
    row = {"step": 2, "tokens": 1000, "val_loss": 2.0}
    workdir = finish(read, tmp_path, 3, row)
    cost = {"parameters": 7, "flops_per_token": 42.0, "seconds": 3.5}
    (workdir / "cost.json").write_text(json.dumps(cost | {"cpu_seconds": None}))
    assert grid.gather(read, tmp_path) == 0, "not measured yet"
    words = read.test_command(tmp_path, 3)
    assert words[2:] == ["jaxgpt.evaluate", "--split=test", f"--workdir={workdir}",
                         "--step=last", "--num_sequences=64", "--json=-"]  # fmt: skip
    found = {"loss": 1.9, "perplexity": 6.7, "kl": 0.25, "tokens": 9, "step": 1}
    file = read.test_file(tmp_path, 3)
    file.write_text(json.dumps(found))
    assert grid.gather(read, tmp_path) == 0, "of another checkpoint"
    file.write_text(json.dumps(found | {"step": 2, "kl_by_position": [0.25]}))
    assert grid.gather(read, tmp_path) == 1
    with open(tmp_path / "results.csv") as stream:
        (line,) = csv.DictReader(stream)
    assert line == {
        "point": "3", "gssm.graph_seed": "1", "optimizer.learning_rate": "0.01",
        "parameters": "7", "flops_per_token": "42.0", "seconds": "3.5",
        "cpu_seconds": "", "flops": "42000.0", "step": "2", "tokens": "1000",
        "val_loss": "2.0", "test_sequences": "64", "test_loss": "1.9",
        "test_kl": "0.25",
    }  # fmt: skip


def test_x_may_be_a_size_that_runs_record(study, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    spec = {"grid": {"model.n_layer": [1, 2, 3], "seed": [0, 1]}, "lines": ""}
    read = studies.read_study(study(**spec, x="parameters", fit="power"))
    for point in range(6):
        size, factor = [10, 40, 160][point // 2], 1 + point % 2
        row = {"step": 2, "tokens": 5, "val_loss": 2.0, "val_gap": factor * size**-0.5}
        workdir = finish(read, tmp_path, point, row)
        (workdir / "cost.json").write_text(json.dumps({"parameters": size}))
    assert grid.gather(read, tmp_path) == 6
    (axes,) = drawn[0].axes
    assert list(axes.lines[0].get_xdata()) == [10, 40, 160]
    assert [t.get_text() for t in axes.texts] == ["1.41 x^−0.50\n95 %: −0.50 to −0.50"]
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["lines"][""]["exponent"] == pytest.approx(0.5)
    assert record["lines"][""]["replicates"] == 2


def test_what_cannot_be_fitted_yet_is_said(study, tmp_path, capsys):
    spec = {"grid": {"steps": [2, 4, 8]}, "x": "steps", "lines": "", "fit": "power"}
    read = studies.read_study(study(**spec))
    for point, steps in enumerate([2, 4]):
        row = {"step": steps, "val_loss": 2.0, "val_gap": 0.1}
        finish(read, tmp_path, point, row)
    assert grid.gather(read, tmp_path) == 2
    assert (
        "power: 'power' takes 3 or more values of x, got 2" in capsys.readouterr().err
    )
    assert (tmp_path / "results.png").stat().st_size > 5000


def test_a_failed_run_is_named_and_the_others_go_on(
    study, tmp_path, monkeypatch, capsys
):
    codes = iter([1, 0])
    monkeypatch.setattr(grid.Supervisor, "run", lambda self, words: next(codes))
    path = study(grid={"gssm.graph_seed": [0, 1]}, x="gssm.graph_seed", lines="")
    assert command([f"--study={path}", f"--workdir={tmp_path / 'runs'}"]) == 1
    assert "1 runs failed: 000-graph_seed=0" in capsys.readouterr().err


CHILD = """
import signal, sys, time
heard = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: heard.append(number))
write = lambda line: print(line + "\\n", end="", flush=True)  # In one piece.
write("ready")
while not heard:
    time.sleep(0.01)
time.sleep(1)  # Saves.
write(f"heard {heard}")
sys.exit(128 + heard[0])
"""


# Tests that run in the background of a shell are started with SIGINT ignored.
STUDY = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from concurrent.futures import ThreadPoolExecutor
from jaxgpt.commands import grid
with grid.Supervisor() as supervisor, ThreadPoolExecutor(1) as pool:
    code = pool.submit(supervisor.run, sys.argv[1:]).result()
sys.exit(code)
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
        assert study.stdout.readline() == f"heard [{int(number)}]\n"
        assert study.wait(timeout=60) == 128 + number


JOBS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from jaxgpt.commands import grid
words = [[sys.executable, "-c", sys.argv[1]]] * 3
with grid.Supervisor() as supervisor, ThreadPoolExecutor(2) as pool:
    print(*pool.map(supervisor.run, words), flush=True)
sys.exit(supervisor.code)
"""


@pytest.mark.process
def test_a_signal_goes_to_all_runs_and_no_more_begin():
    with subprocess.Popen(
        [sys.executable, "-c", JOBS, CHILD],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as study:  # fmt: skip
        assert [study.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        study.terminate()
        heard, said = study.communicate(timeout=60)
        assert heard.splitlines() == ["heard [15]"] * 2 + ["143 143 143"]
        assert said == "SIGTERM: ending 2 runs\n"
        assert study.returncode == 143


@pytest.mark.process
def test_runs_side_by_side_have_their_cores_and_logs(
    study, tmp_path, monkeypatch, capsys
):
    """Stand-ins for training: each says which cores it may use."""
    cores = sorted(os.sched_getaffinity(0))
    code = "import os, sys; print(sorted(os.sched_getaffinity(0))); sys.exit(3)"
    words = [sys.executable, "-c", code]
    monkeypatch.setattr(studies.Study, "train_command", lambda *_: words)
    folder = tmp_path / "runs"
    assert command([f"--study={study()}", f"--workdir={folder}", "--jobs=2"]) == 1
    logs = sorted(folder.glob("*.log"))
    assert len(logs) == 4
    used = {log.read_text() for log in logs}
    assert used <= {f"{list(part)}\n" for part in grid.shares(cores, 2)}
    said = capsys.readouterr().err
    assert f"[1/4] {logs[0].stem}: ended with exit code 3, see {logs[0]}" in said
    assert os.sched_getaffinity(0) == set(cores)


def test_cores_are_shared_out():
    assert grid.shares([2, 3, 5, 7, 8], 2) == [[2, 3], [5, 7, 8]]
    assert grid.shares([4], 1) == [[4]]
    assert grid.shares([0, 1], 3) == [[0], [1], [0]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--jobs=0"], "--jobs must be >= 1, got 0"),
        (["--jobs=2", "--gather"], "omit --point and --gather"),
        (["--jobs=2", "--point=0"], "omit --point and --gather"),
    ],
)
def test_jobs_that_cannot_be_are_refused(study, tmp_path, options, expected):
    with pytest.raises(UserError, match=expected):
        command([f"--study={study()}", f"--workdir={tmp_path}", *options])


def test_several_jobs_on_an_accelerator_are_refused(study, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(hardware, "has_accelerator", lambda: True)
    with pytest.raises(UserError, match="set JAX_PLATFORMS=cpu, or run an array job"):
        command([f"--study={study()}", f"--workdir={tmp_path}", "--jobs=2"])


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")))
def test_shipped_studies_can_be_run(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    read = studies.read_study(str(path))
    assert len({read.workdir(ROOT, i) for i in range(len(read.points))}) >= 12


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"config": "none.py"}, "no config file"),
        ({"grid": {"stepz": [1]}, "x": "stepz", "lines": ""}, "unknown config key"),
        ({"grid": {"steps": []}}, "grid.steps must be a list of values"),
        ({"grid": {"steps": 3}}, "grid.steps must be a list of values"),
        ({"x": "steps"}, "x must be a field of its grid, or .* or tokens, got 'steps'"),
        ({"lines": "steps"}, "lines must be a field of its grid, got 'steps'"),
        ({"y": None}, "y must be text, got None"),
        ({"yy": "val_gap"}, "has an unknown key 'yy'"),
        ({"points": POINTS}, "lists its points: remove 'grid'"),
        (LISTED | {"points": []}, "points must be a list, each a mapping"),
        (LISTED | {"points": ["seed"]}, "points must be a list, each a mapping"),
        (LISTED | {"points": [{"stepz": 1}]}, "unknown config key"),
        ({"overrides": {"steps": "many"}}, "steps must be an integer, got 'many'"),
        ({"fit": "line"}, "fit must be one of power, power.constant, got 'line'"),
        ({"fit": "power"}, "x must be 3 or more values to fit 'power', got 2"),
        (
            {"grid": {"seed": [0, 1, 2]}, "x": "seed", "lines": "", "fit": "power"},
            "x must be numbers above 0 to fit a power law",
        ),
        (LISTED | {"fit": "power"}, "lists its points: remove 'fit'"),
        ({"y": "test_kl"}, "y is 'test_kl', which needs test: N sequences"),
        ({"test": -1}, "test must be a number of sequences, got -1"),
        ({"test": True}, "test must be a number of sequences, got True"),
        (
            {"test": 8, "overrides": {"system": "causal"}},
            "system must be gssm with test",
        ),
        (
            NODES | {"overrides": {"gssm.nodes.Z9.alpha": 1}},
            "nodes of gssm.graph are Z1",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused(study, changes, expected):
    with pytest.raises(UserError, match=expected) as caught:
        studies.read_study(study(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1", "steps", ""])
def test_what_is_no_study_is_refused(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match="study"):
        studies.read_study(str(tmp_path / "s.yaml"))


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
