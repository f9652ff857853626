import sys
import types

import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt.errors import UserError
from jaxgpt.systems.sigma.tasks import dataset
from jaxgpt.systems.sigma.tasks.system import make_task
from scripts import prepare_digits


def test_digits_become_a_folder_to_train_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    label = np.arange(600) % 10
    image = np.random.default_rng(0).integers(0, 5, (600, 3, 10)).astype(float)
    image[np.arange(600), :, label] = 16
    image[-1, :, label[-1]], image[-1, :, 0] = 0, 16  # The judge cannot name this one.
    digits = types.SimpleNamespace(images=image, target=label)
    package = types.SimpleNamespace(load_digits=lambda: digits)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", package)
    folder = tmp_path / "made" / "digits"
    prepare_digits.command([f"--output={folder}"])
    said = capsys.readouterr().err
    assert "600 images, 297 of them held out" in said and "names 0.997 right" in said
    changes = {"task.path": str(folder), "task.class_conditional": "true"}
    config = configs.load("sigma_task:mnist", changes)
    data = dataset.open_data(make_task(config), config)
    assert [len(rows) for rows in data.splits.values()] == [303, 297]
    tokens, known = dataset.unmark(data.eval_windows("train", 31, 5))
    assert tokens[:, 0].tolist() == [16, 17, 18, 19, 20]
    np.testing.assert_array_equal(tokens[:, 1:], image[:5].reshape(5, -1).clip(0, 15))
    assert known.sum(1).tolist() == [1] * 5


def test_without_the_package_it_says_which_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        prepare_digits.command([f"--output={tmp_path}"])
