"""Reads studies: which runs they have, what distinguishes them, and their results."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import re
import sys
from typing import Any

import yaml

from jaxgpt import config as configs
from jaxgpt.commands.power_law import FORMS
from jaxgpt.errors import UserError, require
from jaxgpt.systems.gssm import handmade
from jaxgpt.systems.gssm.graph_files import load_graph
from jaxgpt.training.cost import read_cost
from jaxgpt.training.metrics import out_of_patience, read_rows

KEYS = {
    "config": str, "overrides": dict, "grid": dict, "points": list, "x": str, "y": str,
    "lines": str, "title": object, "test": int, "fit": str,
}  # fmt: skip
FIELDS = "a mapping of config fields"
# Of results.csv: x may be one of these instead of a field of the grid.
SIZES = ("parameters", "flops_per_token", "flops", "tokens")
# Figures of evaluate that follow from the others.
LEFT_OUT = ("perplexity", "bits_per_token", "tokens")
# A longer value is shown by its place among those of its field.
LONGEST = 24
# Fields that training resolves, so that a run's config differs from the study's.
RESOLVED = ("data.path", "data.tokenizer", "task.path", "gssm.kernels")


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked study; config to fit are the keys of its file.

    `changes` has the overrides by which the runs differ, `points` all overrides of
    each. grid and x are empty where the file lists its points.
    """

    name: str
    config: str
    grid: dict[str, list]
    changes: list[dict[str, str]]
    points: list[dict[str, str]]
    x: str
    y: str
    lines: str
    title: str
    test: int
    fit: str

    def label(self, point: int) -> str:
        """Returns what a point changes, for people to read."""
        parts = [
            f"{short_key(key)}={self.short(key, value)}"
            for key, value in self.changes[point].items()
        ]
        return "-".join(parts) or "unchanged"

    def short(self, key: str, value: str) -> str:
        """Returns a value as shown in names: v2 for the second long one of a field."""
        text = short(value)
        if len(text) <= LONGEST:
            return text
        known = dict.fromkeys(str(change.get(key)) for change in self.changes)
        return f"v{1 + [*known].index(value)}"

    def workdir(self, folder: pathlib.Path, point: int) -> pathlib.Path:
        """Returns the folder of a point's run."""
        name = re.sub(r"[^\w.=+-]+", "_", self.label(point))[:100]
        old = re.sub(r"[^\w.=-]+", "_", self._old_label(point))[:100]
        before = folder / f"{point:03}-{old}"
        return before if before.is_dir() else folder / f"{point:03}-{name}"

    def _old_label(self, point: int) -> str:
        """Returns the label in folders of older versions, which are still found."""
        parts = []
        for key, value in self.changes[point].items():
            shown = value if _is_number(value) else pathlib.Path(value).stem
            parts.append(f"{key.rsplit('.', 1)[-1]}={shown}")
        return "-".join(parts) or "unchanged"

    def train_command(self, folder: pathlib.Path, point: int) -> list[str]:
        """Returns the command that trains a point."""
        overrides = [f"--config.{k}={v}" for k, v in self.points[point].items()]
        command = [sys.executable, "-m", "jaxgpt.train", f"--config={self.config}"]
        return [*command, f"--workdir={self.workdir(folder, point)}", *overrides]

    def test_command(self, folder: pathlib.Path, point: int) -> list[str]:
        """Returns the command that measures a trained point on its test split."""
        command = [sys.executable, "-m", "jaxgpt.evaluate", "--split=test"]
        command += [f"--workdir={self.workdir(folder, point)}", "--step=last"]
        return [*command, f"--num_sequences={self.test}", "--json=-"]

    def test_file(self, folder: pathlib.Path, point: int) -> pathlib.Path:
        """Returns where the output of `test_command` is kept."""
        return self.workdir(folder, point) / f"test-{self.test}.json"

    def last_row(self, folder: pathlib.Path, point: int) -> dict[str, Any] | None:
        """Returns the last metrics of a point's run, None unless it is finished.

        Raises:
          UserError: if the run has more steps than the point.
        """
        workdir = self.workdir(folder, point)
        rows = read_rows(workdir)
        # A run killed in its last evaluation has a row of the last step without one.
        if not rows or "val_loss" not in rows[-1]:
            return None
        c = configs.load(self.config, self.points[point])
        step = rows[-1]["step"]
        if step > c.steps:
            raise UserError(
                f"'{workdir}' has trained {step} steps, and the study says {c.steps}: "
                "use another --workdir"
            )
        ended = step == c.steps or out_of_patience(rows, c.patience)
        return rows[-1] if ended and self._is_run_of(workdir, point) else None

    def _is_run_of(self, workdir: pathlib.Path, point: int) -> bool:
        """Returns whether a run has the overrides of a point; train refuses others."""
        if not (workdir / "config.json").exists():
            return False
        wanted = configs.load(self.config, self.points[point])
        frozen = configs.load_frozen(workdir)
        keys = {"gssm.graph" if "gssm.nodes." in k else k for k in self.points[point]}
        keys -= {*configs.keys_that("resumable"), *RESOLVED}
        if "gssm.graph" in keys:
            if made := handmade.read(wanted.gssm.graph):
                configs.override(wanted, made.fields())
                keys.add("gssm.kernels")
            wanted.gssm.graph = load_graph(wanted.gssm.graph).to_json()
        return not configs.differences(frozen, wanted).keys() & keys

    def result(self, folder: pathlib.Path, point: int) -> dict[str, Any] | None:
        """Returns a point's cost, last metrics and test figures; None until finished.

        What its run has not recorded is left out.
        """
        row = self.last_row(folder, point)
        if row is None:
            return None
        cost, tested = read_cost(self.workdir(folder, point)), {}
        if "flops_per_token" in cost:
            cost["flops"] = cost["flops_per_token"] * row["tokens"]
        if self.test:
            try:
                found = json.loads(self.test_file(folder, point).read_text())
            except (OSError, ValueError):
                return None
            if found["step"] != row["step"]:
                return None
            tested = {"test_sequences": self.test} | {
                f"test_{name}": value
                for name, value in found.items()
                if isinstance(value, float) and name not in LEFT_OUT
            }
        return cost | row | tested


def short_key(key: str) -> str:
    """Returns the last part of a field's name; of a node's the node too."""
    return ".".join(key.split(".")[-2 if key.startswith("gssm.nodes.") else -1 :])


def short(value: str) -> str:
    """Returns a value as shown in names: of a file, its name without folder, suffix."""
    if value.lstrip()[:1] in ("[", "{"):
        return "+".join(re.findall(r"[\w.-]+", value))
    path = pathlib.Path(value)
    # Neither 0.05 nor induction:3,0.2 is a file with a suffix of digits.
    return path.stem if re.match(r"\.[A-Za-z]", path.suffix) else path.name


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def read_study(name: str) -> Study:
    """Reads a study file and checks the config of every point.

    Raises:
      UserError: naming what is wrong in it.
    """
    path, where = configs.find_path(name), f"study '{name}'"
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} cannot be read: {reason}") from None
    if not isinstance(spec, dict):
        raise UserError(f"{where} must be a mapping with keys among {', '.join(KEYS)}")
    if unknown := sorted(map(str, set(spec) - set(KEYS))):
        raise UserError(f"{where} has an unknown key '{unknown[0]}'")
    given = {key: value for key, value in spec.items() if value is not None}
    listed = "points" in given
    needs_grid = ("grid", "x", "lines", "fit")
    if clash := [key for key in needs_grid if listed and key in given]:
        raise UserError(f"{where} lists its points: remove '{clash[0]}'")
    absent = {"grid": {}, "x": ""} if listed else {"points": []}
    defaults = {"overrides": {}, "lines": "", "title": path.stem, "test": 0, "fit": ""}
    spec = defaults | absent | given
    rules: dict[Any, str] = {dict: FIELDS, list: "a list of changes", int: "an integer"}
    for key, kind in KEYS.items():
        valid = isinstance(spec.get(key), kind)
        require(valid, f"{where}: {key}", rules.get(kind, "text"), spec.get(key))
    valid = spec["test"] >= 0 and not isinstance(spec["test"], bool)
    require(valid, f"{where}: test", "a number of sequences", spec["test"])
    if spec["y"].startswith("test_") and not spec["test"]:
        raise UserError(f"{where}: y is '{spec['y']}', which needs test: N sequences")
    grid, changes = spec["grid"], spec["points"]
    if listed:
        valid = bool(changes) and all(isinstance(change, dict) for change in changes)
        require(valid, f"{where}: points", f"a list, each {FIELDS}", changes)
    else:
        _check_grid(spec, where)
        combined = itertools.product(*grid.values())
        changes = [dict(zip(grid, values, strict=True)) for values in combined]
    fixed, *changes = (
        {str(key): str(value) for key, value in change.items()}
        for change in (spec["overrides"], *changes)
    )
    points = [fixed | change for change in changes]
    for point in points:
        config = configs.load(spec["config"], point)
        rule = "gssm with test sequences"
        known = not spec["test"] or config.system == "gssm"
        require(known, f"{where}: system", rule, config.system)
    kept = {
        key: spec[key] for key in ("config", "grid", "x", "y", "lines", "test", "fit")
    }
    title = str(spec["title"])
    return Study(path.stem, changes=changes, points=points, title=title, **kept)


def _check_grid(spec: dict[str, Any], where: str) -> None:
    """Checks the grid and what is drawn of it."""
    grid, x, fit = spec["grid"], spec["x"], spec["fit"]
    for key, values in grid.items():
        valid = isinstance(values, list) and len(values) > 0
        require(valid, f"{where}: grid.{key}", "a list of values", values)
    rule = "a field of its grid"
    lines = spec["lines"]
    require(not lines or lines in grid, f"{where}: lines", rule, lines)
    sizes = f"{rule}, or {', '.join(SIZES[:-1])} or {SIZES[-1]}"
    require(x in (*grid, *SIZES), f"{where}: x", sizes, x)
    if not fit:
        return
    require(fit in FORMS, f"{where}: fit", f"one of {', '.join(FORMS)}", fit)
    least = FORMS[fit]
    if x in grid:
        numbers = {float(v) for v in map(str, grid[x]) if _is_number(v)}
        valid = len(numbers) == len(grid[x]) and all(0 < n < math.inf for n in numbers)
        require(valid, f"{where}: x", "numbers above 0 to fit a power law", grid[x])
        rule = f"{least} or more values to fit '{fit}'"
        require(len(numbers) >= least, f"{where}: x", rule, len(numbers))
