"""Alias of configs/gssm.py:base; :tiny is gssm.py:base-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    return load(f"gssm:base-{variant}", {})
