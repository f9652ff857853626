"""Generate from a run: continue a prompt, or fill the gaps of a template.

python -m jaxgpt.sample --workdir=runs/sigma_char-laptop --prompt="ROMEO:"
python -m jaxgpt.sample --workdir=DIR --template="<missing:20>my lord.<missing:20>"
"""

from __future__ import annotations

import argparse
import re
import time
from typing import TYPE_CHECKING

from jaxgpt import cli
from jaxgpt.config import MAX_SEED, UserError

if TYPE_CHECKING:
    import numpy as np

    from jaxgpt.run import Run

# Of texts that go on past the block, which a causal model can.
LONGEST = 1 << 16
GAP = re.compile(r"<missing:(\d+)>")


def known_text(run: Run, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens [T], known [T]): what is given and where it stands.

    Raises:
      UserError: where it does not fit the block, or a character is unknown.
    """
    import numpy as np

    block = run.system.model_config.block_size
    if args.template is not None:
        tokens, known = _read_template(run, args.template, block)
    else:
        prompt = _prompt_ids(run, args)
        new = (
            block - len(prompt) if args.max_new_tokens is None else args.max_new_tokens
        )
        if len(prompt) > run.system.capacity(len(prompt)):
            raise UserError(
                f"the prompt has {len(prompt)} tokens: {block} fit the model"
            )
        total = len(prompt) + new
        longest = LONGEST if run.system.goes_past_block else block
        if total > longest:
            raise UserError(
                f"prompt and --max_new_tokens={new} make {total} tokens: "
                f"{longest} fit the model"
            )
        tokens = np.concatenate([prompt, np.zeros(new, np.int32)])
        known = np.arange(total) < len(prompt)
    if not len(tokens):
        raise UserError("nothing is given and nothing asked for: raise the length")
    return tokens, known


def _read_template(
    run: Run, template: str, block: int
) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    if not template:
        raise UserError("--template is empty: write gaps as <missing:12>")
    tokens, known, total = [np.zeros(0, np.int32)], [np.zeros(0, bool)], 0
    for index, piece in enumerate(GAP.split(template)):
        gap = index % 2 == 1
        if gap and len(piece) > 12:
            raise UserError(f"a gap of {len(piece)} digits: {block} tokens fit")
        ids = None if gap else _encode(run, piece)
        length = int(piece) if ids is None else len(ids)
        total += length
        if total <= block:
            tokens.append(np.zeros(length, np.int32) if ids is None else ids)
            known.append(np.full(length, not gap))
    if total > block:
        raise UserError(f"the template makes {total} tokens: {block} fit the model")
    return np.concatenate(tokens), np.concatenate(known)


def _prompt_ids(run: Run, args: argparse.Namespace) -> np.ndarray:
    import numpy as np

    if args.prompt_ids is None:
        return _encode(run, args.prompt or "")
    try:
        ids = np.array([int(i) for i in args.prompt_ids.split(",") if i], np.int32)
    except (ValueError, OverflowError):
        raise UserError(
            f"--prompt_ids are like 3,1,4: not '{args.prompt_ids}'"
        ) from None
    size = run.system.model_config.vocab_size
    if ((ids < 0) | (ids >= size)).any():
        raise UserError(f"--prompt_ids are 0 .. {size - 1}: not '{args.prompt_ids}'")
    return ids


def _encode(run: Run, text: str) -> np.ndarray:
    import numpy as np

    if run.tokenizer is None and text:
        raise UserError("this run has no tokenizer: give --prompt_ids")
    return run.tokenizer.encode(text) if run.tokenizer else np.zeros(0, np.int32)


def _start_token(run: Run) -> int:
    """Returns the token that texts of this vocabulary best begin after."""
    from jaxgpt.data import tokenizer as tok

    if isinstance(run.tokenizer, tok.GPT2Tokenizer):
        return tok.END_OF_TEXT
    try:
        return int(_encode(run, "\n")[0])
    except UserError:  # There is no tokenizer, or it knows no newline.
        return 0


def _show(run: Run, tokens: np.ndarray) -> str:
    return run.tokenizer.decode(tokens) if run.tokenizer else str(tokens.tolist())


def command(argv: list[str]) -> None:
    """Parses arguments and prints the samples."""
    args = _parse(argv)
    cli.set_up_jax()
    import numpy as np

    from jaxgpt.core import random
    from jaxgpt.run import open_run

    run = open_run(args.workdir, args.step)
    if args.split:
        from jaxgpt import continuations

        block = run.system.model_config.block_size
        longest = LONGEST if run.system.goes_past_block else block
        return continuations.command(run, args, longest)
    tokens, known = known_text(run, args)
    bare = not known.any()
    if bare:
        tokens[0], known[0] = _start_token(run), True
    began = time.perf_counter()
    filled_NT = run.system.sample(
        run.params,
        np.tile(tokens, (args.num_samples, 1)),
        np.tile(known, (args.num_samples, 1)),
        random.stream(args.seed, "sample"),
        order=args.order,
        temperature=args.temperature,
        top_k=args.top_k,
    )
    seconds = time.perf_counter() - began
    if bare:
        cli.say(
            f"note: this model cannot begin with nothing; its first token is "
            f"{_show(run, tokens[:1])!r}"
        )
    missing = int((~known).sum())
    samples = [
        {
            "text": run.tokenizer.decode(row) if run.tokenizer else None,
            "tokens": row.tolist(),
            "model_calls": missing,
            "accepted_per_call": 1.0 if missing else 0.0,
        }
        for row in filled_NT
    ]
    if args.json:
        cli.print_json({"samples": samples, "seconds": seconds})
        return
    for index, row in enumerate(filled_NT):
        if index:
            print("-" * 40)
        print(_show(run, row))
    cli.say(f"{missing * len(samples)} tokens in {seconds:.2f} s, compilation included")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = cli.Parser("jaxgpt.sample", __doc__)
    parser.add_run()
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--prompt", help="text to continue")
    start.add_argument("--prompt_ids", help="token ids to continue, like 3,1,4")
    start.add_argument("--template", help="text with gaps written <missing:12>")
    start.add_argument(
        "--split",
        choices=["train", "val", "test"],
        help="continue texts of this split, half a block long",
    )
    parser.add_argument("--max_new_tokens", type=int, help="default: fill the block")
    parser.add_argument("--sampler", default="ar", choices=["ar"])
    parser.add_argument(
        "--order",
        default="",
        help="random (σ-GPT's default), left-to-right or fractal",
    )
    parser.add_argument("--num_samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top_k", type=int, default=0, help="0 allows every token")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.template is not None and args.max_new_tokens is not None:
        raise UserError(
            "--max_new_tokens does not go with --template: gaps have lengths"
        )
    for name, least in (
        ("max_new_tokens", 0),
        ("num_samples", 1),
        ("temperature", 0),
        ("top_k", 0),
        ("seed", 0),
    ):
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name} is at least {least}: not {value}")
    if args.seed > MAX_SEED:
        raise UserError(f"--seed is at most {MAX_SEED}: not {args.seed}")
    return args


if __name__ == "__main__":
    cli.main(command)
