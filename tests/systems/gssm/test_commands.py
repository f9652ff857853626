import json

import h5py
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import evaluate, gssm
from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import (
    entropy,
    generate,
    graph,
    graph_files,
    information,
    kernels,
    likelihood,
)
from jaxgpt.systems.gssm.system import GSSM
from tests.conftest import ROOT, last_json, refusal
from tests.systems.gssm.conftest import MIXED
from tests.systems.gssm.test_dataset import TINY
from tests.test_commands import run

pytestmark = pytest.mark.unoptimised


@pytest.fixture
def files(tmp_path):
    """The mixed graph, its tables and its tokens, as a user keeps them."""
    parsed = graph.parse_graph(MIXED, "test")
    tables = kernels.draw_tables(parsed, 5, 1e-10)
    (tmp_path / "g.json").write_text(json.dumps({"nodes": MIXED}))
    np.savez(tmp_path / "k.npz", **{f"table/{n}": t for n, t in tables.items()})
    tokens = np.random.default_rng(0).integers(0, 5, (6, 12))
    tokens[:, 0] = 0
    np.save(tmp_path / "t.npy", tokens)
    return tmp_path, parsed, tables, tokens


@pytest.mark.process
@pytest.mark.parametrize("name", ["generate", "entropy"])
def test_help_lists_every_option_and_field(name):
    done = run(f"systems.gssm.{name}", "--help")
    assert done.returncode == 0
    for option in ("--config", "--json", "gssm.graph_seed"):
        assert option in done.stdout


@pytest.mark.process
def test_entropy_of_files(files):
    folder, parsed, tables, tokens = files
    done = run(
        "systems.gssm.entropy",
        f"--graph={folder / 'g.json'}",
        f"--kernels={folder / 'k.npz'}",
        f"--tokens={folder / 't.npy'}",
        f"--nll={folder / 'out.npy'}",
        "--dtype=float64",
        "--json=-",
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    found = np.load(folder / "out.npy")
    expected = likelihood.forward(parsed, tables, tokens)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.abs(found - expected).max() > 0, "float64 it is"
    assert figures["exact"] == pytest.approx(found.mean())
    assert figures["first_token"] == "start"
    assert figures["predicted_tokens"] == 66


def test_tokens_that_begin_anywhere_are_of_the_other_convention(files, capsys):
    folder, parsed, tables, tokens = files
    np.save(folder / "t.npy", tokens[:, 1:])
    entropy.command(
        [
            f"--graph={folder / 'g.json'}",
            f"--kernels={folder / 'k.npz'}",
            f"--tokens={folder / 't.npy'}",
            f"--nll={folder / 'out.npy'}",
            "--dtype=float32",
            "--json=-",
        ]
    )
    expected = likelihood.forward(parsed, tables, tokens)[:, 1:]
    np.testing.assert_allclose(np.load(folder / "out.npy"), expected, rtol=1e-5)
    assert last_json(capsys)["first_token"] == "drawn"


def test_entropy_of_fresh_sequences(capsys):
    options = ["--dtype=float32", "--json=-", "--num_sequences=64"]
    entropy.command([f"--config={TINY}", *options])
    figures = last_json(capsys)
    assert figures["exact"] < figures["bigram"] < figures["unigram"]
    assert figures["unigram"] < figures["uniform"] == np.log(16)
    assert 0 < figures["exact_error"] < 0.1
    assert "nats per token" in figures["zlib_unit"]
    entropy.command([f"--config={TINY}", *options, "--config.seed=1"])
    assert last_json(capsys)["exact"] != figures["exact"]


def test_entropy_writes_predictions_and_beliefs(files, capsys):
    folder, parsed, tables, tokens = files
    names = {name: folder / f"out_{name}" for name in ("nll", "predictive", "beliefs")}
    entropy.command(
        [
            f"--graph={folder / 'g.json'}",
            f"--kernels={folder / 'k.npz'}",
            f"--tokens={folder / 't.npy'}",
            *(f"--{name}={path}" for name, path in names.items()),
            "--json=-",
        ]
    )
    for name, path in names.items():
        found = np.load(path)
        expected = likelihood.forward(
            parsed, tables, tokens, dtype="float64", wanted=name
        )
        if name == "beliefs":
            assert set(found) == {"Z1", "Z2", "Z3"}
            found, expected = found["Z2"], expected["Z2"]
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)


def test_entropy_of_a_graph_whose_kernels_are_not_known(tmp_path, capfd):
    chain = {"name": "X", "state_dim": 3, "alpha": 1, "mode": "context"}
    hidden = [{"name": "Z", "state_dim": 2, "alpha": 0.3}, chain | {"parents": ["Z"]}]
    options = ["--num_sequences=64", "--config.model.block_size=16", "--json=-"]
    options += ["--config.gssm.particles=16", "--config.batch_size=8"]
    options.append("--config.seed=0")
    names = {name: tmp_path / f"{name}.npy" for name in ("nll", "predictive")}
    for nodes, floor in ([chain], "bayes"), (hidden, "bayes_estimate"):
        (tmp_path / "g.json").write_text(json.dumps(nodes))
        graph = f"--graph={tmp_path}/g.json"
        outputs = [f"--{n}={names[n]}" for n in names if n == "nll" or nodes == [chain]]
        entropy.command([graph, *options, *outputs])
        fresh = json.loads(capfd.readouterr()[0])
        assert fresh["known_kernels"] < fresh[floor] < fresh["uniform"]
        assert fresh[f"{floor}_error"] > 0 and "exact" not in fresh
        assert ("bayes_lower" in fresh) == (nodes == hidden)
        made = gssm.Graph(nodes)
        tokens = gssm.sample(made, 64, 17, split="val", batch_size=8)
        if nodes == hidden:
            expected = gssm.estimate_nll(made, tokens, particles=16)
            assert "use exact_nll" in refusal(
                gssm.estimate_nll, gssm.Graph([chain]), tokens
            )
        else:
            expected = gssm.exact_nll(made, tokens)
            p = gssm.predictive(made, tokens)
            np.testing.assert_array_equal(np.load(names["predictive"]), p)
        np.testing.assert_array_equal(np.load(names["nll"]), expected)
        np.save(tmp_path / "t.npy", tokens)
        entropy.command([graph, *options, f"--tokens={tmp_path}/t.npy"])
        printed, notes = capfd.readouterr()
        given = json.loads(printed)
        assert given[floor] == pytest.approx(fresh[floor])
        assert "known_kernels" not in given and "bayes_lower" not in given
        left_out = "the lower bound needs the states behind the tokens: left out"
        assert (left_out in notes) == (nodes == hidden)


def test_entropy_decomposes_given_and_fresh_tokens(files, capsys):
    folder, parsed, tables, tokens = files
    given = [f"--graph={folder / 'g.json'}", f"--kernels={folder / 'k.npz'}"]
    entropy.command([*given, f"--tokens={folder / 't.npy'}", "--decompose", "--json=-"])
    found = last_json(capsys)["decomposition"]
    by_token = information.by_token(parsed, tables, tokens)
    expected = by_token["information/Z2"].mean()
    assert found["latents"]["Z2"]["information"] == pytest.approx(expected)
    entropy.command([f"--config={TINY}", "--num_sequences=64", "--decompose"])
    assert "latents.Z1.information_error  0.0" in capsys.readouterr().out


@pytest.mark.trains
def test_generate_writes_what_training_reads(tmp_path, capsys):
    from jaxgpt.commands.train import train

    output = tmp_path / "f.h5"
    generate.command([f"--config={TINY}", f"--output={output}", "--num_sequences=33",
                      "--json=-"])  # fmt: skip
    assert last_json(capsys)["tokens"] == 33 * 17
    config = configs.load(TINY, {"data.path": str(output), "steps": "3"})
    assert train(config, tmp_path / "run") == 0


@pytest.mark.trains
def test_a_run_keeps_its_kernels_and_gives_them_back(tmp_path, capsys):
    from jaxgpt.commands.train import train

    given, output, again = (tmp_path / name for name in ("k.npz", "f.h5", "again.npz"))
    # Of another seed, and in the config's own folder no more.
    entropy.command(
        [f"--config={TINY}", "--config.gssm.graph_seed=9", f"--save_kernels={given}"]
    )
    kernel = f"--kernels={given}"
    generate.command([f"--config={TINY}", f"--output={output}", "--latents", kernel,
                      "--num_sequences=33"])  # fmt: skip
    changes = {"gssm.kernels": str(given), "data.path": str(output), "steps": "3"}
    assert train(configs.load(TINY, changes), tmp_path / "run") == 0
    expected = dict(np.load(given))
    given.unlink()
    capsys.readouterr()
    run_folder = f"--workdir={tmp_path / 'run'}"
    entropy.command([run_folder, f"--save_kernels={again}", "--json=-"])
    exact = last_json(capsys)["exact"]
    evaluate.command([run_folder, "--num_sequences=256", "--json=-"])
    assert last_json(capsys)["loss_exact"] == pytest.approx(exact, abs=1e-5)
    found = np.load(again)
    assert set(found) == set(expected) == {"table/Z1", "table/Z2", "table/X"}
    for name, table in expected.items():
        np.testing.assert_array_equal(found[name], table)
    entropy.command([f"--config={TINY}", "--json=-"])
    assert last_json(capsys)["exact"] != pytest.approx(exact, abs=1e-2)


def test_generate_writes_the_latents_behind_the_tokens(tmp_path, capsys):
    output = tmp_path / "f.h5"
    generate.command([f"--config={TINY}", f"--output={output}", "--num_sequences=33",
                      "--chunk_size=8", "--latents"])  # fmt: skip
    easy = gssm.Graph("easy", graph_seed=1)
    states = gssm.sample_states(easy, 33, 17, batch_size=8)
    with h5py.File(output) as file:
        assert set(file["latents"]) == {"Z1", "Z2"}
        for name, expected in states.items():
            found = file["tokens" if name == "X" else f"latents/{name}"]
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, expected)


def test_entropy_of_a_dataset_of_another_graph_has_a_note(tmp_path, capsys):
    options = [f"--config={TINY}", "--json=-"]
    file = tmp_path / "f.h5"
    generate.command([*options, f"--output={file}", "--num_sequences=33"])
    capsys.readouterr()
    for seed, note in ((1, ""), (2, f"note: '{file}' was written with another graph")):
        entropy.command(
            [*options, f"--tokens={file}", f"--config.gssm.graph_seed={seed}"]
        )
        said = capsys.readouterr().err
        assert said.startswith(note) if note else not said


def test_entropy_saves_a_graph_that_it_reads_again(files, capsys):
    folder, parsed, _, _ = files
    graph_file, options = folder / "g.yaml", ["--num_sequences=2", "--json=-"]
    kernels_file = f"--kernels={folder / 'k.npz'}"
    entropy.command([f"--graph={folder / 'g.json'}", kernels_file, *options,
                     f"--save_graph={graph_file}"])  # fmt: skip
    first = last_json(capsys)
    assert graph_files.load_graph(str(graph_file)) == parsed  # With its modes.
    entropy.command([f"--graph={graph_file}", kernels_file, *options])
    assert last_json(capsys) == first


def test_entropy_of_a_graph_made_by_hand_and_of_the_tokens_of_a_dataset(
    tmp_path, capsys
):
    made, dataset = "--config.gssm.graph=parity:2", f"{tmp_path}/f.h5"
    generate.command([f"--config={TINY}", made, f"--output={dataset}",
                      "--num_sequences=8"])  # fmt: skip
    note = "the kernels are those of 'parity:2', which leaves gssm.graph_seed=1 without"
    assert capsys.readouterr().err.count(note) == 1
    entropy.command(["--graph=parity:2", f"--tokens={dataset}", "--json=-"])
    found = last_json(capsys)
    # The tokens after the start are 5 rounds, and the first bit of another.
    assert found["exact"] == pytest.approx(11 / 16 * np.log(2))
    assert found["sequences"] == 8


def test_which_given_token_is_impossible_is_said(tmp_path, capsys):
    tokens = gssm.sample("parity:2", 4, 10)
    tokens[2, 6] = 1 - tokens[2, 6]
    np.save(tmp_path / "t.npy", tokens)
    options = ["--graph=parity:2", f"--tokens={tmp_path / 't.npy'}", "--json=-"]
    entropy.command([*options, f"--nll={tmp_path / 'nll.npy'}"])
    captured = capsys.readouterr()
    assert "token 6 of sequence 2, counted from 0, has probability 0" in captured.err
    figures = json.loads(captured.out)
    assert figures["exact"] is None and figures["unigram"] < 1
    rows, _ = np.nonzero(np.isinf(np.load(tmp_path / "nll.npy")))
    assert set(rows.tolist()) == {2}
    refused = refusal(entropy.command, [*options, "--decompose"])
    assert "token 6 of sequence 2, counted from 0, has probability 0" in refused


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gssm.graph": "parity:x"}, "'parity:x' is not a graph: write parity:BITS"),
        ({"gssm.graph": "{0}/cycle.yaml"}, "has a cycle: A -> B -> A"),
        ({"gssm.graph": "{0}/large.yaml"}, "the latents have 1.00e+10 joint states"),
        ({"gssm.kernels": "{0}/nan.npz"}, "has a number that is not finite"),
        ({"gssm.kernels": "{0}/sum.npz"}, "row [0, 0] sums to 2"),
        ({"gssm.kernels": "{0}/shape.npz"}, "table/X must have shape [4, 4, 16]"),
        ({"gssm.kernels": "{0}/other.npz"}, "has table/Z3: the graph has no such node"),
    ],
)
def test_what_no_command_takes_is_one_line(tmp_path, change, expected):
    nodes = [{"name": name, "state_dim": 2, "alpha": 1, "parents": [parent]}
             for name, parent in ("AB", "BA", "XA")]  # fmt: skip
    (tmp_path / "cycle.yaml").write_text(json.dumps({"data": {"nodes": nodes}}))
    nodes = [{"name": f"Z{i}", "state_dim": 10, "alpha": 1} for i in range(10)]
    chain = [node | {"parents": [f"Z{i}"]} for i, node in enumerate(nodes[1:])]
    X = {"name": "X", "state_dim": 2, "alpha": 1, "parents": ["Z9"]}
    (tmp_path / "large.yaml").write_text(json.dumps([nodes[0], *chain, X]))
    easy = {f"table/{name}": t for name, t in gssm.Graph("easy").kernels.items()}
    for name, table in {
        "nan": easy["table/X"] * np.nan,
        "sum": easy["table/X"] * 2,
        "shape": easy["table/X"][:3],
    }.items():
        np.savez(tmp_path / f"{name}.npz", **(easy | {"table/X": table}))
    np.savez(tmp_path / "other.npz", **easy, **{"table/Z3": easy["table/X"]})
    changes = {key: value.format(tmp_path) for key, value in change.items()}
    config = configs.load(TINY, changes)
    assert expected in refusal(GSSM.resolve, config), "train"
    options = [f"--config={TINY}", *(f"--config.{k}={v}" for k, v in changes.items())]
    assert expected in refusal(entropy.command, options)
    if "joint" not in expected:  # Sequences need no likelihood.
        output = f"--output={tmp_path / 'f.h5'}"
        assert expected in refusal(generate.command, [*options, output])


def test_kernels_too_large_for_a_config_are_refused(monkeypatch):
    parsed = graph.parse_graph(MIXED, "test")
    tables = kernels.draw_tables(parsed, 0, 1e-10)
    monkeypatch.setattr(kernels, "MOST_KEPT", 100)
    with pytest.raises(UserError, match="hold 291 probabilities: a run keeps at most"):
        kernels.tables_to_json(tables)


def test_nodes_may_have_the_names_that_numpy_uses(tmp_path, capsys):
    nodes = [
        {"name": "file", "state_dim": 2, "alpha": 1},
        {"name": "X", "state_dim": 3, "alpha": 1, "parents": ["file"]},
    ]
    (tmp_path / "g.json").write_text(json.dumps(nodes))
    path = tmp_path / "b.npz"
    entropy.command([f"--graph={tmp_path / 'g.json'}", "--num_sequences=2",
                     f"--beliefs={path}"])  # fmt: skip
    assert np.load(path)["file"].shape == (2, 257, 2)


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        (
            generate,
            ["--num_sequences=0"],
            "--num_sequences must be in [1, 2147483647], got 0",
        ),
        (
            generate,
            ["--chunk_size=0"],
            "--chunk_size must be in [1, 2147483647], got 0",
        ),
        (generate, ["--output={0}/none/f.h5"], "does not exist"),
        (generate, ["--output={0}/g.json"], "exists: name a new file"),
        (generate, ["--config={1}/configs/sigma_char.py"], "must be gssm, got 'sigma'"),
        (generate, ["--config.gssm.graph=none.yaml"], "no graph file 'none.yaml'"),
        (generate, ["--config.gssm.clip=1"], "gssm.clip must be < 1, got 1.0"),
        (generate, ["--kernels={0}/t.npy"], "not an .npz file"),
        (generate, ["--kernels={0}/k.npz"], "table/Z1 must have shape [4, 4]"),
        (
            generate,
            ['--config.gssm.kernels={{"Z1": [[1, 2], [3]]}}'],
            "is not an array of numbers",
        ),
        (generate, ["--config.gssm.kernels={{}}"], "has no array Z1"),
        (generate, ["--config.gssm.kernels={{1"], "is not valid JSON"),
        (entropy, [], "one of the arguments --config --graph --workdir is required"),
        (entropy, ["--workdir={0}"], "holds no run"),
        (entropy, ["--graph={0}/g.json", "--save_kernels={0}"], "is a folder"),
        (
            entropy,
            ["--graph={0}/context.json", "--save_kernels={0}/s.npz"],
            "drawn for every batch",
        ),
        (entropy, ["--config={1}/configs/sigma_char.py"], "must be gssm, got 'sigma'"),
        (entropy, ["--graph={0}/none.json"], "no graph file"),
        (entropy, ["--graph={0}/t.npy"], "cannot be read"),
        (
            entropy,
            ["--graph={0}/g.json", "--num_sequences=0"],
            "must be in [1, 16777216], got 0",
        ),
        (entropy, ["--graph={0}/g.json", "--nll={0}/none/x.npy"], "does not exist"),
        (entropy, ["--graph={0}/context.json", "--decompose"], "--kernels"),
        (entropy, ["--graph={0}/g.json", "--beliefs={0}"], "is a folder"),
        (entropy, ["--graph={0}/g.json", "--tokens={0}/none.npy"], "not an .npy file"),
        (entropy, ["--graph={0}/g.json", "--tokens={0}/none.h5"], "does not exist"),
        (entropy, ["--graph=parity", "--kernels={0}/k.npz"], "has its own kernels"),
        (entropy, ["--graph={0}/g.json:Z1"], "names no graph of its file"),
        (
            entropy,
            ["--graph={0}/g.json", "--kernels={0}/t.npy"],
            "it is a single array",
        ),
        (entropy, ["--graph={0}/g.json", "--tokens={0}/big.npy"], "got 5"),
        (entropy, ["--graph={0}/g.json", "--tokens={0}/one.npy"], "rows of 1 token"),
        (
            entropy,
            ["--graph={0}/context.json", "--predictive={0}/p.npy"],
            "predictive needs those of 'fresh sequences': give them with --kernels",
        ),
        (
            entropy,
            ["--graph={0}/context.json", "--tokens={0}/t.npy", "--beliefs={0}/b.npz"],
            "--kernels",
        ),
        (
            entropy,
            ["--graph={0}/g.json", "--config.gssm.particles=0"],
            "gssm.particles must be >= 1, got 0",
        ),
    ],
)
def test_wrong_input_is_one_line(files, command, options, expected):
    folder = files[0]
    np.save(folder / "big.npy", np.array([[0, 5]]))
    np.save(folder / "one.npy", np.array([[0]]))
    context = [node | {"mode": "context"} if node["name"] == "X" else node
               for node in MIXED]  # fmt: skip
    (folder / "context.json").write_text(json.dumps(context))
    options = [option.format(folder, ROOT) for option in options]
    if command is generate:
        given = {option.split("=")[0] for option in options}
        defaults = {"--config": TINY, "--output": str(folder / "f.h5")}
        options += [f"{k}={v}" for k, v in defaults.items() if k not in given]
    if command is entropy and options:
        options.append("--dtype=float32")
    assert expected in refusal(command.command, options)
    assert not (folder / "f.h5").exists()
