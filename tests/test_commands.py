import importlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import jaxgpt.__main__
from jaxgpt import config as configs
from jaxgpt import evaluate, sample, train, verify
from tests.conftest import ROOT, TINY, edit_config, refusal

COMMANDS = {"train": train, "evaluate": evaluate, "sample": sample, "verify": verify}
OPTIONS = {
    "train": [
        *("--config", "--workdir", "--allow", "--replay"),
        *("--coordinator", "--num_processes", "--process_id"),
    ],
    "evaluate": [
        *("--workdir", "--step", "--json", "--split"),
        *("--tokens", "--order", "--logits", "--eval_lengths"),
        *("--num_orders", "--infill", "--num_sequences", "--positions"),
        *("--orders", "--template", "--judge", "--num_samples", "--samples"),
    ],
    "sample": [
        *("--workdir", "--step", "--json", "--prompt", "--prompt_ids", "--template"),
        *("--special_tokens", "--input", "--output"),
        *("--max_new_tokens", "--sampler", "--order", "--num_samples"),
        *("--temperature", "--top_k", "--seed", "--split", "--num_orders"),
        *("--block_length", "--top_p", "--stop", "--live", "--image"),
        *("--tokens_per_pass", "--entropy_bound", "--num_steps"),
    ],
    "verify": ["--workdir", "--json"],
}
OF_A_MEMORY = {
    "sample": [
        *("--memory", "--document", "--explain", "--forget", "--allow_other_model"),
    ],
    "evaluate": ["--memory", "--document", "--tune", "--allow_other_model"],
}
# Of those that other files test.
OTHERS = {
    "convert": ["--format", "--source", "--output", "--tokenizer", "--step"],
    "plan": ["--config", "--topology", "--json"],
    "grid": ["--study", "--workdir", "--point", "--gather", "--jobs"],
    "memory": ["--memory", "--workdir", "--step", "--json", "--split", "--k"],
    "playground": ["--workdir", "--step", "--port", "--host", "--export"],
    "systems.gssm.generate": ["--config", "--output", "--num_sequences"],
    "systems.gssm.entropy": ["--config", "--graph", "--kernels", "--tokens"],
    "systems.gssm.difficulty": ["--config", "--floor", "--bigram_gap", "--output"],
    "systems.gssm.probe": ["--workdir", "--step", "--num_sequences", "--figure"],
}


def run(name, *options, python=()):
    """A command as a user runs it, from the root of the repository."""
    return subprocess.run(
        [sys.executable, *python, "-m", f"jaxgpt.{name}", *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def contents(folder):
    """{path: bytes} of everything in a folder."""
    return {
        str(path.relative_to(folder)): path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(capfd):
    """Runs a command that must refuse: returns its one line, the only one there is."""

    def refused(command, *options):
        capfd.readouterr()
        message = refusal(command, [str(option) for option in options])
        printed = capfd.readouterr()
        assert (printed.out, printed.err) == ("", "")
        return message

    return refused


@pytest.fixture
def train_refused(refused, tmp_path):
    """Runs a training that must refuse, and leave no workdir."""

    def train_refused(*overrides):
        workdir = tmp_path / "new" / "run"
        overrides = [f"--config.{override}" for override in overrides]
        options = [f"--config={TINY}", f"--workdir={workdir}", *overrides]
        message = refused(train.command, *options)
        assert not workdir.parent.exists()
        return message

    return train_refused


@pytest.fixture
def read_refused(refused, trained):
    """Runs a command on the trained run that must refuse, and change nothing."""

    def read_refused(command, *options):
        before = contents(trained)
        message = refused(command, f"--workdir={trained}", *options)
        assert contents(trained) == before
        return message

    return read_refused


@pytest.fixture
def npy(tmp_path):
    def write(array, name="array.npy"):
        np.save(tmp_path / name, array, allow_pickle=True)
        return tmp_path / name

    return write


def flip_a_byte(workdir, step):
    files = (workdir / "checkpoints" / str(step) / "params").rglob("*")
    largest = max(files, key=lambda path: path.is_file() * path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


@pytest.fixture
def damaged(run_copy):
    """A run with one byte flipped in the parameters of its last checkpoint."""
    flip_a_byte(run_copy, 40)
    return run_copy


# Processes: the exit code, and all that is printed.


def assert_refused(process):
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("error: ")
    assert process.stderr.endswith("\n")
    assert "Traceback" not in process.stderr


@pytest.mark.process
def test_train_process_without_its_text(tmp_path):
    workdir = tmp_path / "run"
    text = tmp_path / "none.txt"
    options = [f"--config={TINY}", "--workdir", workdir, "--config.data.path", text]
    process = run("train", *options)
    assert_refused(process)
    assert process.stderr.count("\n") == 1
    assert str(text) in process.stderr
    assert not workdir.exists()


@pytest.mark.process
def test_train_process_in_the_workdir_of_another_config(run_copy):
    before = contents(run_copy)
    options = ["--config.model.n_layer=3", "--config.seed=5", "--config.steps=50"]
    process = run("train", f"--config={TINY}", f"--workdir={run_copy}", *options)
    assert_refused(process)
    first, *table = process.stderr.splitlines()
    assert f"'{run_copy}' belongs to another config" in first
    assert table == ["  seed: 1337 there, 5 now", "  model.n_layer: 2 there, 3 now"]
    assert contents(run_copy) == before


@pytest.mark.process
@pytest.mark.parametrize("name", ["evaluate", "sample", "verify"])
def test_process_that_reads_a_run(name, trained, npy, tmp_path):
    file = npy(np.full((2, 8), 65))
    before, there = contents(trained), contents(tmp_path)
    workdir, option, expected = {
        "evaluate": (trained, f"--tokens={file}", f"'{file}' holds ids outside the 65"),
        "sample": (trained, "--prompt=ROMEO€", "'€' (at 5)"),
        "verify": (tmp_path / "none", "--json=-", f"'{tmp_path}/none' holds no run"),
    }[name]
    process = run(name, f"--workdir={workdir}", option)
    assert_refused(process)
    assert process.stderr.count("\n") == 1
    assert expected in process.stderr
    assert (contents(trained), contents(tmp_path)) == (before, there)


ALL = [*COMMANDS, *OTHERS]


@pytest.mark.process
@pytest.mark.parametrize("name", ALL)
def test_help_loads_nothing_heavy(name):
    process = run(name, "--helpfull", python=["-X", "importtime"])
    assert process.returncode == 0
    assert process.stdout.startswith(f"usage: python -m jaxgpt.{name} ")
    loaded = {line.split("|")[-1].strip() for line in process.stderr.splitlines()}
    assert "jaxgpt.cli" in loaded
    tops = {module.split(".")[0] for module in loaded}
    heavy = {"jax", "jaxlib", "flax", "torch", "numpy", "matplotlib", "h5py"}
    assert not tops & heavy


def help_of(capsys, name, *options):
    """What a command prints, and the options that have a line of their own in it."""
    command = importlib.import_module(f"jaxgpt.{name}").command
    with pytest.raises(SystemExit) as caught:
        command([*options])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    return text, set(re.findall(r"^  (?:-h, )?(--\w+)", text, re.M))


@pytest.mark.parametrize("name", ALL)
def test_help_has_every_option_of_a_command_and_fits_two_screens(name, capsys):
    text, options = help_of(capsys, name, "--help")
    known = {"--help", "--helpfull", *(OPTIONS | OTHERS)[name]}
    assert options == known if name in OPTIONS else options >= known
    assert text.count("\n") <= 66
    assert "  memory." not in text


@pytest.mark.parametrize("name", ALL)
def test_helpfull_has_everything(name, capsys):
    text, options = help_of(capsys, name, "--helpfull")
    known = {"--help", "--helpfull", *(OPTIONS | OTHERS)[name]}
    known |= set(OF_A_MEMORY.get(name, ()))
    assert options == known if name in OPTIONS else options >= known
    none = ("convert", "verify", "grid", "playground", "systems.gssm.probe")
    fields = {command: [] for command in none}
    after = configs.keys_that("after_training")
    fields |= {"sample": after, "evaluate": after, "memory": after}
    for key in fields.get(name, configs.options()):
        assert f"\n  {key} (" in text


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_help_for_a_run_has_the_options_of_its_system(name, tmp_path, capsys):
    for system in ("memory", "causal"):
        config = configs.override(configs.base(), {"system": system})
        configs.save(config, tmp_path / "config.json")
        text, options = help_of(capsys, name, "--workdir", str(tmp_path), "-h")
        assert ("  memory.mode (" in text) == (system == "memory")
        if name == "sample":
            assert (set(OF_A_MEMORY[name]) <= options) == (system == "memory")
    # As is a memory that a causal run is given.
    given = [f"--workdir={tmp_path}", "--config.system=memory", "--help"]
    assert "  memory.mode (" in help_of(capsys, name, *given)[0]
    help_of(capsys, name, f"--workdir={tmp_path}/none", "--help")


def test_the_package_lists_its_commands(capsys):
    jaxgpt.__main__.command([])
    text = capsys.readouterr().out
    for name in ALL:
        assert re.search(rf"^{re.escape(name)} +\w", text, re.M)
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit) as ended:
            jaxgpt.__main__.command([option])
        assert not ended.value.code
        expected = text if option == "--help" else f"jaxgpt {jaxgpt.__version__}\n"
        assert capsys.readouterr().out == expected


def test_the_package_runs_its_commands(refused, monkeypatch, tmp_path):
    command = jaxgpt.__main__.command
    message = refused(verify.command, f"--workdir={tmp_path}")
    assert refused(command, "verify", f"--workdir={tmp_path}") == message
    assert refused(command, "trian") == (
        "unknown command 'trian': did you mean 'train'? (--help lists them)"
    )
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jaxgpt"])
    message = refused(command, "verify", f"--workdir={tmp_path}", "--colour=red")
    assert message.endswith("(see jaxgpt verify --help)")


# Usage.


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_option(refused, name):
    required = [f"--config={TINY}"] if name == "train" else ["--workdir=none"]
    message = refused(COMMANDS[name].command, *required, "--colour=red")
    assert "--colour=red" in message
    assert f"python -m jaxgpt.{name} --help" in message


@pytest.mark.parametrize("name", COMMANDS)
def test_required_option_missing(refused, name):
    required = "--config" if name == "train" else "--workdir"
    assert required in refused(COMMANDS[name].command)


def test_options_are_not_abbreviated(refused):
    assert "--work" in refused(verify.command, "--work=x", "--workdir=none")


# train


@pytest.mark.parametrize(
    "override, expected",
    [
        ("stepz=3", "unknown config key 'stepz': did you mean 'steps'"),
        ("model.n_layers=3", "did you mean 'model.n_layer'"),
        ("steps=1.5", "steps must be an integer, got '1.5'"),
        ("steps", "steps must be an integer, got ''"),
        ("model.bias=maybe", "model.bias must be true or false, got 'maybe'"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate must be >= 0, got -1"),
        ("system=rnn", "system must be one of sigma, sigma-task, masked-diffusion"),
        ("accumulation=3", "batch_size must be divisible by accumulation 3"),
        ("seed=99999999999999999999", "seed must be <= 4294967295, got"),
        ("model.n_head=5", "model.n_embd must be divisible by model.n_head 5"),
        ("model.vocab_size=3", "model.vocab_size 3 is less than the 65"),
        ("model.block_size=200000", "its val split has 111540 tokens"),
    ],
)
def test_train_with_a_wrong_field(train_refused, override, expected):
    assert expected in train_refused(override)


def test_train_sigma_with_an_odd_width(train_refused):
    message = train_refused("model.n_head=1", "model.n_embd=33")
    assert "model.n_embd 33 is odd" in message


def test_train_without_its_config_file(refused, tmp_path):
    workdir = tmp_path / "run"
    options = ["--config=configs/none.py:tiny", f"--workdir={workdir}"]
    assert "no config file 'configs/none.py'" in refused(train.command, *options)
    assert not workdir.exists()


def test_train_with_an_unknown_variant(refused, tmp_path):
    workdir = tmp_path / "run"
    message = refused(train.command, f"--config={TINY}x", f"--workdir={workdir}")
    assert "unknown variant ':tinyx': this config has :" in message
    assert ":tiny" in message.partition("this config has")[2]
    assert not workdir.exists()


@pytest.mark.parametrize(
    "content, expected",
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"short", "split has 4 tokens, a window needs 32"),
        (b"text \xff" * 99, "is not UTF-8 (near byte 5): line 1 has ff"),
    ],
)
def test_train_with_a_text_that_cannot_be_used(
    train_refused, tmp_path, content, expected
):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    message = train_refused(f"data.path={text}")
    assert f"'{text}'" in message
    assert expected in message


@pytest.mark.parametrize("below", ["", "/sub", "/sub/sub"])
def test_train_where_the_workdir_is_a_file(refused, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    options = [f"--config={TINY}", f"--workdir={file}{below}"]
    message = refused(train.command, *options)
    assert f"--workdir '{file}{below}' " in message
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_train_where_the_workdir_cannot_be_written(refused, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    options = [f"--config={TINY}", f"--workdir={folder}/run"]
    assert "cannot be written" in refused(train.command, *options)


def test_train_in_the_workdir_of_another_vocabulary(refused, run_copy, tmp_path):
    text = tmp_path / "text.txt"
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 65)))
    text.write_text(characters * 10, encoding="utf-8")
    before = contents(run_copy)
    options = [f"--config={TINY}", f"--workdir={run_copy}"]
    message = refused(train.command, *options, f"--config.data.path={text}")
    assert f"data.path '{text}' holds other data" in message
    assert contents(run_copy) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_train_in_a_workdir_with_a_damaged_file(refused, run_copy, name):
    (run_copy / name).write_text("{")
    before = contents(run_copy)
    message = refused(train.command, f"--config={TINY}", f"--workdir={run_copy}")
    assert f"'{run_copy / name}'" in message
    assert contents(run_copy) == before


# sample


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--prompt=a€b"], "'€' (at 1)"),
        (["--prompt=\udcff"], "'\\udcff' (at 0)"),
        (["--template=a<missing:3>€"], "'€' (at 12)"),
        (["--template=a<missing:3"], "'<' (at 1)"),
        *(
            ([f"--template=a{gap}b"], "write one of 12 tokens as <missing:12>")
            for gap in (
                "<missing>",
                "<missing:>",
                "<missing:-3>",
                "<missing: 3>",
                "<missing:x>",
                "<MISSING:3>",
                "<missing 3>",
                "<missing:3",
            )
        ),
        (["--template="], "--template is empty"),
        (
            ["--template=abc<missing:65534>"],
            "the template makes 65537 tokens, but only 65536 fit",
        ),
        (["--template=<missing:999999999999>"], "999999999999 tokens, but only 65536"),
        (["--template=<missing:" + "9" * 5000 + ">"], "5000 digits"),
        (["--template=<missing:0>"], "the text is empty"),
        (["--prompt=" + "a" * 33], "the prompt has 33 tokens, but only 32 fit"),
        (["--prompt=abc", "--max_new_tokens=65534"], "=65534 make 65537 tokens"),
        (["--max_new_tokens=1" + "0" * 30], "tokens, but only 65536 fit"),
        (["--prompt=ab", "--max_new_tokens=40", "--order=3,2"], "a text of 42 tokens"),
        (["--max_new_tokens=0"], "the text is empty"),
        (["--max_new_tokens=-1"], "--max_new_tokens must be >= 0, got -1"),
        (["--max_new_tokens=many"], "--max_new_tokens: invalid int value: 'many'"),
        (["--prompt=a", "--special_tokens"], "characters have no special tokens"),
        (["--special_tokens"], "needs --prompt, --template or --input"),
        (["--prompt=a", "--template=b"], "not allowed with argument --prompt"),
        (["--template=a<missing:3>", "--max_new_tokens=3"], "--max_new_tokens"),
        (["--temperature=-0.5"], "--temperature must be >= 0, got -0.5"),
        (["--temperature=nan"], "--temperature must be >= 0, got nan"),
        (["--num_samples=0"], "--num_samples must be >= 1, got 0"),
        (["--top_k=0"], "--top_k must be >= 1, got 0"),
        (["--top_p=0"], "--top_p must be in (0, 1], got 0"),
        (["--top_p=1.5"], "--top_p must be in (0, 1], got 1.5"),
        (["--temperature=inf"], "--temperature must be finite"),
        (["--num_orders=0", "--sampler=burst"], "--num_orders must be >= 1, got 0"),
        (["--num_orders=3"], "--num_orders needs --sampler=burst, got exact-burst"),
        (["--tokens_per_pass=3"], "needs --sampler=top-k-unmasking or entropy-bounded"),
        (["--sampler=top-k-unmasking", "--entropy_bound=1"], "entropy-bounded-unmask"),
        (["--sampler=top-k-unmasking", "--tokens_per_pass=0"], ">= 1, got 0"),
        (["--sampler=top-k-unmasking", "--order=random"], "which chooses its own"),
        (["--sampler=burst", "--order=fractal"], "--order is incompatible with"),
        (["--order=low-entropy-first"], "needs --sampler=ar"),
        (["--block_length=4"], "--block_length is for --order=block"),
        (["--order=block", "--block_length=0"], "--block_length must be >= 1"),
        (["--prompt=ab", "--max_new_tokens=2", "--order=2,2"], "each of the 2 missing"),
        (["--prompt=ab", "--max_new_tokens=2", "--order=1,2"], "--order=1,2 must name"),
        (["--prompt=ab", "--max_new_tokens=2", "--order=3,3"], "once, counted from 0"),
        (["--prompt=ab", "--max_new_tokens=2", "--order=3,3"], ": 3 is there twice"),
        (["--prompt=ab", "--max_new_tokens=2", "--order=2"], ": 3 is left out"),
        (["--prompt=ab", "--max_new_tokens=2", "--order=1,2"], ": 1 is not missing"),
        (["--prompt=ab", "--max_new_tokens=2", "--order=4,2"], "missing are 2-3"),
        (["--max_new_tokens=9", "--order=" + "9" * 9], "999999999 is not missing"),
        (["--order=2,3,4,"], "--order='2,3,4,' has '', which is not a position"),
        (["--order=2,,3,4"], "--order='2,,3,4' has '', which is not a position"),
        (["--order=²,3"], "has '²', which is not a position"),
        (["--order=٣"], "has '٣', which is not a position"),
        (["--order=" + "9" * 20], "which is not a position"),
        (["--order=" + "9" * 5000], "9...', which is not a position"),
        (["--order=+3"], "has '+3', which is not a position"),
        (["--order=3.0"], "has '3.0', which is not a position"),
        (["--order=0x3"], "has '0x3', which is not a position"),
        (["--order="], "--order: must not be empty"),
        (["--order= "], "--order: must not be empty"),
        (["--sampler="], "--sampler: must not be empty"),
        (["--image="], "--image: must not be empty"),
        (["--memory="], "--memory: must not be empty"),
        (["--step="], "--step: must not be empty"),
        (["--step=" + "9" * 5000], "no checkpoint '999"),
        (["--max_new_tokens=--"], "--max_new_tokens: invalid int value: '--'"),
        (["--max_new_tokens=٣"], "--max_new_tokens: invalid int value: '٣'"),
        (["--num_samples=99999999999"], "--num_samples must be <= 1048576"),
        (["--sampler=burst", "--num_orders=99999999999"], "--num_orders must be <="),
        (["--top_k=99999999999"], "--top_k must be <= 2147483647"),
        (["--temperature=1e39"], "--temperature must be finite, and at most 1e38"),
        (["--template=a<missing:3>", "--stop=b"], "--stop needs --prompt"),
        (["--seed=-1"], "--seed must be >= 0, got -1"),
        (["--seed=99999999999999999999"], "--seed must be <= 4294967295"),
        (["--order=sideways"], "block, low-entropy-first, got 'sideways'"),
        (["--prompt=a", "--order=curriculum"], "got 'curriculum'"),
        (["--prompt_ids=1,x"], "--prompt_ids must be like 3,1,4, got '1,x'"),
        (["--prompt_ids=1,2.5"], "--prompt_ids must be like 3,1,4"),
        (["--prompt_ids=1,2,"], "--prompt_ids must be like 3,1,4, got '1,2,'"),
        (["--prompt_ids=1,,2"], "--prompt_ids must be like 3,1,4, got '1,,2'"),
        (["--prompt_ids=²"], "--prompt_ids must be like 3,1,4, got '²'"),
        (["--prompt_ids=" + "9" * 5000], "--prompt_ids must be like 3,1,4, got '9"),
        (["--prompt_ids="], "--prompt_ids: must not be empty"),
        (["--prompt_ids=1,65"], "--prompt_ids must be in [0, 64], got '1,65'"),
        (["--prompt_ids=-1"], "--prompt_ids must be in [0, 64], got '-1'"),
        (["--prompt_ids=99999999999"], "'99999999999'"),
        (["--sampler=beam"], "--sampler"),
        (["--step=7"], "no checkpoint '7': there are best, last, 20, 40"),
        (["--step=first"], "no checkpoint 'first'"),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else "",
)
def test_sample_with_wrong_options(read_refused, options, expected):
    assert expected in read_refused(sample.command, *options)


@pytest.mark.parametrize("name", ["sample", "evaluate", "verify"])
def test_reading_where_there_is_no_run(refused, tmp_path, name):
    for workdir in (tmp_path / "none", tmp_path):
        message = refused(COMMANDS[name].command, f"--workdir={workdir}")
        assert f"'{workdir}' holds no run" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sample", "evaluate", "verify"])
def test_reading_a_run_without_checkpoints(refused, run_copy, name):
    shutil.rmtree(run_copy / "checkpoints")
    before = contents(run_copy)
    message = refused(COMMANDS[name].command, f"--workdir={run_copy}")
    assert "holds no finished checkpoint" in message
    assert contents(run_copy) == before


def test_sample_with_a_damaged_tokenizer(refused, run_copy):
    (run_copy / "tokenizer.json").write_text("{")
    message = refused(sample.command, f"--workdir={run_copy}", "--prompt=a")
    assert f"tokenizer file '{run_copy}/tokenizer.json' cannot be used" in message


def test_sample_without_a_tokenizer(refused, run_copy):
    (run_copy / "tokenizer.json").unlink()
    message = refused(sample.command, f"--workdir={run_copy}", "--prompt=a")
    assert "has no tokenizer: give token ids" in message


def test_sample_from_nothing_says_so_beside_the_text(trained, capsys):
    options = ["--max_new_tokens=8", "--num_samples=2", "--json=-"]
    sample.command([f"--workdir={trained}", *options])
    printed = capsys.readouterr()
    samples = json.loads(printed.out)["samples"]
    assert [len(s["tokens"]) for s in samples] == [8, 8]
    assert all(s["text"].startswith("\n") for s in samples)
    assert printed.err.startswith("note: ")


def test_sample_template_keeps_what_is_given(trained, capsys):
    options = ["--template=<missing:4>lord<missing:3>", "--order=fractal", "--json=-"]
    sample.command([f"--workdir={trained}", *options])
    (made,) = json.loads(capsys.readouterr().out)["samples"]
    assert len(made["text"]) == 11
    assert made["text"][4:8] == "lord"
    assert 1 <= made["model_calls"] <= 7
    assert made["accepted_per_call"] == pytest.approx(7 / made["model_calls"])
    assert made["token_evaluations"] >= 7
    assert made["log_probability"] < 0


def test_sample_one_by_one_takes_a_call_a_token(trained, capsys):
    options = ["--prompt=ROMEO:", "--max_new_tokens=9", "--sampler=ar", "--json=-"]
    sample.command([f"--workdir={trained}", *options])
    (made,) = json.loads(capsys.readouterr().out)["samples"]
    assert made["model_calls"] == made["token_evaluations"] == 9
    assert made["accepted_per_call"] == 1


def test_sample_in_a_list_of_positions_with_blanks(trained, capsys):
    options = ["--prompt=ab", "--max_new_tokens=3", "--sampler=ar", "--json=-"]
    texts = []
    for order in ("4,2,3", "4, 2, 3", " 4 ,2,3 "):
        sample.command([f"--workdir={trained}", *options, f"--order={order}"])
        texts.append(json.loads(capsys.readouterr().out)["samples"][0]["text"])
    assert len(set(texts)) == 1


@pytest.fixture
def no_checkpoint(tmp_path):
    """The workdir of a run, by its system, of which only config.json is left."""

    def no_checkpoint(system):
        folder = tmp_path / system
        folder.mkdir(exist_ok=True)
        config = configs.override(configs.base(), {"system": system})
        configs.save(config, folder / "config.json")
        return folder

    return no_checkpoint


@pytest.mark.parametrize(
    ("name", "system", "options", "expected"),
    [
        ("sample", "sigma", ["--sampler=beam"], "--sampler must be one of exact-"),
        ("sample", "sigma-task", ["--num_orders=3"], "--num_orders needs --sampler"),
        ("sample", "sigma", ["--sampler=burst", "--order=block"], "incompatible with"),
        ("sample", "sigma", ["--order=low-entropy-first"], "needs --sampler=ar"),
        ("sample", "sigma", ["--block_length=3"], "is for --order=block"),
        ("sample", "sigma", ["--order=1,"], "not a position"),
        ("sample", "causal", ["--sampler=burst"], "--sampler must be ar for this"),
        (
            "sample",
            "causal",
            ["--order=random"],
            "left-to-right for this model, got 'random'",
        ),
        ("sample", "gssm", ["--num_orders=3"], "--num_orders is for σ-GPT"),
        ("sample", "memory", ["--block_length=3"], "--block_length is for σ-GPT"),
        ("evaluate", "sigma", ["--eval_lengths"], "is for causal models"),
        ("evaluate", "sigma", ["--eval_lengths=1x"], "is for causal models"),
        ("evaluate", "causal", ["--num_orders=3"], "--num_orders is for σ-GPT"),
        ("evaluate", "causal", ["--tokens=a.npy", "--order=b.npy"], "--order is for σ"),
    ],
)
def test_what_a_system_has_not_is_refused_before_anything_is_loaded(
    refused, no_checkpoint, monkeypatch, name, system, options, expected
):
    # Where JAX is loaded.
    monkeypatch.setitem(sys.modules, f"jaxgpt.commands.{name}", None)
    workdir = f"--workdir={no_checkpoint(system)}"
    assert expected in refused(COMMANDS[name].command, workdir, *options)


def test_an_order_nobody_knows_is_refused_before_the_checkpoint(refused, no_checkpoint):
    workdir = f"--workdir={no_checkpoint('sigma')}"
    message = refused(sample.command, workdir, "--order=sideways")
    assert "block, low-entropy-first, got 'sideways'" in message


@pytest.mark.parametrize("order", ["left-to-right", "random"])
def test_sample_ends_with_the_stop_text(trained, capsys, order):
    options = [f"--workdir={trained}", "--prompt=ee", f"--order={order}", "--json=-"]
    sample.command(options)
    (whole,) = json.loads(capsys.readouterr().out)["samples"]
    stop = whole["text"][9:11]
    sample.command([*options, f"--stop={stop}"])
    (cut,) = json.loads(capsys.readouterr().out)["samples"]
    end = whole["text"].index(stop, 2) + 2
    assert cut["text"] == whole["text"][:end]
    assert len(cut["tokens"]) == end


def test_evaluate_likelihood_over_orders_and_infilling(trained, capsys):
    options = ["--num_orders=3", "--infill=0.25,0.5", "--json=-"]
    evaluate.command([f"--workdir={trained}", *options])
    found = json.loads(capsys.readouterr().out)
    assert found["loss_mixture"] <= found["loss_averaged"]
    assert found["order_deviation"] > 0
    assert set(found["infill"]) == {"0.25", "0.5"}
    assert set(found["infill"]["0.5"]) == {"nll", "nll_prefix", "match", "match_span"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--infill=1.5"], "must be shares in (0, 1), like 0.15,0.5, got '1.5'"),
        (["--infill=half"], "got 'half'"),
        (["--infill=nan"], "got 'nan'"),
        (["--infill=0.5,"], "got '0.5,'"),
        (["--infill=٠.٥"], "must be shares in (0, 1)"),
        (["--infill="], "--infill: must not be empty"),
        (["--eval_lengths="], "--eval_lengths: must not be empty"),
        (["--num_orders=99999999999"], "--num_orders must be <= 65536"),
        (["--tokens="], "--tokens: must not be empty"),
        (["--num_orders=0"], "--num_orders must be >= 1, got 0"),
        (["--num_orders=2", "--tokens=a.npy"], "incompatible with --tokens"),
        (["--split=val", "--tokens=a.npy"], "--split is incompatible with --tokens"),
        (["--split=val", "--template=[[a]]b"], "--split is incompatible with"),
        (["--split=val", "--memory=m", "--document=d"], "incompatible with --document"),
        (["--positions=a.png", "--tokens=a.npy"], "incompatible with --tokens"),
        (["--num_sequences=2"], "--num_sequences is for runs of a graph"),
        (["--num_sequences=0"], "--num_sequences must be >= 1, got 0"),
    ],
)
def test_evaluate_with_wrong_options_of_sigma(read_refused, options, expected):
    assert expected in read_refused(evaluate.command, *options)


# Damaged checkpoints.


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_reading_a_damaged_checkpoint_names_the_others(refused, damaged, name):
    before = contents(damaged)
    command = COMMANDS[name].command
    message = refused(command, f"--workdir={damaged}", "--step=last")
    assert f"checkpoint 40 of '{damaged}' is damaged" in message
    assert "there are 20" in message
    assert contents(damaged) == before


def test_sample_takes_the_checkpoint_that_is_whole(damaged, capsys):
    sample.command([f"--workdir={damaged}", "--step=20", "--prompt=a", "--json=-"])
    assert capsys.readouterr().out.startswith('{"samples"')


def test_verify_names_the_damaged_checkpoint(damaged, trained, capsys):
    before = contents(damaged)
    assert verify.command([f"--workdir={damaged}"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == "checkpoint 20: intact"
    assert second.startswith("checkpoint 40: ")
    assert "intact" not in second
    assert verify.command([f"--workdir={damaged}", "--json=-"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoints"] == [20, 40]
    assert list(found["damaged"]) == ["40"]
    assert contents(damaged) == before
    assert verify.command([f"--workdir={trained}"]) == 0


def test_train_resumes_before_the_damaged_checkpoint(damaged, trained, capsys):
    assert train.command([f"--config={TINY}", f"--workdir={damaged}"]) == 0
    said = capsys.readouterr().err
    assert "warning: checkpoint 40 is damaged" in said
    assert "using step 20" in said
    assert "resuming after step 20 of 40" in said
    assert (damaged / "checkpoints" / "40.damaged").is_dir()
    assert verify.command([f"--workdir={damaged}"]) == 0
    digests = "checkpoints/40/digests/metadata"
    assert (damaged / digests).read_text() == (trained / digests).read_text()


def test_train_stops_where_every_checkpoint_is_damaged(refused, damaged):
    flip_a_byte(damaged, 20)
    before = contents(damaged)
    message = refused(train.command, f"--config={TINY}", f"--workdir={damaged}")
    assert "no checkpoint in" in message
    assert "can be restored (step 40: " in message
    assert contents(damaged) == before


# evaluate


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.zeros((2, 8)), "must hold integers [rows, tokens]"),
        (np.zeros((2, 8), bool), "must hold integers"),
        (np.zeros(8, int), "must hold integers"),
        (np.zeros((2, 2, 2), int), "must hold integers"),
        (np.zeros((0, 8), int), "must hold integers"),
        (np.full((2, 8), 65), "holds ids outside the 65"),
        (np.full((2, 8), -1), "holds ids outside the 65"),
        (np.full((2, 8), 2**32), "holds ids outside the 65"),
        (np.full((2, 8), 2**63, np.uint64), "holds ids outside the 65"),
        (np.zeros((2, 33), int), "has rows of 33 tokens: 2 to 32 fit"),
        (np.zeros((2, 1), int), "has rows of 1 tokens"),
    ],
)
def test_evaluate_tokens_that_cannot_be_scored(read_refused, npy, array, expected):
    file = npy(array)
    message = read_refused(evaluate.command, f"--tokens={file}")
    assert f"'{file}' " in message
    assert expected in message


@pytest.mark.parametrize(
    "order",
    [
        np.zeros((2, 8), int),
        np.tile(np.arange(1, 9), (2, 1)),
        np.tile(np.arange(8), (1, 1)),
        np.tile(np.arange(7), (2, 1)),
        np.tile(np.arange(8), (2, 1)) + 2**32,
    ],
)
def test_evaluate_order_that_is_no_permutation(read_refused, npy, order):
    tokens, file = npy(np.zeros((2, 8), int)), npy(order, "order.npy")
    options = [f"--tokens={tokens}", f"--order={file}"]
    message = read_refused(evaluate.command, *options)
    assert f"'{file}' must be orders" in message
    assert "0 .. 7 once" in message


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"PK\3\4 no archive", b"<!DOCTYPE html>\n", b"\x93NUMPY\1\0v\0{"],
)
def test_evaluate_file_that_is_no_npy(read_refused, tmp_path, content):
    file = tmp_path / "tokens.npy"
    file.write_bytes(content)
    message = read_refused(evaluate.command, f"--tokens={file}")
    assert f"'{file}' is not an .npy file of integers" in message
    assert "pickle" not in message


@pytest.mark.parametrize("shape, padding", [((10**12, 9), 0), ((2, 8), 20_000)])
def test_evaluate_npy_with_an_outrageous_header(read_refused, tmp_path, shape, padding):
    fields = {"descr": "<i8", "fortran_order": False, "shape": shape}
    header = (repr(fields) + " " * padding + "\n").encode()
    file = tmp_path / "tokens.npy"
    file.write_bytes(
        b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + b"\0" * 128
    )
    message = read_refused(evaluate.command, f"--tokens={file}")
    assert f"'{file}' is not an .npy file of integers" in message
    assert "pickle" not in message


def test_evaluate_npy_that_is_missing_or_a_folder(read_refused, tmp_path):
    for file in (tmp_path / "none.npy", tmp_path):
        assert f"'{file}'" in read_refused(evaluate.command, f"--tokens={file}")


def test_evaluate_never_loads_a_pickle(read_refused, npy, tmp_path, bomb):
    objects = npy(np.array([[bomb, bomb]], object))
    plain = tmp_path / "plain.npy"
    plain.write_bytes(pickle.dumps(bomb))
    tokens = npy(np.zeros((2, 8), int), "tokens.npy")
    for file in (objects, plain):
        for options in (
            [f"--tokens={file}"],
            [f"--tokens={tokens}", f"--order={file}"],
        ):
            message = read_refused(evaluate.command, *options)
            assert f"'{file}' is not an .npy" in message
            assert "allow_pickle" not in message


@pytest.mark.parametrize("option", ["--order", "--logits"])
def test_evaluate_options_that_need_tokens(read_refused, option):
    assert "needs --tokens" in read_refused(evaluate.command, f"{option}=x.npy")


def test_evaluate_logits_that_cannot_be_written(read_refused, npy, tmp_path):
    tokens = npy(np.zeros((2, 8), int))
    (tmp_path / "folder.npy").mkdir()
    for logits in (tmp_path / "none" / "x.npy", tmp_path / "folder.npy"):
        options = [f"--tokens={tokens}", f"--logits={logits}"]
        message = read_refused(evaluate.command, *options)
        assert f"--logits='{logits}'" in message


def test_evaluate_unknown_split(read_refused):
    assert "'all'" in read_refused(evaluate.command, "--split=all")


def test_evaluate_a_split_that_the_data_has_not(read_refused):
    message = read_refused(evaluate.command, "--split=test")
    assert "set data.test_fraction" in message


def test_evaluate_where_the_text_is_gone_or_another(refused, run_copy, tmp_path):
    text = tmp_path / "text.txt"
    edit_config(run_copy, data={"path": str(text)})
    message = refused(evaluate.command, f"--workdir={run_copy}")
    assert f"data.path '{text}' does not exist" in message
    text.write_text("abcd" * 200)
    message = refused(evaluate.command, f"--workdir={run_copy}")
    assert f"data.path '{text}' holds other data" in message


def test_evaluate_scores_tokens_in_any_order_and_dtype(trained, npy, tmp_path, capsys):
    tokens = np.arange(16).reshape(2, 8)
    scores = []
    for dtype in (np.int64, np.uint16):
        order = np.tile(np.arange(8)[::-1], (2, 1)).astype(dtype)
        options = [
            f"--tokens={npy(tokens.astype(dtype))}",
            f"--order={npy(order, 'order.npy')}",
            f"--logits={tmp_path / 'logits'}",
        ]
        evaluate.command([f"--workdir={trained}", "--json=-", *options])
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1]
    assert scores[0]["tokens"] == 14
    logits = np.load(tmp_path / "logits")
    assert (logits.shape, logits.dtype) == ((2, 7, 65), np.float32)
