"""Scores marked spans of texts, given what stands around them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from jaxgpt.cli import text_of
from jaxgpt.errors import UserError
from jaxgpt.run import Run
from jaxgpt.sampling import prompts

NUM_ORDERS = 16  # By default.


def score_spans(run: Run, template: str, num_orders: int) -> dict[str, Any]:
    """Returns log p(marked spans | the rest), over random orders of their tokens.

    Args:
      run: of text.
      template: a text with spans marked [[so]]; @FILE reads it, and of a .jsonl file a
        "template" from each line.
      num_orders: of each text; a model that reads left to right has one.

    Returns:
      {"templates": [{"scored": the texts of the spans, "tokens": as many; "log_prob":
      the mean over orders in nats, "log_prob_error": its standard error,
      "log_prob_mixture": the log of the mean probability; "loss": -log_prob per
      token}], "loss": of all together, "tokens", "step"}.

    Raises:
      UserError: if a text cannot be read, or the model cannot score it so.
    """
    found: list[dict[str, Any]] = []
    tokens, log_p = 0, 0.0
    for where, text in _read(template):
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


def _read(template: str) -> Iterator[tuple[str, str]]:
    """Yields (name for errors, text) of each template."""
    content = text_of("template", template) or ""
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
