"""Judges what a run generates: another run's loss on it, and how varied it is."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxgpt.config import user_path
from jaxgpt.errors import UserError, log, os_errors, require
from jaxgpt.run import Run, open_run

NUM_SAMPLES = 256  # By default.
NGRAMS = (1, 2, 3, 4)
REPEATED = 4  # Tokens of the N-grams that `repetition` counts.


def judge(
    run: Run, judged_by: str, num_samples: int, samples: str | None
) -> dict[str, Any]:
    """Returns figures of generated texts, and of as many of the validation split.

    Args:
      run: generates, without a prompt, with the defaults of `jaxgpt.sample`.
      judged_by: folder of another run, of text or of the same token ids.
      num_samples: how many texts.
      samples: a file of `jaxgpt.sample --output` with texts to judge instead.

    Returns:
      {"samples": figures, "real": figures, "texts": how many, "judge": the run and its
      step}. Figures are from `measure`; there is no "real" if the data cannot be read.

    Raises:
      UserError: if the judge cannot read the texts.
    """
    judge_run = open_run(judged_by)
    if samples:
        rows = _read(samples, run)
    else:
        rows = [sample.tokens for sample in run.generate("", num_samples=num_samples)]
    figures = {"samples": measure(rows, run, judge_run)}
    try:
        data = run.open_data()
        length = max(map(len, rows))
        windows: Any = data.eval_windows("val", length, len(rows))
        real = [*np.asarray(getattr(windows, "tokens_NT", windows))]
        figures["real"] = measure(real, run, judge_run)
    except UserError as error:
        log(f"note: no figures of real texts: {error}")
    judged = {"run": judge_run.workdir.name, "step": judge_run.step}
    return figures | {"texts": len(rows), "judge": judged, "step": run.step}


def _read(name: str, run: Run) -> list[np.ndarray]:
    """Returns the token ids of each text in a file of `jaxgpt.sample --output`."""
    with os_errors(f"--samples='{name}'"):
        lines = user_path(name).read_text("utf-8", "replace").split("\n")
    rows = []
    for number, line in enumerate(filter(None, lines), 1):
        try:
            found = json.loads(line)
            texts = found.get("samples", [found])
            rows += [np.array(text["tokens"], np.int64) for text in texts]
            fits = all(row.ndim == 1 and len(row) > 1 for row in rows)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            fits = False
        if not fits:
            raise UserError(
                f"--samples='{name}', line {number}: not a line of jaxgpt.sample "
                "--output, with two tokens at least"
            )
    V, what = run.system.model_config.vocab_size, f"--samples='{name}'"
    require(bool(rows), what, "lines of jaxgpt.sample --output", "an empty file")
    known = all(row.min() >= 0 and row.max() < V for row in rows)
    require(known, what, f"texts of ids < {V}", "others")
    return rows


def measure(rows: Sequence[np.ndarray], run: Run, judged_by: Run) -> dict[str, Any]:
    """Returns figures of texts, with standard errors over texts.

    Returns:
      nll: the judge's nats per token (its own), without the first of each text;
      nll_per_character, for runs of text; entropy: of the token frequencies, in nats;
      distinct_N: the share of distinct ones among all N-grams (Li et al. 2016, arXiv
      1510.03055); repetition: the share of 4-grams that occur earlier in their text.
      *_error: standard errors, of entropy and distinct_N by the jackknife.
    """
    found: dict[str, Any] = {}

    def add(name: str, value_N: np.ndarray, weight_N: np.ndarray) -> None:
        """Adds a ratio of sums over texts, and its error."""
        mean = value_N.sum() / weight_N.sum()
        N, spread = len(value_N), value_N - mean * weight_N
        error = math.sqrt(N / (N - 1) * (spread**2).sum()) if N > 1 else math.nan
        found[name] = float(mean)
        found[f"{name}_error"] = float(error / weight_N.sum()) if N > 1 else None

    nll_N, tokens_N, characters_N = _score(rows, run, judged_by)
    add("nll", nll_N, tokens_N)
    if characters_N is not None:
        add("nll_per_character", nll_N, characters_N)
    grams = {n: [_ngrams(row, n) for row in rows] for n in (*NGRAMS, REPEATED)}
    c_log_c = lambda count: count * math.log(count) if count else 0.0
    entropy = lambda total, size: math.log(size) - total / size
    found |= _jackknife("entropy", grams[1], c_log_c, entropy)
    for n in NGRAMS:
        share = lambda total, size: total / max(size, 1)
        found |= _jackknife(f"distinct_{n}", grams[n], bool, share)
    count_N = np.array([sum(counts.values()) for counts in grams[REPEATED]])
    if count_N.any():
        repeated_N = count_N - np.array([len(counts) for counts in grams[REPEATED]])
        add("repetition", repeated_N, count_N)
    return found


def _score(
    rows: Sequence[np.ndarray], run: Run, judged_by: Run
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns the judge's nats, its number of tokens, and characters of each text."""
    if run.tokenizer and judged_by.tokenizer:
        texts = [run.decode(row) for row in rows]
        nll_NT = judged_by.score(texts)
        characters_N = np.array([len(text) for text in texts])
    else:
        ours, theirs = (r.system.model_config.vocab_size for r in (run, judged_by))
        remedy = "without tokenizers both must be of the same ids"
        require(ours == theirs, "the judge's vocabulary", f"{ours}", theirs, remedy)
        nll_NT, characters_N = _score_ids(rows, judged_by), None
    return np.nansum(nll_NT, 1), (~np.isnan(nll_NT)).sum(1), characters_N


def _score_ids(rows: Sequence[np.ndarray], judged_by: Run) -> np.ndarray:
    longest = max(map(len, rows))
    nll_NT = np.full((len(rows), longest), np.nan)
    for length in {len(row) for row in rows}:
        chosen = [i for i, row in enumerate(rows) if len(row) == length]
        nll_NT[chosen, :length] = judged_by.score(np.stack([rows[i] for i in chosen]))
    return nll_NT


def _ngrams(row: np.ndarray, n: int) -> Counter:
    ids = row.tolist()
    return Counter(zip(*(ids[i:] for i in range(n)), strict=False))


def _jackknife(
    name: str,
    parts: Sequence[Counter],
    weigh: Callable[[int], float],
    figure: Callable[[float, int], float],
) -> dict[str, float | None]:
    """Returns a figure of all counts together, and its standard error over texts.

    Args:
      name: of the figure.
      parts: how often each N-gram is in each text.
      weigh: what a count adds to a total; 0 for a count of 0.
      figure: of that total and of the sum of counts.
    """
    count: Counter = Counter()
    for part in parts:
        count.update(part)
    total, size = sum(map(weigh, count.values())), sum(count.values())
    found = {name: figure(total, size), f"{name}_error": None}
    if len(parts) < 2:
        return found
    left_out = []
    for part in parts:  # Without a text only the counts of its own N-grams differ.
        change = sum(weigh(count[g]) - weigh(count[g] - own) for g, own in part.items())
        left_out.append(figure(total - change, size - sum(part.values())))
    return found | {f"{name}_error": math.sqrt((len(parts) - 1) * np.var(left_out))}
