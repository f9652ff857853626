"""Four latents that mostly fall back to state 0.

python -m jaxgpt.train --config=configs/gssm_dead_mode_env.py

The alphas are ours: only the name of this graph of the original's was at hand. Exact
2.560 nats per token of long sequences, bigram 2.571, unigram 2.651: there is little to
learn beyond pairs of tokens. Not trained here.
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
