"""Figures of a run: what they say, and that nothing lies on anything else."""

import itertools
import math

import matplotlib
import numpy as np
import pytest

from benchmarks.labels import label_points
from jaxgpt import drawing
from jaxgpt.training import plots


def run(evaluations, batches=0, last=3000, **ends):
    """Rows of a run whose losses fall from 4 to their ends."""
    rows = {}
    for step in np.linspace(0, last, evaluations).round().astype(int).tolist():
        left = math.exp(-6 * step / max(last, 1))
        losses = {name: end + left * (4 - end) for name, end in ends.items()}
        rows[step] = {"step": step} | losses
    for step in np.linspace(last / max(batches, 1), last, batches).round().tolist():
        rows.setdefault(step, {"step": int(step)})["loss"] = 2.0 + math.sin(step) / 9
    return [rows[step] for step in sorted(rows)]


CLOSE = {"val_loss": 2.0, "train_loss": 1.999, "val_loss_left_to_right": 2.001}
FLOOR = {"val_loss_exact": 1.99, "val_loss_unigram": 3.0, "val_loss_bigram": 1.9901}
RUNS = {
    "apart": run(10, 60, val_loss=2.1, train_loss=1.4),
    "on each other": run(10, 60, **CLOSE, train_loss_left_to_right=2.0),
    "all the same": run(5, 9, val_loss=2.0, train_loss=2.0, val_loss_far=2.0),
    "never evaluated": run(0, 30),
    "once": run(1, val_loss=4.0, last=0),
    "two steps": run(2, 2, last=2, **CLOSE),
    "to nothing": run(8, val_loss=0.001, train_loss=0.0009),
    "many evaluations": run(300, 600, **CLOSE),
    "with a floor": [
        row | FLOOR | {"val_gap": row["val_loss"] - 1.99, "val_gap_error": 0.001}
        for row in run(8, **CLOSE)
    ],
    "flat after a step": [{"step": n, "val_loss": 4.0 - 2 * (n > 0)} for n in range(5)],
    "not finite": [*run(5, val_loss=2.0, last=8), {"step": 9, "loss": math.nan}],
}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws the losses of a run and returns the figure, as it was saved."""
    figures = []

    def saved(self, stream, **options):
        self.draw_without_rendering()
        figures.append(self)

    def draw(rows):
        monkeypatch.setattr(drawing.Picture, "savefig", saved)
        plots.plot_losses(rows, tmp_path / "loss.png")
        return figures[-1]

    return draw


def text_boxes(axes):
    """The boxes of the texts, without the lines that lead to them."""
    text_alone = matplotlib.text.Text.get_window_extent
    return {text.get_text(): text_alone(text) for text in axes.texts}


@pytest.mark.parametrize("name", RUNS)
def test_no_label_lies_on_another_on_the_axes_or_outside(name, drawn):
    figure = drawn(RUNS[name])
    for axes in figure.axes:
        boxes = text_boxes(axes)
        assert boxes
        for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
            assert not a.overlaps(b), f"{one} lies on {other}"
        for text, box in boxes.items():
            assert figure.bbox.contains(*box.p0) and figure.bbox.contains(*box.p1), text
            inside = "at step 0" in text
            assert axes.get_window_extent().overlaps(box) == inside, text


def test_labels_have_the_last_values_and_the_title_the_lowest(drawn):
    rows = run(4, last=3, val_loss=2.0, val_loss_left_to_right=1.5)
    rows[2]["val_loss"] = 1.75
    (axes,) = drawn(rows).axes
    last = {name: f"{rows[-1][name]:.3f}" for name in rows[-1] if name != "step"}
    shown = set(text_boxes(axes)) - {"4.000 at step 0"}
    assert shown == {
        f"{last['val_loss']} validation",
        f"{last['val_loss_left_to_right']} validation, left to right",
    }
    title = axes.get_title(loc="left")
    assert title == "Lowest validation loss: 1.750 nats per token, at step 2"


def test_the_first_loss_is_written_where_it_would_flatten_all_others(drawn):
    (axes,) = drawn(RUNS["apart"]).axes
    assert axes.get_ylim()[1] < 3.5 and "4.000 at step 0" in text_boxes(axes)
    (axes,) = drawn(RUNS["two steps"]).axes
    assert axes.get_ylim()[1] > 4 and not any("step 0" in t for t in text_boxes(axes))
    (axes,) = drawn(RUNS["to nothing"]).axes
    assert axes.get_yscale() == "log" and axes.get_ylim()[1] > 4


@pytest.mark.parametrize("rows", [[], [{"step": 5}], [{"step": 0, "loss": math.inf}]])
def test_a_run_that_ended_at_once_has_a_figure_too(rows, tmp_path):
    plots.plot_losses(rows, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_batches_are_smoothed_with_as_many_on_either_side():
    points = [(step, float(step)) for step in range(100)]
    assert plots._smoothed(points)[:97] == points[:97]
    assert plots._smoothed(points)[-1][1] == 97.5  # Of the last four.
    jagged = [(step, float(step % 2)) for step in range(100)]
    middle = [value for _, value in plots._smoothed(jagged)[10:-10]]
    assert max(middle) - min(middle) < 0.2


def test_places_are_moved_apart_by_as_little_as_that_takes():
    assert drawing.spread([0.9, 0.1, 0.5], 0.1) == pytest.approx([0.9, 0.1, 0.5])
    assert drawing.spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert drawing.spread([0.0, 0.02], 0.2) == pytest.approx([0.0, 0.2])
    places = np.random.default_rng(0).random(9).tolist()
    moved = drawing.spread(places, 0.1)
    assert np.argsort(moved).tolist() == np.argsort(places).tolist()
    assert np.diff(sorted(moved)).min() > 0.1 - 1e-9
    assert min(moved) > -1e-9 and max(moved) < 1 + 1e-9


def test_points_are_labelled_clear_of_points_lines_and_labels(tmp_path):
    points = [(1 + 0.02 * i, 1 + 0.01 * (i % 3)) for i in range(6)]
    with drawing.picture(tmp_path / "p.png", 4.5) as figure:
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), "o")
        axes.plot([0, 2], [0.8, 1.4])
        axes.set(xlim=(0, 2), ylim=(0, 2))
        label_points(axes, points, [f"label {i}" for i in range(6)])
    boxes = text_boxes(axes)
    for a, b in itertools.combinations(boxes.values(), 2):
        assert not a.overlaps(b)
    for at in axes.transData.transform(points):
        assert not any(box.contains(*at) for box in boxes.values())


def test_a_figure_leaves_the_settings_of_matplotlib_as_they_were(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.plot_positions({"model": [2.0, 1.0], "exact": [1.5, 1.0]}, tmp_path / "f.png")
    assert dict(matplotlib.rcParams) == before
