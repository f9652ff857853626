"""Two chains of two latents of 6 states: 1,296 joint states.

python -m jaxgpt.train --config=configs/gssm_two_chains.py
"""

import pathlib

from jaxgpt.config import load, override

EASY = pathlib.Path(__file__).with_name("gssm_easy.py")


def get_config(variant=""):
    return override(
        load(f"{EASY}:{variant}", {}),
        {
            "gssm.graph": "data/graphs/two_chains.yaml",
            "gssm.graph_seed": 0,
            "steps": 1200,
        },
    )
