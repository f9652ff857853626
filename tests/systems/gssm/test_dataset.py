import contextlib
import json

import h5py
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import dataset
from jaxgpt.systems.gssm.process import GraphProcess, Stream, make_process
from tests.conftest import ROOT
from tests.systems.gssm.conftest import MIXED

TINY = f"{ROOT}/configs/gssm_easy.py:tiny"
SPARSE = [
    {"name": "Z", "state_dim": 4, "alpha": 1e-30},
    {"name": "X", "state_dim": 16, "alpha": 1e-30, "parents": ["Z"]},
]


def load(**changes):
    return configs.load(TINY, {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture
def write(tmp_path):
    """Writes a file of `count` sequences as the command does; returns its path."""

    def write(name, count, chunk_size, config=None):
        config = config or load()
        shape = (count, config.model.block_size + 1)
        made = make_process(config)
        path = tmp_path / name
        dataset.write_dataset(path, config, made, shape, chunk_size)
        return path

    return write


@pytest.mark.parametrize(("count", "chunk_size"), [(12, 5), (3, 5), (20, 8), (17, 100)])
def test_a_file_holds_the_training_sequences_whatever_its_chunks(
    write, count, chunk_size
):
    config = load()
    path = write("f.h5", count, chunk_size)
    made = make_process(config)
    expected = made.held_out(Stream(config.seed, "train", config.batch_size), count, 17)
    np.testing.assert_array_equal(dataset.open_tokens(str(path), made), expected)
    with h5py.File(path) as file:
        assert file["tokens"].dtype == np.uint8
        assert file.attrs["graph"] == made.graph.to_json()
        assert file.attrs["graph_seed"] == 1
        assert file.attrs["seed"] == 0
        assert file.attrs["version"]
        # As the original reads it.
        np.testing.assert_array_equal(file["data"][[0, 2]], expected[[0, 2]])
    assert [p.name for p in path.parent.iterdir()] == ["f.h5"]


@pytest.fixture
def original(tmp_path):
    """Writes sequences of a config in the original's layout; returns the path."""

    def write(config, count=300, chunk=64):
        path = tmp_path / "original.h5"
        tokens_NT = make_process(config).held_out(Stream(7, "val", 100), count, 17)
        with h5py.File(path, "w") as file:
            data = file.create_dataset("data", (count, 17), int, chunks=(chunk, 17))
            data[:] = tokens_NT
        return path, tokens_NT

    return write


def test_a_file_of_the_original_is_read_and_what_is_not_known_is_said(original, capsys):
    path, tokens_NT = original(load())
    config = load(data__path=path)
    dataset.check_dataset(str(path), config)
    data = dataset.open_data(config, make_process(config), 17)
    assert data.tokens_NT.dtype == np.uint8
    np.testing.assert_array_equal(data.tokens_NT, tokens_NT)
    (note,) = capsys.readouterr().err.splitlines()
    assert "does not record its graph: it is assumed to be this one" in note


def test_a_file_of_the_original_that_is_of_another_graph_is_refused(original, capsys):
    path, _ = original(load())
    refused(path, r"another graph or kernels: it costs 4\.9", gssm__graph_seed="4")
    refused(path, "tokens must be states 0 .. 4 of", gssm__graph=json.dumps(MIXED))
    path, _ = original(load(gssm__first_token="drawn"))
    refused(path, "do not begin with the start state 0: are they of gssm.first_token=")
    # Of few sequences too; and where the kernels have zeros.
    path, _ = original(load(), count=9, chunk=9)
    refused(path, "another graph or kernels: it costs", gssm__graph_seed="4")
    refused(path, "counted from 0, has probability 0", gssm__graph_seed="4",
            gssm__clip="0", gssm__graph=json.dumps(SPARSE))  # fmt: skip


def test_the_other_convention_of_the_first_token_is_said(original, capsys):
    path, _ = original(load())
    changed = load(data__path=path, gssm__first_token="drawn")
    with contextlib.suppress(UserError):
        dataset.open_data(changed, make_process(changed), 17)
    assert (
        "begins with 0 throughout: gssm.first_token=start?" in capsys.readouterr().err
    )


def test_a_file_of_the_original_of_context_kernels_is_only_said(original, capsys):
    nodes = [node | {"mode": "context"} for node in MIXED]
    path, _ = original(load(gssm__graph=json.dumps(nodes)))
    changed = load(data__path=path, gssm__graph=json.dumps(nodes))
    dataset.open_data(changed, make_process(changed), 17)
    assert "it is assumed to be this one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (np.zeros(4, int), "'data' must hold integers"),
        (np.zeros((0, 17), int), "'data' must hold integers"),
        (np.zeros((4, 17)), "must hold integers"),
        (np.full((4, 17), -1), "must be >= 0, got -1"),
    ],
)
def test_data_that_are_no_tokens_are_refused(tmp_path, tokens, expected):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["data"] = tokens
    refused(tmp_path / "f.h5", expected)


def test_a_file_appears_only_once_it_is_whole(write, tmp_path, monkeypatch):
    held_out = GraphProcess.held_out_nodes

    def stop_at_the_third(self, *arguments):
        assert not (tmp_path / "cut.h5").exists()
        if arguments[-1] >= 2:
            raise KeyboardInterrupt
        return held_out(self, *arguments)

    monkeypatch.setattr(GraphProcess, "held_out_nodes", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write("cut.h5", 30, 7)
    assert not list(tmp_path.iterdir())


def test_every_sequence_comes_once_an_epoch_in_an_order_of_its_own(write):
    path = write("f.h5", 21, 21)
    data = dataset.open_data(load(data__path=path), make_process(load()), 17)
    rows = {row.tobytes(): i for i, row in enumerate(data.tokens_NT.astype(np.int32))}
    assert len(rows) == 21
    drawn = np.concatenate([data.batch_at(4, "train", s, 6, 17) for s in range(14)])
    assert drawn.dtype == np.int32
    seen = np.array([rows[row.tobytes()] for row in drawn]).reshape(4, 21)
    np.testing.assert_array_equal(np.sort(seen, 1), np.tile(np.arange(21), (4, 1)))
    assert len({order.tobytes() for order in seen}) == 4
    again = data.batch_at(4, "train", 9, 6, 17)
    np.testing.assert_array_equal(again, drawn[54:60])
    assert (data.batch_at(5, "train", 9, 6, 17) != again).any()


def test_a_batch_larger_than_the_file_spans_epochs(write):
    data = dataset.open_data(
        load(data__path=write("f.h5", 3, 3)), make_process(load()), 17
    )
    batch = data.batch_at(0, "train", 0, 9, 17)
    counts = np.unique(batch, axis=0, return_counts=True)[1]
    np.testing.assert_array_equal(counts, [3, 3, 3])


def test_validation_is_drawn_and_shares_no_sequence_with_the_file(write):
    made = make_process(load())
    data = dataset.open_data(load(data__path=write("f.h5", 64, 64)), made, 17)
    held_out = data.eval_windows("val", 17, 40)
    np.testing.assert_array_equal(
        held_out, dataset.OnlineData(load(), made).eval_windows("val", 17, 40)
    )
    trained = {row.tobytes() for row in data.eval_windows("train", 17)}
    assert len(trained) == 64
    assert not trained & {row.tobytes() for row in held_out}
    for split in ("val", "test"):
        batch = np.asarray(data.batch_at(0, split, 0, 8, 17))
        assert not trained & {row.tobytes() for row in batch}, split


def refused(path, expected, **changes):
    config = load(data__path=path, **changes)
    with pytest.raises(UserError, match=expected) as caught:
        dataset.open_data(config, make_process(config), 17)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_graph_is_refused(write):
    path = write("f.h5", 5, 5)
    refused(path, "sequences of another graph", gssm__graph_seed="4")
    refused(path, "sequences of another graph", gssm__graph="data/graphs/base.yaml")
    refused(path, "sequences of another graph", gssm__first_token="drawn")


def test_a_file_of_a_context_graph_knows_how_its_kernels_were_drawn(write):
    chain = '[{"name": "X", "state_dim": 3, "alpha": 1, "mode": "context"}]'
    changes = {"gssm__graph": chain, "gssm__context": "sequence"}
    config = load(**changes)
    path = write("f.h5", 12, 4, config)
    made = make_process(config)
    expected = made.held_out(Stream(config.seed, "train", config.batch_size), 12, 17)
    np.testing.assert_array_equal(dataset.open_tokens(str(path), made), expected)
    refused(path, "sequences of another graph", gssm__graph=chain)
    with pytest.raises(UserError, match="sequences of another graph"):
        dataset.check_dataset(str(path), load(gssm__graph=made.graph.to_json()))


def test_a_truncated_file_is_refused(write):
    path = write("f.h5", 400, 400)
    content = path.read_bytes()
    for kept in (0, 10, 500, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        refused(path, "truncated or not an HDF5 file|is truncated")


def test_other_files_are_refused(write, tmp_path):
    refused(tmp_path / "none.h5", "does not exist")
    (tmp_path / "text.h5").write_text("tokens")
    refused(tmp_path / "text.h5", "not an HDF5 file")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["tokens"] = np.zeros((4, 17), np.uint8)
    refused(tmp_path / "other.h5", "is not a dataset written by")


def test_sequences_shorter_than_the_window_are_refused(write):
    config = load(data__path=write("f.h5", 5, 5))
    with pytest.raises(UserError, match="needs 33"):
        dataset.open_data(config, make_process(config), 33)
