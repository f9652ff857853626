import json
import os
import pathlib
import shutil

import pytest

from jaxgpt.errors import UserError
from tests.suite import *  # noqa: F403 - hooks and fixtures

ROOT = pathlib.Path(__file__).parents[1]
TINY = f"{ROOT}/configs/sigma_char.py:tiny"


def refusal(function, *arguments, **options):
    """The one line of the UserError that a call must raise."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def last_json(capsys):
    """The JSON object that a command has printed as its last line."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def source_config(folder, settings):
    """The option of convert that names an original's settings, written as JSON."""
    file = folder / "source_config.json"
    file.write_text(json.dumps(settings))
    return f"--source_config={file}"


def edit_config(workdir, **groups):
    """Changes fields in the config.json of a run, by their group."""
    file = workdir / "config.json"
    config = json.loads(file.read_text())
    for group, fields in groups.items():
        config[group] |= fields
    file.write_text(json.dumps(config))


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory):
    """Tokens and compiled programs of a test session: nothing goes to ~/.cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield pathlib.Path(os.environ["JAXGPT_CACHE"])


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache that only this test writes to: the folder of tokenised texts."""
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "own_cache"))
    return tmp_path / "own_cache" / "text"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The workdir of configs/sigma_char.py:tiny, trained; not to be changed."""
    from jaxgpt import backend, config
    from jaxgpt.commands.train import train

    workdir = tmp_path_factory.mktemp("trained") / "run"
    backend.set_up_jax()
    assert train(config.load(TINY, {}), workdir) == 0
    return workdir


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """The workdir of the same run in a process that nothing happened to."""
    from tests.faults import finish, start

    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert finish(start(workdir))[0] == 0
    return workdir


@pytest.fixture
def run_copy(trained, tmp_path):
    """A copy of the trained run, for tests that change it."""
    return shutil.copytree(trained, tmp_path / "run")


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def bomb(tmp_path):
    """An object whose unpickling makes the folder `bomb.folder`, watched for."""
    bomb = Bomb(tmp_path / "exploded")
    yield bomb
    assert not os.path.exists(bomb.folder), "a pickle was loaded"
