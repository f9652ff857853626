"""Loss over a split, or the score of given tokens.

python -m jaxgpt.evaluate --workdir=runs/sigma_char --split=val --json=-
python -m jaxgpt.evaluate --workdir=DIR --tokens=F.npy --order=O.npy --json=-
python -m jaxgpt.evaluate --workdir=DIR --num_orders=16 --infill=0.15,0.5,0.85
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError

if TYPE_CHECKING:
    from jaxgpt.run import Run


DEFAULT_LENGTHS = "1x,2x,4x,8x"


def evaluate_split(run: Run, split: str) -> dict:
    """Returns the contract's figures for every whole window of a split."""
    from jaxgpt.systems import scoring
    from jaxgpt.systems.base import Evaluation

    data = run.open_data()
    tokens_NT = data.eval_windows(split, run.system.window)
    rows = run.config.batch_size // run.config.accumulation
    nll = run.system.eval_nll(run.params, tokens_NT, rows, run.config.seed)
    figures = scoring.mean_losses(nll)
    loss = figures.pop("loss")
    evaluation = Evaluation(data, split, tokens_NT, nll[""], rows, thorough=True)
    figures |= run.system.extra_metrics(run.params, evaluation)
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_token": loss / math.log(2),
        "tokens": nll[""].size,
        "step": run.step,
        **figures,
    }


def evaluate_orders(run: Run, split: str, num_orders: int) -> dict[str, float]:
    """Returns the likelihood over many orders of the fixed windows of a split.

    Raises:
      UserError: where the model reads in one order only.
    """
    from jaxgpt.model import rng
    from jaxgpt.systems.sigma import likelihood

    if not run.system.model_config.any_order:
        raise UserError("--num_orders is for σ-GPT: this model reads left to right")
    c, T = run.config, run.system.window
    tokens_BT = run.open_data().eval_windows(split, T, c.eval_sequences)
    key = rng.stream(c.seed, "eval_order")
    log_p_BN = likelihood.log_likelihoods(
        run.system, run.params, tokens_BT, key, num_orders
    )
    return likelihood.summary(log_p_BN, run.system.num_predicted)


def evaluate_infilling(run: Run, split: str, ratios: list[float]) -> dict[str, dict]:
    """Returns {"infill": {ratio: figures}} of the fixed windows of a split."""
    from jaxgpt.systems import scoring

    c, T = run.config, run.config.model.block_size
    tokens_NT = run.open_data().eval_windows(split, T, c.eval_sequences)
    measured = {
        f"{ratio:g}": scoring.score_infilling(
            run.system, run.params, tokens_NT, ratio, c.seed
        )
        for ratio in ratios
    }
    return {"infill": measured}


def evaluate_lengths(run: Run, split: str, text: str) -> dict:
    """Returns {"loss_at_length": {length: loss}} for the lengths a user wrote."""
    from jaxgpt.systems import scoring

    wanted = scoring.parse_lengths(text, run.system.model_config.block_size)
    found = scoring.losses_by_length(
        run.system, run.params, run.open_data(), split, wanted
    )
    return {"loss_at_length": found}


def score_tokens(run: Run, tokens: str, order: str | None, logits: str | None) -> dict:
    """Scores an int array [B, T] in a file, in the orders of another if given."""
    import jax
    import numpy as np

    from jaxgpt.data.arrays import batched, read_integers

    c = run.system.model_config
    tokens_BT = read_integers(tokens)
    B, T = tokens_BT.shape
    if T < 2 or (c.ends_with_block and c.block_size < T):
        raise UserError(f"'{tokens}' has rows of {T} tokens: 2 to {c.block_size} fit")
    if tokens_BT.min() < 0 or tokens_BT.max() >= c.vocab_size:
        raise UserError(
            f"'{tokens}' holds ids outside the {c.vocab_size} of this model"
        )
    order_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    if order:
        if not c.any_order:
            raise UserError("--order is for σ-GPT: this model reads left to right")
        order_BT = read_integers(order)
        if order_BT.shape != (B, T) or (np.sort(order_BT, 1) != np.arange(T)).any():
            raise UserError(
                f"'{order}' is no order: every one of its {B} rows must hold each of "
                f"0 .. {T - 1} once"
            )
    tokens_BT, order_BT = tokens_BT.astype(np.int32), order_BT.astype(np.int32)
    output = cli.output_path("logits", logits) if logits else None
    score = jax.jit(run.system.score)
    rows = max(1, min(B, (1 << 26) // (T * c.vocab_size)))
    parts = []
    for batch, count in batched({"tokens": tokens_BT, "order": order_BT}, rows):
        part = score(run.params, batch["tokens"], batch["order"])
        parts.append([np.asarray(array)[:count] for array in part])
    logits_BTV, nll_BT = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if output:
        try:
            np.save(output, logits_BTV.astype(np.float32))
        except OSError as error:
            raise UserError(f"--logits='{logits}': {error.strerror}") from None
    loss = float(nll_BT.mean(dtype=np.float64))
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_token": loss / math.log(2),
        "tokens": nll_BT.size,
        "step": run.step,
        "nll": nll_BT.tolist(),
    }


def _ratios(text: str) -> list[float]:
    try:
        ratios = [float(word) for word in text.split(",")]
    except ValueError:
        ratios = [0.0]
    if not all(0 < ratio < 1 for ratio in ratios):
        raise UserError(
            f"--infill holds shares between 0 and 1, like 0.5: not '{text}'"
        )
    return ratios


def command(argv: list[str]) -> None:
    """Parses arguments and prints the figures."""
    fields = configs.describe_fields(after_training=True)
    parser = cli.Parser("jaxgpt.evaluate", __doc__, epilog=fields)
    parser.add_run()
    parser.add_argument("--split", default="val", choices=["train", "val", "test"])
    parser.add_argument("--tokens", help=".npy of token ids [B, T] to score instead")
    parser.add_argument("--order", help=".npy [B, T]: the order to read each row in")
    parser.add_argument(
        "--eval_lengths",
        nargs="?",
        const=DEFAULT_LENGTHS,
        help="also the loss over longer texts than trained on: lengths in tokens, or "
        f"in blocks as 2x; without a value {DEFAULT_LENGTHS}",
    )
    parser.add_argument("--logits", help="with --tokens: write float32 logits here")
    parser.add_argument(
        "--num_orders",
        type=int,
        help="σ-GPT: also the likelihood over this many random orders of each window",
    )
    parser.add_argument(
        "--infill",
        help="also how well spans are filled, of these shares of a window: 0.15,0.5",
    )
    argv, overrides = configs.after_training_overrides(argv)
    args = parser.parse_args(argv)
    of_split = args.num_orders is not None or args.infill or args.eval_lengths
    if args.tokens and of_split:
        raise UserError(
            "--num_orders, --infill and --eval_lengths go with --split, not with "
            "--tokens"
        )
    if args.num_orders is not None and args.num_orders < 1:
        raise UserError(f"--num_orders is at least 1: not {args.num_orders}")
    ratios = _ratios(args.infill) if args.infill else []
    if (args.order or args.logits) and not args.tokens:
        raise UserError("--order and --logits go with --tokens")
    cli.set_up_jax()
    from jaxgpt.run import open_run

    run = open_run(args.workdir, args.step, overrides)
    if args.tokens:
        figures = score_tokens(run, args.tokens, args.order, args.logits)
    else:
        figures = evaluate_split(run, args.split)
        if args.num_orders:
            figures |= evaluate_orders(run, args.split, args.num_orders)
        if ratios:
            figures |= evaluate_infilling(run, args.split, ratios)
        if args.eval_lengths:
            figures |= evaluate_lengths(run, args.split, args.eval_lengths)
    if args.json:
        cli.print_json(figures)
    else:
        for name, value in figures.items():
            if isinstance(value, float | int):
                print(f"{name:>20}  {value:.6g}" if value else f"{name:>20}  {value}")
        for name, found in figures.items():
            if name.startswith("loss_by_distance"):
                for distance, value in found.items():
                    print(f"{name[17:] + ' ' + distance:>20}  {value:.4g}")
        for length, value in figures.get("loss_at_length", {}).items():
            print(f"{'loss at ' + length:>20}  {value:.6g}")
        for ratio, found in figures.get("infill", {}).items():
            print(f"{'infill ' + ratio:>20}", end="")
            print("".join(f"  {name} {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    cli.main(command)
