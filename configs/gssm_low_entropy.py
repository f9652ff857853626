"""Alias of configs/gssm.py:low_entropy; :tiny is gssm.py:low_entropy-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    path = __file__.replace("_low_entropy.py", ".py")
    return load(f"{path}:low_entropy-{variant}", {})
