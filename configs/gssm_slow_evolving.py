"""Four latents that mostly stay where they are.

python -m jaxgpt.train --config=configs/gssm_slow_evolving.py

The graph is ours: what the original's of this name looks like was not at hand.
"""

import pathlib

from jaxgpt.config import load, override

EASY = pathlib.Path(__file__).with_name("gssm_easy.py")


def get_config(variant=""):
    return override(
        load(f"{EASY}:{variant}", {}),
        {
            "gssm.graph": "data/graphs/slow_evolving.yaml",
            "gssm.graph_seed": 0,
        },
    )
