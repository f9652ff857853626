"""The wheel, installed on its own and used in a folder that holds nothing of ours."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from jaxgpt import __version__
from tests.conftest import ROOT

SHIPPED = ("configs", "data", "studies")
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "jaxgpt", *SHIPPED)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
# One process for all the lines: each command would import JAX for itself.
EACH_LINE = """
import sys
from jaxgpt import __main__, backend
backend.set_up_jax()
for line in sys.stdin:
    print(line, end="", flush=True)
    assert not __main__.command(line.split())
"""
SHORT = (
    "--config.steps=2 --config.eval_interval=2 --config.checkpoint_interval=2 "
    "--config.eval_sequences=4"
)
COMMANDS = f"""\
sample --workdir=runs/sigma_char-tiny --template=First<missing:8>speak --json=-
convert --workdir=runs/sigma_char-tiny --format=sigma-gpt --output=weights.npz
convert --workdir=back --format=sigma-gpt --source=weights.npz --source_config=c.json
train --config=configs/teeny_char.py:tiny --config.data.tokenizer=gpt2 {SHORT}
train --config=memory_recall:tiny {SHORT}
train --config=gssm_debug:tiny {SHORT}
systems.gssm.generate --config=gssm_easy:tiny --num_sequences=4 --output=easy.h5
systems.gssm.entropy --graph=data/graphs/easy.yaml --num_sequences=4
grid --study=studies/gssm_modes.yaml --gather
"""
SIZE = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 32, "vocab_size": 65}


def run(*words, **options):
    words = [str(word) for word in words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources: building writes beside them."""
    copy, built = (tmp_path_factory.mktemp(name) for name in ("sources", "built"))
    for name in SOURCES:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", built)
    run(*PIP, "wheel", ".", *options, cwd=copy)
    (file,) = built.iterdir()
    return file


@pytest.mark.process
def test_the_wheel_holds_all_that_is_shipped_and_nothing_else(wheel):
    assert wheel.name == f"jaxgpt-{__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 4 << 20
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    # What is there or will be committed, but not the ignored data/plays.
    listing = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    names = {*run(*listing, "jaxgpt", *SHIPPED, cwd=ROOT).splitlines()}
    code = {name for name in names if name.startswith("jaxgpt/")}
    assert held == code | {f"jaxgpt/shipped/{name}" for name in names - code}


@pytest.mark.process
@pytest.mark.trains
def test_each_kind_of_command_from_the_wheel_alone(wheel, tmp_path):
    target, here = tmp_path / "installed", tmp_path / "here"
    options = ("--no-deps", "--no-index", "--target", target)
    run(*PIP, "install", *options, wheel, cwd=tmp_path)
    here.mkdir()
    (here / "c.json").write_text(json.dumps(SIZE))
    alone = {"cwd": here, "env": os.environ | {"PYTHONPATH": str(target)}}
    train = ("train", "--config=sigma_char:tiny", *SHORT.split())
    run(target / "bin" / "jaxgpt", *train, **alone)
    printed = run(sys.executable, "-c", EACH_LINE, input=COMMANDS, **alone)
    sample = next(line for line in printed.splitlines() if line.startswith("{"))
    text = json.loads(sample)["samples"][0]["text"]
    assert (text[:5], text[13:]) == ("First", "speak")
    runs = here / "runs"
    assert {path.name for path in runs.iterdir()} == {
        *("sigma_char-tiny", "teeny_char-tiny", "memory_recall-tiny"),
        *("gssm_debug-tiny", "gssm_modes"),
    }
    assert {path.name for path in here.iterdir()} >= {"back", "easy.h5"}
    config = json.loads((runs / "sigma_char-tiny" / "config.json").read_text())
    assert config["data"]["path"] == str(target / "jaxgpt/shipped/data/shakespeare.txt")
