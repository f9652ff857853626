"""Alias of configs/gssm.py:low_entropy; :tiny is gssm.py:low_entropy-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    return load(f"gssm:low_entropy-{variant}", {})
