"""Alias of configs/gssm.py:dense; :tiny is gssm.py:dense-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    return load(f"gssm:dense-{variant}", {})
