"""Alias of configs/gssm.py:debug; :tiny is gssm.py:debug-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    return load(f"gssm:debug-{variant}", {})
