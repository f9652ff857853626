"""Alias of configs/gssm.py:two_chains; :tiny is gssm.py:two_chains-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    return load(f"gssm:two_chains-{variant}", {})
