"""Measures a run: its loss over a split, or the score of tokens or marked spans."""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxgpt import backend, cli
from jaxgpt.commands import evaluate_samples
from jaxgpt.commands.memory_files import evaluate_with_memory
from jaxgpt.data.arrays import read_integers
from jaxgpt.errors import UserError, atomic_write, os_errors, require
from jaxgpt.model import rng
from jaxgpt.run import Run, open_run
from jaxgpt.sampling import prompts
from jaxgpt.systems import scoring
from jaxgpt.systems.base import Evaluation
from jaxgpt.systems.sigma import likelihood, open_gaps
from jaxgpt.systems.sigma.config import ORDERS
from jaxgpt.training import metrics, plots
from jaxgpt.training.progress import status

NUM_ORDERS = 16  # Of a template, by default.
TEXTS = ("samples", "real")


def execute(
    args: argparse.Namespace,
    config: ConfigDict,
    ratios: list[float],
    orders: list[str],
    overrides: dict[str, str],
) -> None:
    """Restores the run, measures and prints the figures."""
    backend.set_up_jax()
    lengths = []
    if args.eval_lengths is not None:
        lengths = scoring.parse_lengths(args.eval_lengths, config.model.block_size)
    picture = None
    if args.positions:
        picture = cli.output_path("positions", args.positions, (".png",))
    if args.memory:
        _print(evaluate_with_memory(args, overrides), args.json)
        return
    run = open_run(args.workdir, args.step, overrides)
    if args.template is not None:
        with status("scoring the marked spans"):
            figures = score_spans(run, args.template, args.num_orders or NUM_ORDERS)
    elif args.judge:
        with status("judging texts"):
            count = args.num_samples or evaluate_samples.NUM_SAMPLES
            figures = evaluate_samples.judge(run, args.judge, count, args.samples)
    elif args.tokens:
        with status("scoring the tokens"):
            figures = score_tokens(run, args.tokens, args.order, args.logits)
    else:
        with status(f"scoring the {args.split} split"):
            figures = evaluate_split(run, args.split, args.num_sequences, picture)
        if args.num_orders or orders or ratios:
            # The figures below are of these windows, the loss of the whole split.
            figures["windows"] = len(_fixed_windows(run, args.split))
        if args.num_orders:
            with status(f"scoring it in {args.num_orders} orders"):
                figures |= evaluate_orders(run, args.split, args.num_orders)
        if orders:
            with status(f"scoring it in {len(orders)} orders"):
                figures |= evaluate_named_orders(run, args.split, orders)
        if ratios:
            with status("filling spans"):
                figures |= evaluate_infilling(run, args.split, ratios)
        if lengths:
            with status("scoring longer texts"):
                figures["loss_at_length"] = scoring.losses_by_length(
                    run.system, run.params, run.open_data(), args.split, lengths
                )
    _print(figures, args.json)


def _print(figures: dict[str, Any], as_json: str | None) -> None:
    if as_json:
        cli.print_json(figures)
    else:
        for name, value in figures.items():
            if isinstance(value, float | int):
                print(f"{name:>20}  {value:.6g}" if value else f"{name:>20}  {value}")
        for name, found in figures.items():
            if name.startswith("loss_by_distance"):
                for distance, value in found.items():
                    print(f"{name[17:] + ' ' + distance:>20}  {value:.4g}")
        by_position = figures.get("kl_by_position", [])
        for position in (1 << i for i in range(len(by_position).bit_length())):
            value = by_position[position - 1]
            print(f"{f'kl at position {position}':>20}  {value:.4g}")
        for length, value in figures.get("loss_at_length", {}).items():
            print(f"{'loss at ' + length:>20}  {value:.6g}")
        for name, found in figures.get("orders", {}).items():
            error = "" if found["error"] is None else f" ± {found['error']:.2g}"
            print(f"{name:>20}  {found['loss']:.4f}{error}")
        _print_texts({name: figures[name] for name in TEXTS if name in figures})
        for found in figures.get("templates", []):
            print(f"{' … '.join(found['scored'])!r}:")
            for name, value in found.items():
                if isinstance(value, float):
                    print(f"{name:>20}  {value:.6g}")
        for ratio, found in figures.get("infill", {}).items():
            print(f"{'infill ' + ratio:>20}", end="")
            print("".join(f"  {name} {value:.4g}" for name, value in found.items()))
        for name, value in figures.get("unknown_length", {}).items():
            print(f"{'gap ' + name:>20}  {value:.4g}")


def _print_texts(kinds: dict[str, dict[str, float | None]]) -> None:
    """Prints the figures of generated and real texts side by side."""
    if not kinds:
        return
    print(f"{'':>20}  " + "".join(f"{name:<20}" for name in kinds))
    for name in next(iter(kinds.values())):
        if name.endswith("_error"):
            continue
        cells = []
        for found in kinds.values():
            error = found.get(f"{name}_error")
            ending = "" if error is None else f" ± {error:.2g}"
            cells.append(f"{found[name]:.4f}{ending}")
        print(f"{name:>20}  " + "".join(f"{cell:<20}" for cell in cells))


def evaluate_split(
    run: Run,
    split: str,
    count: int | None = None,
    picture: pathlib.Path | None = None,
) -> dict:
    """Returns the figures of every whole window of a split.

    Args:
      count: of windows, instead of all.
      picture: .png for the means by position, which a .csv gets too.

    Raises:
      UserError: if there are fewer windows, or the picture cannot be written.
    """
    data = run.open_data()
    tokens_NT = data.eval_windows(split, run.system.window, count)
    if count is not None:
        most = len(tokens_NT)
        rule = f"<= {most}, all that the {split} split has"
        require(count <= most, "--num_sequences", rule, count)
    rows = run.config.batch_size // run.config.accumulation
    nll = run.system.eval_nll(run.params, tokens_NT, rows, run.config.seed)
    figures = scoring.mean_losses(nll)
    loss = figures.pop("loss")
    curves: dict[str, Any] = {}
    evaluation = Evaluation(
        data, split, tokens_NT, nll[""], rows, thorough=True, write_curves=curves.update
    )
    extra = run.system.extra_metrics(run.params, evaluation)
    if picture:
        curves = curves or {"model": nll[""].mean(0)}
        with os_errors(f"--positions='{picture}'"):
            metrics.write_curves(curves, picture.with_suffix(".csv"))
            plots.plot_positions(curves, picture)
    return _loss_figures(loss, nll[""].size, run) | figures | extra


def _loss_figures(loss: float, tokens: int, run: Run) -> dict[str, Any]:
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_token": loss / math.log(2),
        "tokens": tokens,
        "step": run.step,
    }


def _require_any_order(run: Run, option: str) -> None:
    if not run.system.model_config.any_order:
        raise UserError(f"--{option} is for σ-GPT: this model reads left to right")


def _fixed_windows(run: Run, split: str) -> np.ndarray:
    """Returns the windows [N, T] that evaluations during training score."""
    count = run.config.eval_sequences
    return run.open_data().eval_windows(split, run.system.window, count)


def evaluate_orders(run: Run, split: str, num_orders: int) -> dict[str, float]:
    """Returns the likelihood over many orders of the fixed windows of a split.

    Raises:
      UserError: if the model reads in one order only.
    """
    _require_any_order(run, "num_orders")
    tokens_BT = _fixed_windows(run, split)
    key = rng.stream(run.config.seed, "eval_order")
    log_p_BN = likelihood.log_likelihoods(
        run.system, run.params, tokens_BT, key, num_orders
    )
    return likelihood.summary(log_p_BN, run.system.num_predicted)


def evaluate_named_orders(
    run: Run, split: str, names: list[str]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Returns {"orders": {name: {"loss", "error"}}} of the fixed windows of a split.

    Losses are nats per predicted token, errors standard errors over windows. A random
    order is drawn for each window.

    Raises:
      UserError: if the model reads in one order only.
    """
    _require_any_order(run, "orders")
    tokens_NT = _fixed_windows(run, split)
    key, found = rng.stream(run.config.seed, "eval_order"), {}
    for name in names:
        order_NT = pkgutil.resolve_name(ORDERS[name])(key, *tokens_NT.shape)
        _, nll_NT = run.score_tokens(tokens_NT, np.asarray(order_NT), keep_logits=False)
        loss_N = nll_NT.mean(1, dtype=np.float64)
        N = len(loss_N)
        error = float(loss_N.std(ddof=1)) / math.sqrt(N) if N > 1 else None
        found[name] = {"loss": float(loss_N.mean()), "error": error}
    return {"orders": found}


def evaluate_infilling(run: Run, split: str, ratios: list[float]) -> dict[str, dict]:
    """Returns {"infill": {ratio: figures}} of the fixed windows of a split."""
    c, system = run.config, run.system
    tokens_NT = run.open_data().eval_windows(
        split, c.model.block_size, c.eval_sequences
    )
    measured = {
        f"{ratio:g}": scoring.score_infilling(
            system, run.params, tokens_NT, ratio, c.seed
        )
        for ratio in ratios
    }
    if not system.max_gap:
        return {"infill": measured}
    gaps = open_gaps.score(system, run.params, tokens_NT, c.seed)
    return {"infill": measured, "unknown_length": gaps}


def score_tokens(run: Run, tokens: str, order: str | None, logits: str | None) -> dict:
    """Scores an int array [B, T] in a file, in the orders of another if given."""
    c = run.system.model_config
    tokens_BT = read_integers(tokens)
    B, T = tokens_BT.shape
    if T < 2 or (c.ends_with_block and c.block_size < T):
        raise UserError(f"'{tokens}' has rows of {T} tokens: 2 to {c.block_size} fit")
    if tokens_BT.min() < 0 or tokens_BT.max() >= c.vocab_size:
        raise UserError(
            f"'{tokens}' holds ids outside the {c.vocab_size} of this model"
        )
    order_BT = np.broadcast_to(np.arange(T), (B, T))
    if order:
        _require_any_order(run, "order")
        order_BT = read_integers(order)
        if order_BT.shape != (B, T) or (np.sort(order_BT, 1) != np.arange(T)).any():
            raise UserError(
                f"'{order}' must be orders: each of its {B} rows must contain each of "
                f"0 .. {T - 1} once"
            )
    output = cli.output_path("logits", logits) if logits else None
    logits_BTV, nll_BT = run.score_tokens(
        tokens_BT.astype(np.int32), order_BT.astype(np.int32), keep_logits=bool(output)
    )
    if output:
        with os_errors(f"--logits='{logits}'"), atomic_write(output, "wb") as stream:
            np.save(stream, logits_BTV)
    # A model with a beginning token also predicts the token that is read first.
    first_B, nll_BT = nll_BT[:, : nll_BT.shape[1] - T + 1], nll_BT[:, 1 - T :]
    loss = float(nll_BT.mean(dtype=np.float64))
    joint = {}
    if first_B.size:
        total_B = first_B.sum(1, np.float64) + nll_BT.sum(1, np.float64)
        joint = {"first_nll": first_B[:, 0].tolist(), "log_prob": (-total_B).tolist()}
    return _loss_figures(loss, nll_BT.size, run) | {"nll": nll_BT.tolist()} | joint


def score_spans(run: Run, template: str, num_orders: int) -> dict[str, Any]:
    """Returns log p(marked spans | the rest), over random orders of their tokens.

    Args:
      run: of text.
      template: a text with spans marked [[so]]; @FILE reads it, and @FILE.jsonl a
        "template" from each line.
      num_orders: for each text; a model that reads left to right has one.

    Returns:
      {"templates": [{"scored": the texts of the spans, "tokens": how many, "log_prob":
      the mean over orders in nats, "log_prob_error": its standard error,
      "log_prob_mixture": the log of the mean probability, "loss": -log_prob per
      token}], "loss": of all together, "tokens", "step"}.

    Raises:
      UserError: if a text cannot be read or scored.
    """
    found: list[dict[str, Any]] = []
    tokens, log_p = 0, 0.0
    for where, text in _read_templates(template):
        try:
            tokens_T, given_T = run.marked(text)
            log_prob = run.log_prob(tokens_T, given_T, num_orders=num_orders)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        count, mean = int((~given_T).sum()), float(log_prob.mean)
        deviation = float(log_prob.standard_error)
        tokens, log_p = tokens + count, log_p + mean
        found.append(
            {
                "scored": prompts.MARKED.findall(text),
                "tokens": count,
                "log_prob": mean,
                "log_prob_error": None if math.isnan(deviation) else deviation,
                "log_prob_mixture": float(log_prob.mixture),
                "loss": -mean / count,
            }
        )
    return {
        "templates": found,
        "loss": -log_p / tokens,
        "tokens": tokens,
        "step": run.step,
    }


def _read_templates(template: str) -> Iterator[tuple[str, str]]:
    """Yields (name for errors, text) of each template."""
    content = cli.text_of("template", template) or ""
    if not (template.startswith("@") and template.lower().endswith(".jsonl")):
        yield "--template", content
        return
    for number, line in enumerate(content.removesuffix("\n").split("\n"), 1):
        where = f"--template='{template}', line {number}"
        try:
            text = json.loads(line)["template"]
        except (ValueError, TypeError, KeyError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise UserError(f'{where}: must be like {{"template": "to [[be]]"}}')
        yield where, text
