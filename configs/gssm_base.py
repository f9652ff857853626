"""Alias of configs/gssm.py:base; :tiny is gssm.py:base-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    path = __file__.replace("_base.py", ".py")
    return load(f"{path}:base-{variant}", {})
