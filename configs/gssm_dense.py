"""Alias of configs/gssm.py:dense; :tiny is gssm.py:dense-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    path = __file__.replace("_dense.py", ".py")
    return load(f"{path}:dense-{variant}", {})
