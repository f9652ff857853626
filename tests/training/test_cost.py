"""What a run has cost, over its resumes."""

import pytest

from jaxgpt.training import cost, metrics


@pytest.fixture
def clocks(monkeypatch):
    now = {"seconds": 100.0, "cpu_seconds": 7.0}
    monkeypatch.setattr(cost, "_clocks", now.copy)
    return now


def test_seconds_are_summed_over_resumes(tmp_path, clocks):
    first = cost.Cost(tmp_path)
    first.fixed = {"parameters": 12, "flops_per_token": 72.0}
    clocks |= {"seconds": 110.0, "cpu_seconds": 9.0}
    first.write()
    (tmp_path / "metrics.jsonl").touch()
    clocks |= {"seconds": 500.0, "cpu_seconds": 1.0}  # Another process, later.
    again = cost.Cost(tmp_path)
    again.fixed = first.fixed
    clocks |= {"seconds": 505.0, "cpu_seconds": 4.0}
    again.write()
    assert cost.read_cost(tmp_path) == first.fixed | {
        "seconds": 15.0,
        "cpu_seconds": 5.0,
    }


@pytest.mark.parametrize("record", [None, "", "[]", '{"seconds": null}'])
def test_what_a_run_did_not_record_stays_unknown(tmp_path, clocks, record):
    (tmp_path / "metrics.jsonl").touch()
    if record is not None:
        (tmp_path / cost.NAME).write_text(record)
    found = cost.Cost(tmp_path)
    found.write()
    expected = {"seconds": None, "cpu_seconds": None}
    assert cost.read_cost(tmp_path) == expected


def test_it_is_written_with_every_row_and_at_the_end(tmp_path, clocks):
    recorder = metrics.Recorder(tmp_path, 0, [], cost=cost.Cost(tmp_path))
    for seconds, write in (
        (101.0, lambda: recorder.write({"step": 1, "loss": 2.0})),
        (103.0, recorder.summarise),
    ):
        clocks["seconds"] = seconds
        write()
        assert cost.read_cost(tmp_path)["seconds"] == seconds - 100


def test_a_process_that_writes_no_metrics_writes_no_cost(tmp_path, clocks):
    recorder = metrics.Recorder(tmp_path, 0, [], False, cost.Cost(tmp_path))
    recorder.write({"step": 1, "loss": 2.0})
    recorder.summarise()
    assert not (tmp_path / cost.NAME).exists()
