"""Alias of configs/gssm.py:dead_mode_env; :tiny is gssm.py:dead_mode_env-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    return load(f"gssm:dead_mode_env-{variant}", {})
