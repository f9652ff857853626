"""Alias of configs/gssm.py:sparse; :tiny is gssm.py:sparse-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    return load(f"gssm:sparse-{variant}", {})
