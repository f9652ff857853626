"""Alias of configs/gssm.py:easy; :tiny is gssm.py:easy-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    return load(f"gssm:easy-{variant}", {})
