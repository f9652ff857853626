"""Alias of configs/gssm.py:slow_evolving; :tiny is gssm.py:slow_evolving-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    return load(f"gssm:slow_evolving-{variant}", {})
