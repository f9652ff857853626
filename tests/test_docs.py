"""The commands of README.md and docs/: each is one that works, in the order given.

Every page is followed in a folder of its own, by somebody who does what it says from
its top to its end. What a command computes is replaced by the files that the next ones
look for; options, configs and what a folder holds are checked by the commands' code.
"""

import importlib
import json
import os
import pathlib
import re
import shlex
import tomllib

import pytest

import jaxgpt
from jaxgpt import api
from jaxgpt import config as configs
from jaxgpt.errors import UserError
from jaxgpt.training.resume import check_same_config
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What stands for the reader's own: the run that the page trained last, and a step.
STAND_INS = {"=(DIR|RUN)$": "={run}", "=STEP$": "=1"}
# Runs whose making a page tells in words.
TOLD = ("runs/any", "runs/diverged")
SHRUNK = {
    "model.n_layer": "1",
    "model.n_embd": "32",
    "model.n_head": "2",
    "steps": "2",
    "batch_size": "4",
    "eval_sequences": "4",
    "log_interval": "1",
}


def commands(page):
    """The commands of a page, in its order: [(module or program, its options)]."""
    found = []
    text = page.read_text().replace("\\\n", " ")
    code = r"^    (?:\$ )?((?:python|make|pip|source|jaxgpt) .*)$"
    inline = r"`(python -m jaxgpt\.\w+\s[^`]*--workdir=runs/[^`]*)`"
    for match in re.finditer(f"{code}|{inline}", text, re.M):
        for line in re.split(r" && ", match[1] or match[2]):
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"]:
                words = words[2:]
            found.append((words[0], words[1:]))
    return found


class Reader:
    """Somebody in a clone of the repository, whose commands compute nothing."""

    def __init__(self, monkeypatch):
        self.run = TOLD[0]
        for run in TOLD:
            pathlib.Path(run).mkdir(parents=True)
            configs.save(configs.base(), pathlib.Path(run) / "config.json")
        for name in ("configs", "data", "studies", "scripts"):
            os.symlink(ROOT / name, name)
        others = ("sample", "evaluate", "plan", "grid", "memory_files")
        replaced = dict.fromkeys(others, lambda *_: 0)
        replaced |= {"train": self.trained, "convert": self.converted}
        for name, execute in replaced.items():
            monkeypatch.setattr(f"jaxgpt.commands.{name}.execute", execute)
        for name in ("serve", "export"):
            monkeypatch.setattr(f"jaxgpt.web.{name}.execute", lambda *_: None)
        pathlib.Path("notes.memory").touch()
        monkeypatch.setattr("jaxgpt.memory.show", lambda *_: None)
        monkeypatch.setattr("jaxgpt.commands.verify.damaged_arrays", lambda *_: {})
        unchanged = lambda *_: False
        monkeypatch.setattr("jaxgpt.training.resume.changes_arrays", unchanged)

    def follow(self, program, options):
        """Does what a command does, or raises."""
        for wanted, given in STAND_INS.items():
            given = given.format(run=self.run)
            options = [re.sub(wanted, given, option) for option in options]
        if program == "jaxgpt":
            program, options = f"jaxgpt.{options[0]}", options[1:]
        if program.startswith("jaxgpt."):
            command = importlib.import_module(program).command
            if not program.startswith("jaxgpt.systems."):
                assert not command(options)
                self.look_at_runs(program, options)
        elif program.startswith(("benchmarks.", "scripts.", "parity_tests.")):
            source = (ROOT / f"{program.replace('.', '/')}.py").read_text()
            for option in options:
                assert f'"{option.partition("=")[0]}"' in source
        elif program == "make":
            makefile = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{options[0]}:", makefile, re.M)
            if options == ["train"]:
                line = next(x for x in makefile.splitlines() if "jaxgpt.train" in x)
                self.follow("jaxgpt.train", line.split("jaxgpt.train ")[1].split())
        elif program.endswith("pip"):
            if options == ["install", "scikit-learn"]:  # The digits are its own.
                return
            extras = re.fullmatch(r"\.(?:\[(.*)\])?|jaxgpt\[(.*)\]", options[-1])
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            named = (extras[1] or extras[2] or "").split(",")
            assert {*named} <= {*known["optional-dependencies"], ""}
        elif program == "python":
            assert (ROOT / options[0]).exists()
        else:
            known = {"source": ".venv/bin/activate", "venv": ".venv"}
            assert options == [known[program]]

    def look_at_runs(self, program, options):
        """Raises where a command reads a folder that nothing has made."""
        given = dict(o.removeprefix("--").split("=", 1) for o in options if "=" in o)
        if program in ("jaxgpt.sample", "jaxgpt.evaluate", "jaxgpt.verify"):
            configs.load_frozen(pathlib.Path(given["workdir"]))

    def trained(self, args, config, workdir, allowed, given, smaller):
        folder = pathlib.Path(workdir)
        if (folder / "config.json").exists():
            old = configs.load_frozen(folder)
            check_same_config(old, config, folder, allowed)
        folder.mkdir(parents=True, exist_ok=True)
        configs.save(config, folder / "config.json")
        self.run = workdir
        return 0

    def converted(self, args):
        folder = pathlib.Path(args.workdir)
        if args.source:
            assert not folder.exists(), f"{folder} holds a run: nothing is imported"
            folder.mkdir(parents=True)
            config = configs.override(configs.base(), {"system": "causal"})
            configs.save(config, folder / "config.json")
        else:
            configs.load_frozen(folder)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Reader(monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_work_in_its_order(page, reader, capsys):
    for program, options in commands(page):
        if any("..." in option for option in options):
            continue  # An example of one option.
        try:
            reader.follow(program, options)
        except (AssertionError, UserError) as error:
            raise AssertionError(f"{program} {' '.join(options)}: {error}") from error


def test_commands_are_found():
    found = commands(ROOT / "README.md")
    assert found[:2] == [("make", ["train"]), ("source", [".venv/bin/activate"])]
    found = commands(ROOT / "docs" / "start.md")
    assert ("make", ["train"]) in found
    assert ("jaxgpt.verify", ["--workdir=runs/quickstart"]) in found
    assert sum(len(commands(page)) for page in PAGES) > 70


def test_the_same_folder_for_another_config_is_noticed(reader):
    quickstart = "--config=configs/quickstart.py"
    reader.follow("jaxgpt.train", [quickstart])
    with pytest.raises(UserError, match="belongs to another config"):
        reader.follow("jaxgpt.train", [quickstart, "--config.sigma.order=curriculum"])
    with pytest.raises(UserError, match="holds no run"):
        reader.follow("jaxgpt.sample", ["--workdir=runs/other"])


# What somebody reads who has done `make train`.
FIRST = ("README", "start", "your-text", "training", "sampling", "evaluation")


@pytest.fixture
def own_text(tmp_path, monkeypatch):
    """A folder with a text of one's own, and what the repository has."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "data"):
        os.symlink(ROOT / name, name)
    words = "the quick brown fox jumps over the lazy dog, my lord Once\n"
    pathlib.Path("my_text.txt").write_text(words * 100)
    lines = re.search(
        r"```json\n(.*?)```", (ROOT / "docs/sampling.md").read_text(), re.S
    )
    pathlib.Path("F.jsonl").write_text(lines[1])


@pytest.mark.trains
@pytest.mark.unoptimised
def test_the_first_pages_from_make_train_to_verify(own_text, capsys, monkeypatch):
    """What they do with the run of `make train`, in small."""
    # The playground would wait for a browser, at a port that may be taken.
    monkeypatch.setattr("jaxgpt.web.serve.execute", lambda args: None)
    shrunk = [f"--config.{key}={value}" for key, value in SHRUNK.items()]
    quickstart = "--config=configs/quickstart.py"
    done = []
    pages = [page for page in PAGES if page.stem in FIRST]
    assert len(pages) == len(FIRST)
    found = [("jaxgpt.train", [quickstart])]
    found += [command for page in pages for command in commands(page)]
    for program, options in found:
        named = ("runs/quickstart", "runs/mine", quickstart)
        of_the_run = any(name in option for option in options for name in named)
        if not program.startswith("jaxgpt.") or not of_the_run:
            continue
        if any("..." in option for option in options):
            continue
        training = []
        if program == "jaxgpt.train":
            given = {option.partition("=")[0] for option in options}
            training = [o for o in shrunk if o.partition("=")[0] not in given]
        options = [re.sub("=RUN$", "=runs/quickstart", option) for option in options]
        print(program, options)
        assert not importlib.import_module(program).command([*options, *training])
        done.append(program)
    assert done.count("jaxgpt.train") >= 3
    assert done.count("jaxgpt.sample") >= 3
    assert {"jaxgpt.evaluate", "jaxgpt.verify"} <= set(done)
    frozen = json.loads(pathlib.Path("runs/mine/config.json").read_text())
    assert frozen["data"]["path"].endswith("my_text.txt")


@pytest.mark.trains
@pytest.mark.unoptimised
def test_the_python_of_the_pages(own_text, monkeypatch, capsys):
    """README.md and docs/api.md, from top to bottom, with a small model."""
    config = api.config
    small = lambda spec, **changes: config(spec, **SHRUNK | changes)
    monkeypatch.setattr(api, "config", small)
    jaxgpt.train(jaxgpt.config("quickstart"), "runs/quickstart")
    for page in ("README.md", "docs/api.md"):
        names: dict = {}
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
        for block in blocks:
            exec(block, names)
        assert names["run"].step and blocks
    assert names["found"].per_order.shape == (32,)
    assert names["run"].config.data.path.endswith("my_text.txt")
