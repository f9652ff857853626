"""Four latents that mostly fall back to state 0.

python -m jaxgpt.train --config=configs/gssm_dead_mode_env.py

The graph is ours: what the original's of this name looks like was not at hand.
"""

import pathlib

from jaxgpt.config import load, override

EASY = pathlib.Path(__file__).with_name("gssm_easy.py")


def get_config(variant=""):
    return override(
        load(f"{EASY}:{variant}", {}),
        {
            "gssm.graph": "data/graphs/dead_mode_env.yaml",
            "gssm.graph_seed": 0,
        },
    )
