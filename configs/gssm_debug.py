"""Alias of configs/gssm.py:debug; :tiny is gssm.py:debug-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    path = __file__.replace("_debug.py", ".py")
    return load(f"{path}:debug-{variant}", {})
