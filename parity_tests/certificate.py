"""Measures everything that `measures` has and writes what it found: docs/parity.*.

python -m parity_tests.certificate

docs/parity.md has the tables, docs/parity.json the absolute differences too, and
docs/parity.png and .csv the losses of both programs over 200 steps. Each row is held by
a test: `test_certificate`, `test_teenygpt`, `test_gssm`.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import jax
import numpy as np
import torch

import jaxgpt
from benchmarks.alternate import machine
from jaxgpt import backend, drawing
from jaxgpt.data.tokenizers import CharTokenizer
from jaxgpt.training import optimizers
from parity_tests import files, measures, pairs
from parity_tests.measures import Found

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
Table = dict[str, dict[str, Found]]  # {column or row: {quantity: what was found}}

INTRODUCTION = """\
Each model is run beside a PyTorch program with the same weights, on the same batches.
For gpt2 that is transformers' own GPT2LMHeadModel; for the others it is a compact twin
in `parity_tests/torch_*.py`, written from the papers and, but for the memory, checked
against numbers that the unmodified originals gave (`parity_tests/golden`). sigma-gpt is
σ-GPT's model of text, sigma-tasks that of images, mazes and the like. The models are
random, with every gain and bias perturbed: 2 layers, 2 or 3 heads, width 42 or 44, 17
tokens, a vocabulary of 23. A difference is the largest there is, over the largest entry
of what is compared (e.g. of all gradients): 1e-7 is one rounding in float32, 1e-16 in
float64. `make certificate` writes this page anew; every row but the last is also a test
of the default suite, with its tolerance in `parity_tests/tolerances.py`."""

MORE = f"""\
Tokens taken greedily through our cache, beside the likeliest of PyTorch's full forward
pass, up to a tie. A file that the original's program writes is imported, exported,
loaded strictly by a PyTorch model as the original's loading code does, and imported
again. Where the file has AdamW's moments, both programs go on from it, after
{measures.BEFORE} steps and in the warmup, for {measures.AFTER} more. bfloat16: the
divergence (KL) of the distribution of the next token from that in float32; in brackets
that of PyTorch's autocast."""

RATES = """\
The first 200 learning rates, warmup 40 and decay 160, beside the scheduler of
transformers (a LambdaLR of PyTorch). nanoGPT's first step already has a rate above
zero, σ-GPT's has not."""

TEENY = """\
All 36 combinations of position encoding, feed-forward and norm, beside the numbers that
the original itself gave; the worst of them."""

DROPOUT = f"""\
Dropout is random in each program in its own way, so distributions are compared: the
loss of one text over {measures.DRAWS} draws at rate {measures.DROPOUT}, ours first and
PyTorch's second."""

MEMORY = """\
GPT-2 with a memory, in float32, as the memory stores it: 3 documents in 4 segments of 8
tokens, beside a PyTorch model that compares every query with everything stored. kNN-LM
(`output`) mixes the 5 nearest and is not trained; `attention` is one softmax over all
that is stored and the window; `associative` follows the equations of its description.
Loss and gradients are the worst over 12 AdamW steps."""

GSSM = """\
The exact log-likelihood of recorded sequences under their graph, in nats: ours less
that of the original in float64 or, where it has none, of one computed independently;
the largest over {} graphs."""

STEPS = """\
The same batches of Shakespeare, in float32, 2 layers of width 64: the losses lie on
each other, so their difference is drawn below them."""


def system(name: str, folder: pathlib.Path) -> dict[str, Table]:
    """Returns what was found of one original, {"float32", "float64", "more"}."""
    pair = pairs.make(name, "float32")
    found = {"float32": measures.forward(pair) | measures.training(pair)}
    with jax.enable_x64(True):
        pair = pairs.make(name, "float64")
        found["float64"] = measures.forward(pair) | measures.training(pair)
    more = measures.greedy(pairs.make(name, "float32")) | measures.bfloat16(name)
    if name in files.LAYOUTS:
        more |= measures.round_trip(name, made(folder / "files" / name))
    if name in files.HAVE_MOMENTS:
        more |= measures.continued(name, made(folder / "moments" / name))
    return found | {"more": more}


def made(folder: pathlib.Path) -> pathlib.Path:
    """Makes a folder."""
    folder.mkdir(parents=True)
    return folder


def everything(folder: pathlib.Path) -> dict[str, Table]:
    """Returns {table: {column or row: {quantity: what was found}}}."""
    by_system = {name: system(name, folder) for name in pairs.TWINS}
    tables = {
        part: {name: found[part] for name, found in by_system.items()}
        for part in ("float32", "float64", "more")
    }
    random = [name for name, twin in pairs.TWINS.items() if twin.has_dropout]
    tables["dropout"] = {name: measures.dropout_of_loss(name) for name in random}
    tables["dropout of a layer"] = {"found": measures.dropout_of_layer()}
    tables["rates"] = {"largest difference": measures.rates()}
    tables["memory"] = {mode: measures.memory(mode) for mode in pairs.MEMORIES}
    tables["teenygpt"] = {name: measures.teeny(name, folder) for name in measures.TEENY}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            tables[f"gssm {dtype}"] = {
                name: measures.gssm(name, dtype) for name in measures.RECORDED_GRAPHS
            }
    return tables


def trajectories(count: int = 200) -> dict[str, np.ndarray]:
    """Returns our losses and PyTorch's [2, count] on Shakespeare, float32."""
    text = (ROOT / "data" / "shakespeare.txt").read_text()
    ids = CharTokenizer("".join(sorted(set(text)))).encode(text)
    result = {}
    for name in pairs.TWINS:
        sizes = dict(zip(pairs.SIZES, (2, 4, 64, 32, 65), strict=True))
        pair = pairs.make(name, "float32", sizes, noise=0.0)
        starts = np.random.default_rng(1).integers(0, len(ids) - 40, (count, 8))
        tokens = ids[starts[..., None] + np.arange(pair.system.window)]
        block = np.tile(np.arange(32), (count, 8, 1))
        orders = np.random.default_rng(2).permuted(block, axis=2).astype(np.int32)
        params = pair.params()
        state = optimizers.make_optimizer(pair.system.config).init(params)
        ours = pairs.train_here(pair, params, state, tokens, orders)
        theirs = pairs.train_there(pair, pairs.adamw(pair), tokens, orders)
        both = [(a[0], b[0]) for a, b in zip(ours, theirs, strict=True)]
        result[name] = np.array(both).T
    return result


def write_losses(curves: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes the losses [2, steps] as a table, a row for each step."""
    names = [f"{name} {by}" for name in curves for by in ("jaxgpt", "PyTorch")]
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows(np.concatenate(list(curves.values())).T.round(8).tolist())


def read_losses(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns what `write_losses` wrote."""
    with open(path) as stream:
        names, *rows = csv.reader(stream)
    losses = np.array(rows, float).T.reshape(len(names) // 2, 2, -1)
    return dict(
        zip((n.removesuffix(" jaxgpt") for n in names[::2]), losses, strict=True)
    )


def draw(curves: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Draws both losses of each original on each other, and their difference below."""
    with drawing.picture(path, 7.5) as figure:
        title = "200 steps here and in PyTorch: the losses lie on each other"
        drawing.heading(figure, title)
        grid = figure.subplots(
            4, 3, sharex=True, height_ratios=(3, 1, 3, 1), squeeze=False
        )
        tops, bottoms = grid[::2].flat, grid[1::2].flat
        panels = zip(tops, bottoms, curves.items(), strict=True)
        for top, bottom, (name, (ours, theirs)) in panels:
            top.plot(theirs, color=drawing.PALE, linewidth=4, label="PyTorch")
            top.plot(ours, color=drawing.BLUE, linewidth=1, label="jaxgpt")
            top.set_title(name, size=10)
            bottom.plot(1e6 * (ours - theirs), color=drawing.ORANGE, linewidth=0.8)
            bottom.set(ylim=(-6, 6), yticks=(-5, 0, 5))
        for top, bottom in zip(grid[::2, 0], grid[1::2, 0], strict=True):
            top.set_ylabel("loss,\nnats per token")
            bottom.set_ylabel("difference,\n10⁻⁶ nats")
        for panel in grid[-1]:
            panel.set_xlabel("AdamW step")
        grid[0, 0].legend()


def about() -> dict[str, str]:
    """Returns when, where and with what this was measured."""
    import transformers

    return {
        "date": datetime.date.today().isoformat(),
        "jaxgpt": jaxgpt.__version__,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": machine(),
    }


def columns(table: Table, corner: str) -> Iterator[str]:
    """Yields a table whose columns are those of `table`, and its rows quantities."""
    names = list(table)
    yield f"| {corner} | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for quantity in dict.fromkeys(q for found in table.values() for q in found):
        cells = [str(table[name].get(quantity, "–")) for name in names]
        yield f"| {quantity} | " + " | ".join(cells) + " |"


def rows(table: Table, corner: str) -> Iterator[str]:
    """Yields a table whose rows are the columns of `table`."""
    quantities = list(dict.fromkeys(q for found in table.values() for q in found))
    yield f"| {corner} | " + " | ".join(quantities) + " |"
    yield "|---" * (len(quantities) + 1) + "|"
    for name, found in table.items():
        cells = [str(found.get(quantity, "–")) for quantity in quantities]
        yield f"| {name} | " + " | ".join(cells) + " |"


def largest(table: Table) -> dict[str, Found]:
    """Returns the worst of each quantity, and whose it is where that is of use."""
    result = {}
    for quantity in next(iter(table.values())):
        name = max(table, key=lambda name: table[name][quantity].value)
        found = table[name][quantity]
        result[quantity] = dataclasses.replace(found, text=f"{found} ({name})")
    return result


def map_figures(function: Callable, tables: dict) -> dict:
    """Applies a function to every figure, and keeps their order."""
    of_column = lambda found: {name: function(each) for name, each in found.items()}
    return {
        name: {column: of_column(found) for column, found in table.items()}
        for name, table in tables.items()
    }


def page(facts: dict, tables: dict[str, Table]) -> str:
    """Returns the certificate as a page."""
    gssm = {d: largest(tables[f"gssm {d}"]) for d in ("float32", "float64")}
    teeny = {"largest difference": largest(tables["teenygpt"])}
    sections = [
        ("Float32", "", columns(tables["float32"], "largest difference")),
        ("Float64", "", columns(tables["float64"], "largest difference")),
        ("Generation, files, bfloat16", MORE, columns(tables["more"], "")),
        ("Dropout", DROPOUT, rows(tables["dropout"], "")),
        ("", "", columns(tables["dropout of a layer"], "of a million numbers")),
        ("Learning rates", RATES, columns(tables["rates"], "schedule of")),
        ("Memory", MEMORY, rows(tables["memory"], "largest difference")),
        ("All of teenyGPT", TEENY, columns(teeny, "quantity")),
        ("GSSM", GSSM.format(len(tables["gssm float32"])), rows(gssm, "")),
    ]
    lines = ["# Parity with PyTorch", "", INTRODUCTION, ""]
    lines += ["Measured: " + ", ".join(f"{k} {v}" for k, v in facts.items()) + "."]
    for title, text, table in sections:
        lines += ["", f"## {title}"] if title else []
        lines += ["", text] if text else []
        lines += ["", *table]
    lines += ["", "## 200 steps of training", "", STEPS, ""]
    lines += ["![losses](parity.png)", ""]
    lines += columns(tables["200 steps"], "largest difference, nats")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs everything, writes the four files and prints the page."""
    jax.config.update("jax_platforms", "cpu")
    backend.set_up_jax()
    torch.set_num_threads(1)  # For models this small a second thread only costs time.
    with tempfile.TemporaryDirectory() as folder:
        tables = everything(pathlib.Path(folder))
    curves = trajectories()
    write_losses(curves, DOCS / "parity.csv")
    draw(curves, DOCS / "parity.png")
    tables["200 steps"] = {
        name: {"loss of a trajectory": Found(float(np.abs(a - b).max()))}
        for name, (a, b) in curves.items()
    }
    facts = about()
    record = {"about": facts, "found": map_figures(dataclasses.asdict, tables)}
    (DOCS / "parity.json").write_text(json.dumps(record, indent=1) + "\n")
    text = page(facts, tables)
    (DOCS / "parity.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
