"""Every task: what it draws, what its judge says, what it shows and refuses."""

import gzip
import os
import re
import string
import struct

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

from jaxgpt import config as configs
from jaxgpt import evaluate, sample
from jaxgpt.commands.train import train
from jaxgpt.errors import UserError
from jaxgpt.run import open_run
from jaxgpt.systems.sigma.tasks import dataset, maze, programs
from jaxgpt.systems.sigma.tasks.system import TASKS, SigmaTask, make_task
from jaxgpt.training import metrics
from tests.conftest import ROOT, last_json
from tests.systems.sigma import tables
from tests.systems.sigma.test_samplers import draw_texts, exact_burst

pytestmark = pytest.mark.unoptimised

CONFIG = str(ROOT / "configs" / "sigma_task.py")
FROM_FILES = ("mnist", "file")
DRAWN = [name for name in TASKS if name not in FROM_FILES]
# Tasks that cannot tell a wrong sequence from a right one by one token.
LENIENT = ("product",)
# Small ones ask for too little to tell noise from a guess.
LONGER = {"stack": {"length": 12}, "guessop": {"length": 8}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda f, *a, **k: (saved.append(f), save(f, *a, **k))
    )
    return saved


def make(variant, **changes):
    changes = {f"task.{key}": str(value) for key, value in changes.items()}
    return make_task(configs.load(f"{CONFIG}:{variant}-tiny", changes))


def draw(task, count=200, seed=0):
    return task.sample(np.random.default_rng(seed), count)


@pytest.mark.parametrize("name", DRAWN)
def test_a_task_is_a_function_of_its_seed_and_passes_its_own_judge(name):
    task = make(name)
    tokens, known = draw(task)
    assert tokens.shape == known.shape == (200, task.length)
    assert tokens.min() >= 0 and tokens.max() < task.vocab_size
    again, _ = draw(task)
    other, _ = draw(task, seed=1)
    np.testing.assert_array_equal(tokens, again)
    assert (tokens != other).any(1).mean() > 0.5
    assert (~known).any(1).mean() > 0.5
    verdict = task.judge(tokens, tokens, known)
    assert verdict["accuracy"].mean() > (0.98 if name in LENIENT else 0.999)
    assert all(len(values) == 200 for values in verdict.values())
    assert len(task.text(tokens[0])) > 0


@pytest.mark.parametrize("name", sorted(set(DRAWN) - {*LENIENT, "vertical"}))
def test_a_judge_sees_what_is_asked_for_replaced_by_noise(name):
    task = make(name, **LONGER.get(name, {}))
    tokens, known = draw(task)
    rng = np.random.default_rng(1)
    noise = np.where(known, tokens, rng.integers(0, task.vocab_size, tokens.shape))
    many = (~known).sum(1) >= 4
    assert task.judge(noise, tokens, known)["accuracy"][many].mean() < 0.1


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("count", [1, 6, 16])
def test_no_text_of_a_picture_is_over_another_or_cut_off(
    name, count, tmp_path, figures
):
    task = make(name)
    tokens, known = draw(task, count)
    wrong = tokens.copy()
    wrong[3:] = np.where(known[3:], tokens[3:], tokens[3:][:, ::-1])
    task.plot(tmp_path / "p.png", wrong, tokens, known)
    (figure,) = figures
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
    for each in figure.axes:  # Ticks outside the axes are there, and not drawn.
        for axis in (each.xaxis, each.yaxis):
            low, high = axis.get_view_interval()
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high:
                    texts = [t for t in texts if t not in (tick.label1, tick.label2)]
    assert f"{name}: {task.shows}" in {t.get_text() for t in texts}
    boxes = np.array([t.get_window_extent().extents for t in texts])
    width, height = figure.get_size_inches() * figure.dpi
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    # Boxes are as high as a font's tallest letters: lines may come near each other.
    over = (np.minimum(high, boxes[:, 2:]) - np.maximum(low, boxes[:, :2])) > (1, 3)
    assert not np.triu(over.all(2), 1).any()


def test_cells_of_a_maze_are_drawn_24_pixels_wide(tmp_path, figures):
    task = make("maze")
    tokens, known = draw(task, 1)
    task.plot(tmp_path / "p.png", tokens, tokens, known)
    image = (matplotlib.image.imread(tmp_path / "p.png") * 255).round().astype(int)
    blue = (image[..., :3] == maze.BLUE).all(2)
    # Lines between cells are darker; in the legend is a square of about 10 pixels.
    path = (tokens[0, 63:] == maze.PATH).sum()
    assert blue.sum() == pytest.approx(path * 23**2 + 10**2, abs=60)


# What the tasks are.


def test_a_maze_has_its_walls_a_shortest_path_and_no_closed_off_cell():
    task = make("maze")
    tokens, known = draw(task, 300)
    grids, drawn = task.grids(tokens)
    np.testing.assert_array_equal(known[0], np.arange(task.length) < 63)
    goal = (grids == maze.GOAL).reshape(300, -1).argmax(1)
    start = (grids == maze.START).reshape(300, -1).argmax(1)
    dist = maze.distances((grids == maze.WALL).astype(np.uint8), goal)
    assert (dist.max((1, 2), where=grids != maze.WALL, initial=0) < maze.FAR).all()
    steps = dist.reshape(300, -1)[np.arange(300), start]
    np.testing.assert_array_equal((drawn == maze.PATH).sum((1, 2)), steps - 1)
    rows, columns = np.divmod(np.stack([start, goal]), 9)
    assert (abs(np.diff(rows, axis=0)) + abs(np.diff(columns, axis=0)) >= 4).all()


def test_a_detour_is_valid_but_not_optimal_and_a_gap_is_neither():
    task = make("maze", walls=0, min_distance=4)
    grid = np.zeros((7, 9), int)
    grid[[0, -1]] = grid[:, [0, -1]] = maze.WALL
    grid[1, 1], grid[1, 5] = maze.START, maze.GOAL
    paths = {"straight": grid.copy(), "detour": grid.copy(), "gap": grid.copy()}
    paths["straight"][1, 2:5] = maze.PATH
    paths["detour"][[2, 2, 2, 2, 2], [1, 2, 3, 4, 5]] = maze.PATH
    paths["gap"][1, [2, 4]] = maze.PATH
    tokens = np.array([np.r_[grid.ravel(), p.ravel()] for p in paths.values()])
    reference = np.repeat(tokens[:1], 3, 0)
    verdict = task.judge(tokens, reference, tokens < 0)
    assert verdict["accuracy"].tolist() == [True, True, False]
    assert verdict["optimal"].tolist() == [True, False, False]


def test_a_program_is_judged_by_what_it_does():
    task = make("rpl")
    stacks = [[1, 2, 3]] * 5
    right, other = ["del"], ["dup", "del", "del"]
    results = [programs.run(right, stack) for stack in stacks]
    rows = [task.encode(stacks, results, p) for p in (right, other, ["dup"])]
    tokens = np.array(rows)
    verdict = task.judge(tokens, np.repeat(tokens[:1], 3, 0), tokens < 0)
    assert verdict["accuracy"].tolist() == [True, True, False]


def test_programs_are_no_longer_than_task_length():
    task = make("rpl", length=3)
    programs_ = [task.text(row).split("<prg>")[1] for row in draw(task, 100)[0]]
    sizes = [len(p.split("<end>")[0].split()) for p in programs_]
    assert set(sizes) == {1, 2, 3}


def test_an_operator_is_guessed_from_what_it_did():
    tokens, known = draw(make("guessop", digits=4, length=5))
    shown, did, source, does = np.split(tokens, [5, 11, 16], 1)
    index = (shown[:, None, :4] == did[:, :5, None]).argmax(2)
    np.testing.assert_array_equal(np.take_along_axis(source, index, 1), does)
    np.testing.assert_array_equal(known[0], np.arange(21) < 16)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_operator_has_a_number_and_does_the_same_every_time(seed):
    task, rng = make("learnop"), np.random.default_rng(seed)
    number, source, does = np.split(task.sample(rng, 300)[0], [2, 9], 1)
    index = (source[:, None, :6] == does[:, :, None]).argmax(2)
    maps = task.constants().integers(0, 6, (10, 9))
    np.testing.assert_array_equal(index, maps[number[:, 0]])


@pytest.mark.parametrize(
    ("program", "before", "after"),
    [
        (["add"], [1, 2, 3], [1, 5]),
        (["swp"], [1, 2], [2, 1]),
        (["rep"], [4, 3], [4, 4, 4]),
        (["max", "min"], [1, 5, 3], [1]),
        (["dup", "del", "del"], [7], []),
        (["add", "dup"], [], []),
    ],
)
def test_what_a_program_does(program, before, after):
    assert programs.run(program, before) == after


def test_expressions_are_worth_what_python_says():
    task = make("expr", length=30)
    for row in draw(task, 100)[0]:
        program, _, results = task.text(row).partition(" ")
        names: dict = {}
        exec(program, {}, names)
        pairs = [p.split(":") for p in results.rstrip("#").rstrip(";").split(";")]
        assert {k: int(v) for k, v in pairs} == names


def test_expressions_have_as_many_variables_and_as_large_numbers_as_asked_for():
    changes = {"largest_number": 20, "largest_result": 300, "variables": 7}
    task = make("expr", length=30, **changes)
    texts = [task.text(row) for row in draw(task, 300)[0]]
    numbers = [int(n) for text in texts for n in re.findall(r"\d+", text.split()[0])]
    values = [int(n) for text in texts for n in re.findall(r":(\d+)", text)]
    assert max(numbers) == 20 and 100 < max(values) <= 300
    assert set("".join(texts)) & set(string.ascii_uppercase) == set("ABCDEFG")


def test_programs_are_shown_on_as_many_stacks_as_asked_for():
    task = make("rpl", length=3, runs=2, inputs=4, largest_number=1)
    tokens, known = draw(task, 100)
    for row in tokens:
        given = task.text(row).partition("<prg>")[0].split("<in>")[1:]
        stacks = [pair.partition("<out>")[0].split() for pair in given]
        assert [len(stack) for stack in stacks] == [4, 4]
        assert all(set(stack) <= {"0", "1"} for stack in stacks)
    assert task.judge(tokens, tokens, known)["accuracy"].all()


@pytest.mark.parametrize("stacks", [1, 4])
def test_numbers_that_training_never_shows(stacks):
    task = make("stack", length=8, digits=2, stacks=stacks, unseen=True)
    seen = {}
    for split in ("train", "val"):
        tokens, _ = draw(task.for_split(split), 300)
        steps = tokens.reshape(300, 8, 3)
        assert steps[..., 0].max() == 2 * stacks - 1
        seen[split] = {tuple(number) for number in steps[..., 1:].reshape(-1, 2)}
    assert len(seen["train"]) == 75 and len(seen["val"]) == 25
    assert not seen["train"] & seen["val"]


def test_properties_that_training_never_asks_for():
    task = make("picoclvr", colors=4, unseen=True)
    for split in ("train", "val"):
        tokens, known = draw(task.for_split(split), 300)
        assert len(tokens) > 50 and task.judge(tokens, tokens, known)["accuracy"].all()
        properties = tokens[:, : task.prompt_length].reshape(-1, 3)
        for words in map(task.property_text, properties[properties[:, 0] > 0]):
            held_out = "green" in words and ("left" in words or "right" in words)
            assert held_out == (split == "val")


def test_splits_differ_where_training_may_not_show_all():
    changes = {"task.unseen": "true", "task.train_sequences": "300"}
    config = configs.load(f"{CONFIG}:stack-tiny", changes)
    data = dataset.open_data(make_task(config), config)
    pushed = {}
    for split, rows in data.splits.items():
        tokens, _ = dataset.unmark(rows.astype(np.int32))
        pushed[split] = set(tokens.reshape(-1, 2)[:, 1])
    assert pushed["train"] and pushed["val"]
    assert not pushed["train"] & pushed["val"]


def test_popped_numbers_are_those_that_were_pushed():
    task = make("stack", length=20, digits=2)
    tokens, known = draw(task, 50)
    for row, given in zip(tokens, known, strict=True):
        stacks: dict = {}
        for step, told in zip(row.reshape(20, 3), given.reshape(20, 3), strict=True):
            pile = stacks.setdefault(step[0] // 2, [])
            if step[0] % 2:
                assert not told[1:].any() and told[0]
                assert pile.pop() == step[1:].tolist()
            else:
                assert told.all()
                pile.append(step[1:].tolist())


def test_statements_are_true_of_the_grid_half_of_the_time():
    task = make("grid", height=3, width=5, colors=4, length=6)
    tokens, known = draw(task)
    assert known.sum(1).tolist() == [task.length - 6] * 200
    answers = []
    for row in tokens:
        cells, statements = task.parts(row)
        where = {cell: divmod(n, 5) for n, cell in enumerate(cells) if cell != "."}
        assert 2 <= len(where) == 15 - cells.count(".") <= 4
        for a, relation, b, answer in statements:
            (ra, ca), (rb, cb) = where[a], where[b]
            holds = {
                "above": ra < rb, "below": ra > rb, "left_of": ca < cb,
                "right_of": ca > cb,
            }  # fmt: skip
            answers.append(answer == "true")
            assert holds[relation] == answers[-1]
    assert np.mean(answers) == pytest.approx(0.5, abs=0.05)


def test_weights_are_those_of_the_network_that_labelled_the_points():
    task = make("qmlp", length=20, hidden=3)
    tokens, known = draw(task, 50)
    np.testing.assert_array_equal(known[0], np.arange(33) < 20)
    for row in tokens:
        words = task.text(row).split()
        *weights, bias = map(float, words[20:])
        units = np.reshape(weights, (3, 4))
        assert units.tolist() == sorted(units.tolist())
        for word in words[:20]:
            x, y = map(float, word[1:-2].split(","))
            hidden = np.maximum(0, units[:, :3] @ [x, y, 1])
            output = hidden @ units[:, 3] + bias
            assert abs(output) < 1e-9 or (output > 0) == (word[-1] == "+")
    worse = tokens.copy()
    worse[:, -1] = np.roll(worse[:, -1], 1)
    verdict = task.judge(worse, tokens, known)
    same = worse[:, -1] == tokens[:, -1]
    assert (verdict["agreement"][same] == 1).all() and not verdict["accuracy"].all()
    worse[:, -1] = task.codes["(0,0)+"]
    assert not task.judge(worse, tokens, known)["agreement"].any()


def test_flights_are_smooth_and_go_where_they_are_cleared():
    task = make("vertical", length=300)
    tokens, known = draw(task, 100)
    cleared, flown = tokens[:, 1:301], tokens[:, 301:]
    assert abs(np.diff(flown)).max() <= 5
    settled = (cleared[:, :-60] == cleared[:, 60:]) & (
        cleared[:, 1:-59] == cleared[:, 60:]
    )
    near = abs(flown[:, 60:] - cleared[:, 60:]) <= abs(flown[:, :-60] - cleared[:, 60:])
    assert near[settled].mean() > 0.9
    shifted = tokens.copy()
    shifted[:, 301:] = np.minimum(flown + 8, 449)
    jumping = tokens.copy()
    jumping[:, 350] += 9
    assert task.judge(shifted, tokens, known)["accuracy"].mean() < 0.05
    assert task.judge(jumping, tokens, known)["continuous"].mean() < 0.05


@pytest.mark.parametrize("name", ["product", "step"])
def test_exact_burst_has_the_law_of_shuffled_generation(name):
    """Two samples of 20,000 sequences of the law's own table, chi-square."""
    task = make(name, length=8, step_length=3, probability=0.2)
    tokens, _ = draw(task, 200_000)
    law = np.bincount(tokens @ 2 ** np.arange(8)[::-1], minlength=256)
    model = tables.joint(law.reshape((2,) * 8))
    known = np.zeros((100, 8), bool)
    counts = []
    for advance in (exact_burst, None):
        arguments = [advance] if advance else [tables_autoregress()]
        texts, calls, _ = draw_texts(model, *arguments, 200, known)
        codes = texts.reshape(-1, 8) @ 2 ** np.arange(8)[::-1]
        counts.append(np.bincount(codes, minlength=256))
        if advance:
            assert calls.mean() <= (2.2 if name == "product" else 5)
    often = sum(counts) >= 10
    table = np.stack([np.append(c[often], c[~often].sum()) for c in counts])
    table = table[:, table.sum(0) > 0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def tables_autoregress():
    from jaxgpt.sampling.autoregressive import autoregress

    return autoregress


# Data.


def test_splits_have_no_sequence_in_common_and_are_kept(tmp_path):
    config = configs.load(f"{CONFIG}:twotargets-tiny", {})
    data = dataset.open_data(make_task(config), config)
    rows = [{r.tobytes() for r in data.eval_windows(s, 15)} for s in ("train", "val")]
    assert [len(r) for r in rows] == [500, 100]
    assert not rows[0] & rows[1]
    files = list((tmp_path / "cache" / "tasks").rglob("*.npy"))
    times = [f.stat().st_mtime_ns for f in files]
    dataset.open_data(make_task(config), config)
    assert [f.stat().st_mtime_ns for f in files] == times


def test_damaged_sequences_are_sampled_again(tmp_path, capsys):
    config = configs.load(f"{CONFIG}:twotargets-tiny", {})
    first = dataset.open_data(make_task(config), config).eval_windows("val", 15)
    (file,) = (tmp_path / "cache" / "tasks").rglob("val.npy")
    content = file.read_bytes()
    for damaged in (content[:-8], content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(damaged)
        again = dataset.open_data(make_task(config), config).eval_windows("val", 15)
        np.testing.assert_array_equal(again, first)
        assert "is damaged: making it again" in capsys.readouterr().err


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path):
    files = [tmp_path / "train.txt", tmp_path / "val.txt"]
    for file in files:
        file.write_text("abc cba\n" * 9)
    changes = {"task.path": ",".join(map(str, files)), "task.train_sequences": "9"}
    config = configs.load(f"{CONFIG}:file-tiny", changes | {"task.val_sequences": "9"})
    opened = lambda: dataset.open_data(make_task(config), config)
    before = opened().eval_windows("train", 4)
    stamp = files[0].stat()
    files[0].write_text("cba abc\n" * 9)
    os.utime(files[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (opened().eval_windows("train", 4) != before).any()


def test_a_small_split_leaves_the_other_all_that_it_does_not_keep():
    # 81 different ones: 9 beginnings, and what a row or a column makes of each.
    config = configs.load(
        f"{CONFIG}:mixing-tiny",
        {"task.height": "3", "task.width": "3", "task.length": "2"}
        | {"task.train_sequences": "71", "task.val_sequences": "10"},
    )
    splits = dataset.open_data(make_task(config), config).splits
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 71,
        "val": 10,
    }


def test_more_than_there_are_is_refused():
    config = configs.load(
        f"{CONFIG}:maze-tiny",
        {"task.height": "3", "task.width": "5", "task.walls": "0"}
        | {"task.min_distance": "2", "task.train_sequences": "100"},
    )
    with pytest.raises(UserError, match="are too many: only about"):
        dataset.open_data(make_task(config), config)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("maze", {"name": "labyrinth"}, "task.name must be one of maze, product"),
        ("maze", {"height": 8}, "task.height of maze must be odd and >= 3, got 8"),
        (
            "maze",
            {"min_distance": 40},
            "min_distance of maze must be <= 10 in 7 x 9 cells",
        ),
        ("learnop", {"digits": 5}, "task.digits of learnop must be <= 4, got 5"),
        ("rpl", {"length": 13}, "task.length of rpl must be <= 12, got 13"),
        ("guessop", {"digits": 11}, "digits of guessop must be from 2 to 10, got 11"),
        ("maze", {"walls": 50}, "task.walls of maze must be <= 6 in 7 x 9 cells"),
        ("step", {"step_length": 99}, "step_length of step must be <= task.length"),
        ("product", {"probability": 1}, "must be between 0 and 1"),
        ("addition", {"digits": 19}, "must be <= 18, got 19"),
        ("twotargets", {"length": 5}, "must be >= 8, got 5"),
        ("memory", {"length": 9}, "must be >= 16, got 9"),
        ("picoclvr", {"colors": 40}, "must be from 2 to 9, got 40"),
        (
            "picoclvr",
            {"colors": 2, "length": 19},
            "task.length of picoclvr must be <= 18",
        ),
        ("greed", {"walls": 14}, "task.walls of greed must be <= 6 on a grid of 3 x 3"),
        ("maze", {"unseen": True}, "task.unseen of maze must be false, got True"),
        ("stack", {"digits": 5, "unseen": True}, "must be <= 4 with task.unseen"),
        ("expr", {"largest_result": 5}, "must be <= task.largest_result 5, got 9"),
        ("rpl", {"inputs": 7}, "task.inputs of rpl must be <= 6, got 7"),
        ("rpl", {"largest_number": 40}, "must be <= 39, got 40"),
        ("grid", {"colors": 10}, "task.colors of grid must be from 1 to 9, got 10"),
        ("qmlp", {"hidden": 65}, "task.hidden must be <= 64, got 65"),
        ("file", {"path": "a.txt"}, "must be the names of two texts"),
        ("file", {"path": "no1,no2"}, "'no1' cannot be read"),
        ("mnist", {}, "must be a folder with train-images-idx3-ubyte"),
    ],
)
def test_what_cannot_be_is_refused(name, changes, expected):
    with pytest.raises(UserError, match=expected):
        make(name, **changes)


def test_recorded_flights_are_read(tmp_path):
    path = tmp_path / "flights.csv"
    lines = ["FLIGHT_ID,AIRCRAFT_TYPE,CFL,TRACK_ALTITUDE"]
    lines += [f"f{i},A{i % 3},{100 + i},{90 + i}.4" for i in range(20) for _ in "ab"]
    path.write_text("\n".join(lines))
    config = configs.load(
        f"{CONFIG}:vertical-tiny", {"task.path": str(path), "task.length": "3"}
    )
    data = dataset.open_data(make_task(config), config)
    tokens, known = dataset.unmark(data.eval_windows("val", 7))
    assert tokens.tolist() == [
        [450, 118, 118, 579, 108, 108, 579],
        [451, 119, 119, 579, 109, 109, 579],
    ]
    assert known[0].tolist() == [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FLIGHT_ID,CFL,TRACK_ALTITUDE\n", "has no column AIRCRAFT_TYPE"),
        (
            "FLIGHT_ID,AIRCRAFT_TYPE,CFL,TRACK_ALTITUDE\n1,A,450,3\n",
            "line 2: CFL must be a flight level, 0 .. 449, got '450'",
        ),
        (
            "FLIGHT_ID,AIRCRAFT_TYPE,CFL,TRACK_ALTITUDE\n1,A,4,x\n",
            "line 2: TRACK_ALTITUDE must be a flight level",
        ),
        ("FLIGHT_ID,AIRCRAFT_TYPE,CFL,TRACK_ALTITUDE\n", "at least 2 flights, not 0"),
    ],
)
def test_a_csv_file_that_cannot_be_used(tmp_path, text, expected):
    (tmp_path / "f.csv").write_text(text)
    task = make("vertical", path=tmp_path / "f.csv")
    with pytest.raises(UserError, match=expected):
        task.read_split("train")


def test_a_missing_file_is_named():
    config = configs.load(f"{CONFIG}:vertical-tiny", {"task.path": "no.csv"})
    with pytest.raises(UserError, match="No such file"):
        dataset.open_data(make_task(config), config)


def write_idx(path, values):
    header = struct.pack(f">{1 + values.ndim}i", 0x800 + values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype("u1").tobytes()))


def test_images_are_read_from_idx_files(tmp_path):
    for name, count in (("train-images-idx3-ubyte", 3), ("t10k-images-idx3-ubyte", 2)):
        pixels = np.arange(count * 784).reshape(count, 28, 28) % 256
        write_idx(tmp_path / f"{name}.gz", pixels)
    task = make("mnist", path=tmp_path, class_conditional=False)
    tokens = task.read_split("val")
    known = task.prompt_mask(tokens)
    assert tokens.shape == (2, 784) and tokens.max() == 15 and not known.any()
    with pytest.raises(UserError, match="with train-labels-idx1-ubyte"):
        make("mnist", path=tmp_path)
    whole = gzip.decompress((tmp_path / f"{name}.gz").read_bytes())
    for content, expected in (
        (whole[:-5], "is truncated: its header says 2 images"),
        (whole[:9], "is not an IDX file"),
        (b"\0" * 20, "is not an IDX file of images"),
    ):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        with pytest.raises(UserError, match=expected):
            make("mnist", path=tmp_path, class_conditional=False)


@pytest.fixture
def digits(tmp_path):
    """A folder of images of 4 x 6 whose class is the column of their only stroke."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 300), ("t10k", 60)):
        label = np.arange(count) % 6
        image = rng.integers(0, 64, (count, 4, 6))
        image[np.arange(count), :, label] = 255
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", image)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", label)
    return tmp_path


def test_an_image_is_right_if_it_is_of_the_class_that_was_asked_for(digits, tmp_path):
    task = make("mnist", path=digits)
    tokens = task.read_split("val")
    known = task.prompt_mask(tokens)
    assert tokens.shape == (60, 25) and known.sum(1).tolist() == [1] * 60
    verdict = task.judge(tokens, tokens, known)
    assert verdict["accuracy"].all() and not verdict["copy"].any()
    assert verdict["typical"].mean() == pytest.approx(0.95, abs=0.02)
    asked = tokens.copy()
    asked[:, 0] = np.roll(tokens[:, 0], 1)
    assert not task.judge(tokens, asked, known)["accuracy"].any()
    no_grey = tokens.copy()
    no_grey[:, 3] = task.codes["class2"]
    assert not task.judge(no_grey, tokens, known)["accuracy"].any()
    config = configs.load(f"{CONFIG}:mnist-tiny", {"task.path": str(digits)})
    data = dataset.open_data(task, config)
    kept, kept_known = dataset.unmark(data.eval_windows("val", 25))
    np.testing.assert_array_equal(kept, tokens)
    np.testing.assert_array_equal(kept_known, known)
    learned = task.read_split("train")
    assert task.judge(learned, learned, learned < 0)["copy"].all()
    task.plot(tmp_path / "p.png", tokens[:5], tokens[:5], known[:5])


def test_an_image_of_no_class_is_right_if_it_is_typical(digits):
    task = make("mnist", path=digits, class_conditional=False)
    tokens = task.read_split("val")
    known = task.prompt_mask(tokens)
    noise = np.random.default_rng(0).integers(0, 16, tokens.shape)
    assert task.judge(tokens, tokens, known)["accuracy"].mean() > 0.9
    assert not task.judge(noise, tokens, known)["accuracy"].any()


@pytest.mark.parametrize("labels", [np.arange(59) % 6, np.full(60, 10)])
def test_labels_must_be_classes_and_as_many_as_images(digits, labels):
    write_idx(digits / "t10k-labels-idx1-ubyte.gz", labels)
    task = make("mnist", path=digits)
    with pytest.raises(UserError, match="must have a class from 0 to 9 for each of 60"):
        task.read_split("val")


def test_lines_of_two_texts(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfab\tc\r\nb\r\n")
    (tmp_path / "b").write_text("a\tbc\n")
    task = make("file", path=f"{tmp_path / 'a'},{tmp_path / 'b'}")
    tokens = task.read_split("train")
    known = task.prompt_mask(tokens)
    assert task.length == 5 and task.vocab_size == 5
    assert [task.text(row) for row in tokens] == ["ab\tc", "b"]
    assert known.sum(1).tolist() == [3, 0]


# As a user.


@pytest.mark.trains
def test_training_judges_draws_and_can_be_looked_at(tmp_path, capsys):
    workdir = tmp_path / "run"
    chosen = ("left_to_right", "exact_burst")
    changes = {"steps": "4", "eval_interval": "4", "task.train_sequences": "64"}
    changes["task.strategies"] = ",".join(chosen).replace("_", "-")
    assert train(configs.load(f"{CONFIG}:maze-tiny", changes), workdir) == 0
    last = metrics.read_rows(workdir)[-1]
    for strategy in chosen:
        assert 0 <= last[f"val_accuracy_{strategy}"] <= 1
        assert last[f"val_calls_{strategy}"] >= 1
        assert (workdir / "pictures" / f"{strategy}_0000004.png").exists()
    assert last["val_calls_exact_burst"] < 63 == last["val_calls_left_to_right"]
    capsys.readouterr()
    evaluate.command([f"--workdir={workdir}", "--json=-"])
    figures = last_json(capsys)
    assert {"loss", "accuracy_exact_burst", "optimal_left_to_right"} <= figures.keys()
    # One token is missing: every order of the rest is this one.
    run, given = open_run(str(workdir)), [True, True, False]
    found = run.log_prob([1, 2, 3], given=given, num_orders=2).mean
    np.testing.assert_allclose(found, -run.score([1, 2, 3])[0, 2], rtol=1e-5)
    image = tmp_path / "out.png"
    sample.command(
        [f"--workdir={workdir}", f"--image={image}", "--num_samples=3", "--json=-"]
    )
    found = last_json(capsys)["samples"]
    assert len(found) == 3 and image.exists()
    assert {"text", "tokens", "model_calls", "accuracy", "optimal"} <= found[0].keys()
    for options, expected in (
        ([f"--image={tmp_path}"], "is a folder"),
        (["--image=out.jpg"], "must end in .png"),
        (["--prompt_ids=1,2", "--image=out.png"], "leave out --prompt_ids"),
        (["--max_new_tokens=3"], "is for texts"),
        (["--prompt=a"], "are for texts"),
    ):
        with pytest.raises(UserError, match=expected.replace(".", r"\.")):
            sample.command([f"--workdir={workdir}", *options])


def test_training_counts_what_is_asked_for_only(tmp_path):
    """Of a task whose answers need no thought the loss can be next to nothing."""
    config = configs.load(f"{CONFIG}:byheart-tiny", {})
    system = SigmaTask
    system.resolve(config)
    config.model.vocab_size = 11
    made = system(config)
    data = dataset.open_data(made.task, config)
    import jax

    marked = data.batch_at(0, "train", 0, 8, made.window)
    batch = made.train_batch(jax.numpy.asarray(marked), jax.random.key(0), 0)
    _, known = dataset.unmark(marked)
    ordered = np.take_along_axis(~known, np.asarray(batch["order"]), 1)
    np.testing.assert_array_equal(np.asarray(batch["weight"]) > 0, ordered)
    assert float(batch["weight"].mean()) == pytest.approx(1)
