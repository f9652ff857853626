"""Alias of configs/gssm.py:sparse; :tiny is gssm.py:sparse-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    path = __file__.replace("_sparse.py", ".py")
    return load(f"{path}:sparse-{variant}", {})
