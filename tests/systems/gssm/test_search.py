"""Graphs of a wanted difficulty are found, and told from those that are not."""

import dataclasses
import json

import pytest

from jaxgpt.errors import CheckError
from jaxgpt.systems.gssm import difficulty, entropy
from jaxgpt.systems.gssm.graph_files import load_graph
from tests.conftest import ROOT, last_json, refusal

# Few large batches are sampled faster.
OPTIONS = (f"--config={ROOT}/configs/gssm.py:easy", "--config.batch_size=4096")
OPTIONS += ("--num_sequences=64",)


def find(output, *options):
    difficulty.command([*OPTIONS, f"--output={output}", *options])


def test_a_graph_is_found_whose_figures_are_those_of_entropy(tmp_path, capsys):
    file = tmp_path / "G.yaml"
    find(file, "--floor=1.2", "--bigram_gap=0.1", "--tolerance=0.1", "--json=-")
    found = last_json(capsys)
    assert abs(found["floor"] - 1.2) <= 0.1
    assert abs(found["bigram_gap"] - 0.1) <= 0.1
    seed = f"--config.gssm.graph_seed={found['graph_seed']}"
    graph = f"--config.gssm.graph={file}"
    entropy.command([*OPTIONS, graph, seed, "--json=-"])
    captured = capsys.readouterr()
    assert captured.err == "", "the file has the kernel_type of every node"
    measured = json.loads(captured.out)
    assert measured["exact"] == pytest.approx(found["floor"], abs=1e-12)
    assert measured["exact_error"] == pytest.approx(found["floor_error"])
    gap = measured["bigram"] - measured["exact"]
    assert gap == pytest.approx(found["bigram_gap"], abs=1e-12)
    again = tmp_path / "again.yaml"
    find(again, "--floor=1.2", "--bigram_gap=0.1", "--tolerance=0.1")
    assert again.read_text() == file.read_text()


def test_only_the_named_alphas_change(tmp_path, capsys):
    file = tmp_path / "G.yaml"
    find(file, "--floor=1.5", "--nodes=X", "--config.gssm.nodes.Z1.alpha=0.4")
    said = capsys.readouterr().out
    assert f"--config.gssm.graph={file} --config.gssm.graph_seed=" in said
    nodes = load_graph(str(file)).nodes
    own = load_graph("easy").nodes
    assert nodes[0] == dataclasses.replace(own[0], alpha=0.4)
    assert nodes[1] == own[1]
    assert nodes[2] == dataclasses.replace(own[2], alpha=nodes[2].alpha)
    assert nodes[2].alpha != own[2].alpha


def test_the_nearest_is_named_where_there_is_none(tmp_path):
    file = tmp_path / "G.yaml"
    with pytest.raises(CheckError) as caught:
        find(file, "--floor=0.5", "--bigram_gap=0.5", "--tries=20")
    said = str(caught.value)
    assert said.startswith(
        "none of 20 graphs is within 0.02 nats: the nearest has floor"
    )
    assert not file.exists()
    tolerance = said.split("--tolerance=")[1].split()[0]
    find(
        file,
        "--floor=0.5",
        "--bigram_gap=0.5",
        "--tries=20",
        f"--tolerance={tolerance}",
    )
    assert file.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "pass --floor, --bigram_gap or both"),
        (["--floor=-1"], "--floor must be in [0, 16777216], got -1.0"),
        (["--floor=nan"], "--floor must be in [0, 16777216]"),
        (["--floor=2.8"], "--floor must be <= 2.773, the entropy of uniform tokens"),
        (["--bigram_gap=3"], "--bigram_gap must be <= 2.773"),
        (["--floor=1", "--tries=0"], "--tries must be in [1, 16777216]"),
        (["--floor=1", "--tolerance=0"], "--tolerance must be in [1e-06, 16777216]"),
        (["--floor=1", "--nodes=Z1,Z9"], "--nodes must be among Z1, Z2, X, which X"),
        (["--floor=1", "--config.gssm.nodes.Z1.mode=context"], "omit gssm.kernels and"),
        (["--floor=1", "--config.system=causal"], "must be gssm, got 'causal'"),
    ],
)
def test_a_search_that_cannot_be_is_refused(tmp_path, options, expected):
    assert expected in refusal(find, tmp_path / "G.yaml", *options)


def test_a_file_that_is_there_is_kept(tmp_path):
    (tmp_path / "G.yaml").write_text("mine")
    assert "exists: name a new file" in refusal(find, tmp_path / "G.yaml", "--floor=1")
