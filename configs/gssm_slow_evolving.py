"""Alias of configs/gssm.py:slow_evolving; :tiny is gssm.py:slow_evolving-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    path = __file__.replace("_slow_evolving.py", ".py")
    return load(f"{path}:slow_evolving-{variant}", {})
