"""Alias of configs/gssm.py:dead_mode_env; :tiny is gssm.py:dead_mode_env-tiny."""

from jaxgpt.config import load


def get_config(variant=""):
    path = __file__.replace("_dead_mode_env.py", ".py")
    return load(f"{path}:dead_mode_env-{variant}", {})
