"""The notebooks of docs/: they run, and what is committed is what a run printed.

The cells of all run in this process: a kernel for each would import JAX once more and
compile without what other tests have compiled.
"""

import json
import re
import sys
import types
import unittest.mock

import matplotlib
import matplotlib.pyplot as plt
import pytest

from jaxgpt.model.config import POSITIONS
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
# Absolute paths and addresses in memory.
MACHINE = re.compile(r"(?<![\w.>])[/~]\w+/|\b[A-Z]:\\|0x[0-9a-f]{6}")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.trains
@each
def test_it_runs_from_top_to_bottom(path, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXGPT_NOTEBOOK_SIZE", "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    # A notebook's own names are those of the module __main__.
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    with unittest.mock.patch.dict(POSITIONS), matplotlib.rc_context():
        for number, cell in enumerate(cells(path, "code"), 1):
            name = f"{path.name}, code cell {number}"
            exec(compile(source(cell), name, "exec"), module.__dict__)


@each
def test_its_outputs_are_those_of_one_run_without_errors(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert len(outputs) > 2
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"


@each
def test_it_says_nothing_of_the_machine_it_ran_on(path):
    notebook = json.loads(path.read_text())
    metadata = notebook["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert {*metadata} == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        texts = [source(cell)]
        for output in cell.get("outputs", ()):
            texts.append("".join(output.get("text", ())))
            texts.append("".join(output.get("data", {}).get("text/plain", ())))
        assert not [text for text in texts if MACHINE.search(text)]
        assert not cell["metadata"], "when a cell ran"


@each
def test_it_says_what_it_shows_and_where_to_go_on(path):
    texts = [source(cell) for cell in cells(path, "markdown")]
    assert texts[0].startswith("# ") and "This notebook" in texts[0]
    assert texts[-1].startswith("## Where to go on") and "](../" in texts[-1]
    assert "JAXGPT_NOTEBOOK_SIZE" in source(cells(path, "code")[0])
