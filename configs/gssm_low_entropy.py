"""Four independent latents with nearly deterministic kernels.

python -m jaxgpt.train --config=configs/gssm_low_entropy.py
"""

import pathlib

from jaxgpt.config import load, override

EASY = pathlib.Path(__file__).with_name("gssm_easy.py")


def get_config(variant=""):
    return override(
        load(f"{EASY}:{variant}", {}),
        {
            "gssm.graph": "data/graphs/low_entropy.yaml",
            "gssm.graph_seed": 0,
            "steps": 1000,
        },
    )
