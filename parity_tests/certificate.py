"""Reruns the comparison with PyTorch and writes what it found.

python -m parity_tests.certificate

Writes docs/parity.json, docs/parity.md and docs/parity.png: per original and quantity
the largest absolute and relative difference, in float32 and float64.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import platform

import jax
import numpy as np
import torch

import jaxgpt
from jaxgpt.data.tokenizers import CharTokenizer
from jaxgpt.interop import rules
from parity_tests import pairs

DOCS = pathlib.Path(__file__).parents[1] / "docs"
ORIGINALS = ("nanogpt", "sigma-gpt", "gpt2", "teenygpt")


def difference(ours, theirs) -> dict[str, float]:
    """Returns the largest absolute difference, and relative to the largest entry."""
    leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    arrays = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in leaves]
    absolute = max(np.abs(a - b).max() for a, b in arrays)
    largest = max(np.abs(b).max() for _, b in arrays)
    return {"absolute": float(absolute), "relative": float(absolute / largest)}


def matrices(tree: dict) -> list:
    """Leaves out vectors: the key's bias moves by rounding alone."""
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]


def compare(name: str, dtype: str) -> dict[str, dict[str, float]]:
    """Returns {quantity: differences} for one original."""
    pair = pairs.make(name, dtype)
    tokens, orders = pairs.random_batches(pair, 50)
    params, batch = pair.params(), pair.batch(tokens[0], orders[0])
    loss = pair.loss_of(tokens[0], orders[0])
    loss.backward()
    value, grads = jax.jit(jax.value_and_grad(pair.loss))(params, batch)
    logits = pair.logits_of(tokens[0], orders[0]).detach().numpy()
    ours = pair.system.score(params, tokens[0][:, : pairs.T], orders[0])[0]
    theirs = pair.to_ours({n: p.grad for n, p in pair.module.named_parameters()})
    state = {n: p.detach().numpy() for n, p in pair.module.named_parameters()}
    back = rules.to_torch(params, pair.table)
    found = {
        "logits": difference(ours, logits),
        "loss": difference(value, loss.item()),
        "gradient of every parameter": difference(grads, theirs),
        "weights out and in again": difference(
            [back[rule.name] for rule in pair.table],
            [state[rule.name] for rule in pair.table],
        ),
    }
    steps = pairs.ours_and_theirs(pair, tokens, orders)
    for index, (mine, other, params) in enumerate(steps, 1):
        if index in (1, 5, 50):
            found[f"loss at step {index}"] = difference(mine, other)
            found[f"matrices after {index} AdamW steps"] = difference(
                matrices(params), matrices(pair.params())
            )
    return found


def trajectories(count: int = 200) -> dict[str, list[tuple[float, float]]]:
    """Returns (our loss, PyTorch's) over steps on Shakespeare, float32."""
    text = (DOCS.parent / "data" / "shakespeare.txt").read_text()
    ids = CharTokenizer("".join(sorted(set(text)))).encode(text)
    result = {}
    for name in ("nanogpt", "sigma-gpt"):
        pair = pairs.make(name, "float32", (2, 4, 64, 32, 65), noise=0.0)
        starts = np.random.default_rng(1).integers(0, len(ids) - 40, (count, 8))
        tokens = ids[starts[..., None] + np.arange(pair.system.window)]
        block = np.tile(np.arange(32), (count, 8, 1))
        orders = np.random.default_rng(2).permuted(block, axis=2).astype(np.int32)
        steps = pairs.ours_and_theirs(pair, tokens, orders)
        result[name] = [(mine, other) for mine, other, _ in steps]
    return result


def draw(curves: dict[str, list[tuple[float, float]]], path: pathlib.Path) -> None:
    """Draws both losses on each other, and their difference below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(
        2, len(curves), sharex=True, height_ratios=(3, 1), squeeze=False
    )
    for column, (name, losses) in enumerate(curves.items()):
        ours, theirs = np.array(losses).T
        top, bottom = axes[:, column]
        top.plot(theirs, color="0.75", linewidth=5, label="PyTorch")
        top.plot(ours, color="C0", linewidth=1.2, label="jaxgpt")
        top.set_title(name)
        bottom.plot(ours - theirs, color="C3", linewidth=1)
        bottom.set_xlabel("AdamW step")
        bottom.ticklabel_format(axis="y", scilimits=(0, 0))
        for panel in (top, bottom):
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(color="0.93")
    axes[0, 0].set_ylabel("loss, nats")
    axes[1, 0].set_ylabel("difference")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs everything and writes the three files."""
    found: dict[str, dict] = {}
    for name in ORIGINALS:
        found[name] = {"float32": compare(name, "float32")}
        with jax.enable_x64(True):
            found[name]["float64"] = compare(name, "float64")
    curves = trajectories()
    draw(curves, DOCS / "parity.png")
    apart = {n: max(abs(a - b) for a, b in c) for n, c in curves.items()}
    import transformers

    about = {
        "date": datetime.date.today().isoformat(),
        "jaxgpt": jaxgpt.__version__,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
    }
    record = {"about": about, "differences": found, "largest over 200 steps": apart}
    (DOCS / "parity.json").write_text(json.dumps(record, indent=1) + "\n")
    (DOCS / "parity.md").write_text(page(about, found, apart))
    print(json.dumps({"largest over 200 steps": apart}))


def page(about: dict, found: dict, apart: dict) -> str:
    """Returns the certificate as a page."""
    lines = [
        "# Parity with PyTorch",
        "",
        "Written by `python -m parity_tests.certificate`: "
        + ", ".join(f"{key} {value}" for key, value in about.items())
        + ". Random models (2 layers, 3 heads, width 42, every gain and bias perturbed)"
        " against transformers' GPT2LMHeadModel for gpt2, and for the others the twins"
        " of `parity_tests/torch_gpt.py` and `torch_teeny.py` (the originals' own"
        " numbers are compared in `parity_tests/test_gpt_family.py` and"
        " `test_teenygpt.py`: for teenyGPT all 36 combinations of its choices).",
    ]
    for name, by_dtype in found.items():
        lines += [
            "",
            f"## {name}",
            "",
            "| quantity | float32 abs. | rel. | float64 abs. | rel. |",
        ]
        lines += ["|---|---|---|---|---|"]
        for quantity in by_dtype["float32"]:
            cells = [
                f"{by_dtype[dtype][quantity][kind]:.1e}"
                for dtype in ("float32", "float64")
                for kind in ("absolute", "relative")
            ]
            lines.append(f"| {quantity} | " + " | ".join(cells) + " |")
    lines += ["", "## 200 steps on the same batches", "", "![losses](parity.png)", ""]
    lines += [
        f"Largest difference of the loss, {n}: {v:.1e} nats." for n, v in apart.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
