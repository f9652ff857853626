import pytest

from tests.conftest import ROOT

RECALL = f"{ROOT}/configs/memory_recall.py:tiny"
PLAYS = f"{ROOT}/configs/memory_gpt2.py:tiny"
WORDS = ["the", "queen", "of", "night", "sings", "and", "no", "king", "dares", "speak"]


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """A folder of five short documents, train and val."""
    import numpy as np

    folder = tmp_path_factory.mktemp("documents")
    rng = np.random.default_rng(0)
    for number in range(5):
        part = folder / ("val" if number < 2 else "train")
        part.mkdir(exist_ok=True)
        text = " ".join(rng.choice(WORDS, 120))
        (part / f"play-{number}.txt").write_text(text + ".\n")
    return folder


@pytest.fixture(scope="session")
def played(documents, tmp_path_factory):
    """The workdir of configs/memory_gpt2.py:tiny, trained; not to be changed."""
    from jaxgpt import backend, config
    from jaxgpt.commands.train import train

    workdir = tmp_path_factory.mktemp("played") / "run"
    backend.set_up_jax()
    assert train(config.load(PLAYS, {"data.path": str(documents)}), workdir) == 0
    return workdir
