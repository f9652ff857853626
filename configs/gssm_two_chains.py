"""Alias of configs/gssm.py:two_chains; :tiny is gssm.py:two_chains-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    path = __file__.replace("_two_chains.py", ".py")
    return load(f"{path}:two_chains-{variant}", {})
