"""Alias of configs/gssm.py:easy; :tiny is gssm.py:easy-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    path = __file__.replace("_easy.py", ".py")
    return load(f"{path}:easy-{variant}", {})
